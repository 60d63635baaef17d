"""What a run leaves behind besides checkpoints and logs: pipeline, discriminator, sample grids and configuration.
The training loop, read from top to bottom: prepare, iterate, report, save."""

import contextlib
import json
import logging
import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from torch.nn.utils import get_total_norm

from ..models import RATLIPDiscriminator
from ..pipeline import RATLIPPipeline, prepare_latents
from ..utils.display import grid_image
from ..utils.errors import UserError
from ..utils.files import atomic_directory, atomic_write, remove_unfinished, staged_files
from ..utils.networks import at_least_float32
from .config import TrainingConfig
from .monitor import Report
from .optimization import rate_factor
from .run import SAMPLE_CAPTIONS, Run, describe, prepare, step_inputs
from .step import Networks, training_step
from .validation import QuickEvaluation


def save_models(output_dir: Path, pipeline: RATLIPPipeline, discriminator: RATLIPDiscriminator) -> None:
    """Write `pipeline/` (averaged generator) and `discriminator/` beside it."""
    for name, model in (("pipeline", pipeline), ("discriminator", discriminator)):
        with atomic_directory(output_dir / name) as folder:
            model.save_pretrained(folder)
        remove_unfinished(output_dir / name)


def save_run_config(output_dir: Path, config: TrainingConfig, clip: dict) -> None:
    """Write `config.json`, which `--config` reads again, and `clip.json`: which frozen CLIP the run really used."""
    atomic_write(output_dir / "config.json", config.to_json())
    atomic_write(output_dir / "clip.json", json.dumps(clip, indent=2) + "\n")


def save_samples(
    output_dir: Path,
    step: int,
    pipeline: RATLIPPipeline,
    prompt_embeds: torch.Tensor,
    batch_size: int,
    per_sentence: int = 4,
) -> None:
    """Write `samples/step-<n>.png`: images of each of the sentences, the same noise in every grid of the run."""
    noise = prepare_latents(per_sentence, pipeline.generator.config.noise_dim, torch.Generator().manual_seed(0))
    options = {"num_images_per_prompt": per_sentence, "latents": noise.repeat(len(prompt_embeds), 1)}
    images = pipeline(prompt_embeds=prompt_embeds, batch_size=batch_size, **options).images
    with staged_files(output_dir / "samples") as folder:
        grid_image(images, columns=2 * per_sentence).save(folder / f"step-{step:08d}.png")


logger = logging.getLogger(__name__)


def train(config: TrainingConfig) -> Path:
    """Train as configured and return the output folder.

    Time is counted in real images seen over all processes: it decides the data order, the noise and the learning
    rate, and it is all that a resumed run needs to know besides the states of networks and optimizers. Nothing in a
    step draws from a global random state.

    Raises:
        UserError, ValueError: before anything is trained, when configuration, surroundings, CLIP and data do not fit
            together; later when the run diverges.
    """
    run = prepare(config)
    if run is None:
        return Path(config.output_dir)
    with contextlib.ExitStack() as ending:
        if run.hub:
            ending.enter_context(contextlib.closing(run.hub))
        ending.callback(run.accelerator.end_training)  # trackers keep their last events, also after an error
        if run.is_main:
            save_run_config(run.output_dir, config, run.clip.describe())
            logger.info(describe(run.generator, run.discriminator, run.data, config))
            logger.info("%d process(es) on %s", run.accelerator.num_processes, run.accelerator.device)
            _iterate_and_report(run)
            logger.info("finished: %s", run.output_dir)
        else:
            for _ in iterate(run):
                pass
        run.accelerator.wait_for_everyone()
    return run.output_dir


def iterate(run: Run) -> Iterator[dict[str, float]]:
    """Take steps until enough images are seen, and yield each one's figures: means over all processes."""
    config, data, accelerator = run.config, run.data, run.accelerator
    micro_batches = data.batches(run.seen, accelerator.process_index, accelerator.num_processes)
    while run.seen < config.max_train_images:
        batches = islice(micro_batches, config.gradient_accumulation_steps)
        inputs = [step_inputs(batch, run.clip, accelerator.device, config) for batch in batches]
        run.nets.set_rates(rate_factor(config, run.step, run.seen))
        figures = training_step(run.nets, inputs, penalise=run.step % config.penalty_interval == 0)
        run.step, run.seen = run.step + 1, run.seen + run.per_step
        figures = averaged(figures, run.nets)
        stop_if_not_finite(run, figures)
        run.ema.update(run.generator)
        yield figures


