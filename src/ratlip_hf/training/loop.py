"""The training loop, read from top to bottom: prepare, take steps, report, evaluate, save, publish."""

import contextlib
import json
import logging
import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from torch.nn.utils import get_total_norm

from ..latents import prepare_latents
from ..utils.display import grid_image
from ..utils.errors import UserError
from ..utils.files import atomic_directory, atomic_write, remove_unfinished, staged_files
from ..utils.tensors import check_weights
from .config import TrainingConfig
from .ending import Peers, watched_launcher
from .monitor import Report
from .optimization import lr_factor
from .pixel_losses import PENALTY_INTERVAL
from .run import Run, describe_state, prepare
from .step import mean_over_processes, to_device, training_step
from .validation import QuickEvaluation

logger = logging.getLogger(__name__)

_UPLOAD_PATIENCE = 10.0  # seconds that an upload gets when a signal has ended the run
_SAMPLE_CAPTIONS, _IMAGES_PER_CAPTION = 16, 4  # of a sample grid


def train(config: TrainingConfig) -> Path:
    """Train as configured and return the output folder.

    Time is counted in real images seen over all processes: it decides the data order, the noise and the learning
    rate, and it is all that a resumed run needs to know besides the states of networks and optimizers. Nothing in a
    step uses a global random state.

    Raises:
        UserError, ValueError: before anything is trained, when configuration, surroundings, CLIP and data do not fit
            together; later when the run diverges.
    """
    with contextlib.ExitStack() as ending:
        ending.enter_context(watched_launcher())
        run = prepare(config, ending)
        if run is None:
            return Path(config.output_dir)
        ending.enter_context(run.ending)
        peers = Peers(run.accelerator)
        ending.enter_context(peers.watched())
        ending.enter_context(_naming_the_dead(peers))
        if run.hub:
            ending.callback(lambda: run.hub.close(_UPLOAD_PATIENCE if run.ended else None))
        ending.callback(run.accelerator.end_training)  # trackers keep their last events, also after an error
        if run.accelerator.is_main_process:
            run.checkpoints.folder.mkdir(parents=True, exist_ok=True)
            # `--config` reads the first again; the second says which frozen CLIP the run really used.
            atomic_write(run.output_dir / "config.json", config.to_json())
            atomic_write(run.output_dir / "clip.json", json.dumps(run.clip.describe(), indent=2) + "\n")
            sizes = [network.num_parameters() / 1e6 for network in (run.generator, run.discriminator)]
            logger.info("generator %.2f M parameters, discriminator %.2f M", *sizes)
            logger.info("%d images in the dataset, %d to see", len(run.data), config.max_train_images)
            logger.info("%d process(es) on %s", run.accelerator.num_processes, run.accelerator.device)
            _iterate_and_report(run)
            logger.info(
                "ended at step %d: resume it" if run.ended else "finished: %s",
                run.step if run.ended else run.output_dir,
            )
        else:
            for _ in iterate(run):
                pass
        run.accelerator.wait_for_everyone()
        if run.ended:
            raise run.ending.stopped()
    return run.output_dir