def _iterate_and_report(run: Run) -> None:
    """What the main process does besides taking steps."""
    config, first = run.config, run.seen
    evaluation = QuickEvaluation(config, run.data, run.clip) if config.evaluate_every else None
    sentences = run.data.first_captions(SAMPLE_CAPTIONS)
    sentence_embeds = run.clip.encode(sentences)
    record, latest = None, {}
    with Report(run.output_dir, run.accelerator, config, run.step, run.seen) as report:
        for figures in iterate(run):
            report.advance(run.per_step)
            latest |= figures  # a lazy penalty may never fall on a step that is logged: the last one stands for it
            if run.step % config.logging_steps == 0:
                report.log(run.step, run.seen, latest)
            if crossed(run, config.sample_every):
                save_samples(run.output_dir, run.step, run.pipeline, sentence_embeds, config.train_batch_size)
            if evaluation and crossed(run, config.evaluate_every):
                scores = evaluation.run(run.ema.module)
                record = report.evaluated(run.step, run.seen, scores, evaluation.protocol)
                run.best.update(record, run.pipeline)
            if run.step % config.checkpointing_steps == 0 or run.seen >= config.max_train_images:
                save(run)
                publish(run, sentences, record)
    if run.seen == first and run.step:  # nothing was left to do, but the models may have been moved away
        save_models(run.output_dir, run.pipeline, run.discriminator)
        publish(run, sentences, record)


def save(run: Run) -> None:
    """Write the models and a checkpoint, unless the weights are not finite.

    In this order: whoever finds the last checkpoint finds the models too.
    """
    # Finite losses do not rule out that the optimizer's last move was none.
    trained = {"generator_norm": run.generator, "discriminator_norm": run.discriminator}
    stop_if_not_finite(run, {name: float(get_total_norm(net.parameters())) for name, net in trained.items()})
    save_models(run.output_dir, run.pipeline, run.discriminator)
    run.checkpoints.save(run.step, run.facts())


def publish(run: Run, prompts: list[str], record: dict | None) -> None:
    """Begin to upload what `save` has written, if that is wanted, with the latest evaluation on the card."""
    if run.hub:
        scores = record["scores"] if record else {}
        protocol = f"quick evaluation, {json.dumps(record['protocol'])}" if record else ""
        metrics = [{"name": name, "value": value, "protocol": protocol} for name, value in scores.items()]
        run.hub.upload(run.seen, prompts, metrics)


def averaged(figures: dict[str, torch.Tensor], nets: Networks) -> dict[str, float]:
    """Means over all processes, in one transfer; every process gets the same numbers and so takes the same turns."""
    stacked = torch.stack([at_least_float32(value) for value in figures.values()])
    return dict(zip(figures, nets.accelerator.reduce(stacked, "mean").tolist(), strict=True))


def stop_if_not_finite(run: Run, figures: dict[str, float]) -> None:
    """Raise UserError when a loss or a norm of weights is NaN or infinite; no checkpoint holds such weights.

    A gradient may overflow: float16 then skips the move, and otherwise the next losses show it.
    """
    judged = [value for name, value in figures.items() if not name.endswith("grad_norm")]
    if not all(map(math.isfinite, judged)):
        listed = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        raise UserError(
            f"training diverged at step {run.step} (global samples {run.seen - run.per_step} to {run.seen - 1}): "
            f"{listed}; lower the learning rates; a checkpoint, if there is one already, is from before it and can be "
            "resumed"
        )


def crossed(run: Run, interval: int) -> bool:
    """Whether the last step went over a multiple of `interval` images."""
    return run.seen // interval > (run.seen - run.per_step) // interval