@contextlib.contextmanager
def _naming_the_dead(peers: Peers) -> Iterator[None]:
    """Let an operation that fails because another process has died say which one."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" in str(error):  # torch raises it wherever the program is
            raise UserError(
                "a process that loads images was killed, perhaps for lack of memory: resume with fewer "
                "dataloader_num_workers"
            ) from error
        if (words := peers.explain()) is None:
            raise
        raise UserError(f"{words}: resume from the last checkpoint") from error


def iterate(run: Run) -> Iterator[dict[str, float]]:
    """Take steps until enough images are seen, and yield the metrics of each: means over all processes."""
    config, accelerator = run.config, run.accelerator
    micro_batches = run.data.batches(run.seen, accelerator.process_index, accelerator.num_processes)
    while run.seen < config.max_train_images and not run.ended:
        batches = islice(micro_batches, config.gradient_accumulation_steps)
        inputs = [to_device(batch, run.clip, accelerator.device) for batch in batches]
        run.nets.set_lr_factor(lr_factor(config, run.step, run.seen))
        metrics = training_step(
            run.nets,
            inputs,
            penalise=run.step % config.penalty_interval == 0,
            penalise_pixels=run.step % PENALTY_INTERVAL == 0,
        )
        run.step, run.seen = run.step + 1, run.seen + run.per_step
        asked = torch.tensor(float(run.ending.asked), device=accelerator.device)
        metrics = mean_over_processes({**metrics, "asked to end": asked}, accelerator)
        asked_somewhere = metrics.pop("asked to end") > 0  # so that all end after the same step
        run.ended = asked_somewhere and run.seen < config.max_train_images
        _stop_if_not_finite(run, metrics)
        run.ema.update(run.generator)
        yield metrics


def _iterate_and_report(run: Run) -> None:
    """Steps, and what only the main process does after each: report, evaluate, save, publish."""
    config, first = run.config, run.seen
    evaluation = QuickEvaluation(config, run.data, run.clip) if config.evaluate_every else None
    prompts = run.data.first_captions(_SAMPLE_CAPTIONS)
    prompt_embeds = run.clip.encode(prompts)
    record, latest = None, {}
    with Report(run.output_dir, run.accelerator, config, run.step, run.seen) as report:
        for metrics in iterate(run):
            report.advance(run.per_step)
            latest |= metrics  # a lazy penalty may never fall on a step that is logged: the last one stands for it
            if run.step % config.logging_steps == 0:
                report.log(run.step, run.seen, latest)
            if crossed(run, config.sample_every):
                _save_samples(run, prompt_embeds)
            if evaluation and crossed(run, config.evaluate_every):
                scores = evaluation.run(run.ema.module)
                record = report.evaluated(run.step, run.seen, scores, evaluation.protocol)
                run.best.update(record, run.pipeline)
            finished = run.seen >= config.max_train_images
            if run.step % config.checkpointing_steps == 0 or finished or run.ended:
                _save_models(run)
                # After the models: whoever finds the last checkpoint finds them, too.
                place = {"step": run.step, "images": run.seen, "lanes": run.data.rows.lanes}
                facts = place | {"identity": run.identity}
                run.checkpoints.save(run.step, facts | describe_state(run.generator, run.discriminator, config))
                if run.hub and not run.ended:  # there may be seconds left
                    run.hub.upload(run.seen, prompts, record)
    if run.seen == first and run.step:  # nothing was left to do, but the models may have been moved away
        _save_models(run)
        if run.hub:
            run.hub.upload(run.seen, prompts)


def crossed(run: Run, interval: int) -> bool:
    """Whether the last step went over a multiple of `interval` images."""
    return run.seen // interval > (run.seen - run.per_step) // interval


def _stop_if_not_finite(run: Run, metrics: dict[str, float]) -> None:
    """Raise UserError when a loss or a norm of weights is NaN or infinite; no checkpoint holds such weights.

    A gradient may overflow: float16 then skips the move, and otherwise the next losses show it.
    """
    if not all(math.isfinite(value) for name, value in metrics.items() if not name.endswith("grad_norm")):
        listed = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        raise UserError(
            f"training diverged at step {run.step} (global samples {run.seen - run.per_step} to {run.seen - 1}): "
            f"{listed}; lower the learning rates; a checkpoint, if there is one already, is from before it and can be "
            "resumed"
        )


def _save_models(run: Run) -> None:
    """Write `pipeline/`, with the EMA weights, and the discriminators, unless some weights are not finite."""
    # Finite losses do not rule out that the optimizer's last move was none.
    discriminators = [run.discriminator]
    if run.nets.pixel_discriminator:
        discriminators.append(run.nets.bare(run.nets.pixel_discriminator))
    trained = {"generator_norm": run.generator, "ema_norm": run.ema.module}
    trained |= {f"{network.folder}_norm": network for network in discriminators}
    _stop_if_not_finite(run, {name: float(get_total_norm(net.parameters())) for name, net in trained.items()})
    for name, network in trained.items():
        check_weights(network, f"step {run.step}, {name.removesuffix('_norm')}")
    for name, model in (("pipeline", run.pipeline), *((network.folder, network) for network in discriminators)):
        with atomic_directory(run.output_dir / name) as folder:
            model.save_pretrained(folder)
        remove_unfinished(run.output_dir / name)


def _save_samples(run: Run, prompt_embeds: torch.Tensor) -> None:
    """Write `samples/step-<n>.png`: images of each of the prompts, the same noise in every grid of the run."""
    count, noise_dim = _IMAGES_PER_CAPTION, run.data.noise_dim
    noise = prepare_latents(count, noise_dim, torch.Generator().manual_seed(0)).repeat(len(prompt_embeds), 1)
    images = run.pipeline(
        prompt_embeds=prompt_embeds, latents=noise, num_images_per_prompt=count, batch_size=run.config.train_batch_size
    ).images
    with staged_files(run.output_dir / "samples") as folder:
        grid_image(images, columns=2 * count).save(folder / f"step-{run.step:08d}.png")
