"""The subcommands of `ratlip explore` that look into networks (the paper's Figs. 3 and 5) or set models side by side
(Fig. 4)."""

import argparse
import json
from functools import partial
from pathlib import Path

from .. import bundled
from ..utils.errors import UserError
from .options import add_seed_arguments, draw_noise, load_pipeline, read_image, read_seeds

_MOST_SWAPS = 64


def explain_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("prompt", help="what the images are to show")
    add("--word", help="explain this word of the prompt: its score with the word less its score without")
    add("--also", nargs="+", default=[], metavar="MODEL", help="further pipelines, a column each, all with --seed")
    add("--image", type=Path, help="explain this picture, not generated ones")
    add_seed_arguments(parser, 4)


def explain(options, pipe, folder: Path):
    from ..explain import figures

    seeds = read_seeds(options)[: 1 if options.also or options.image else None]
    without = _without_word(options.prompt, options.word)
    others = {name: load_pipeline(name, pipe.dtype, "--also").to(pipe.device) for name in options.also}
    models = {options.model: pipe, **others}
    columns = [Path(name).name for name in models] if options.also else [f"seed {seed}" for seed in seeds]
    columns = [options.image.name] if options.image and not options.also else columns
    images: list = []  # tensors; torch is imported later
    maps: dict[str, list] = {}
    for name, each in models.items():
        shown = _images(options, each, seeds)
        images.append(shown)
        for label, found in _maps(name, each, shown, options.prompt, without).items():
            maps.setdefault(label, []).append(found)
    complete = {label: _joined(found) for label, found in maps.items() if len(found) == len(models)}
    word = f" (the word {options.word!r})" if options.word else ""
    figure = figures.saliency_figure(_joined(images), complete, columns, f"{options.prompt}{word}")
    facts = {"prompt": options.prompt, "word": options.word, "models": list(models), "seeds": seeds}
    facts |= {"image": str(options.image) if options.image else None, "rows": list(complete)}
    return figure, {**facts, **_insides(pipe, options, images[0], seeds, folder)}


def _without_word(prompt: str, word: str | None) -> str | None:
    from ..explain import words_left_out

    if word is None:
        return None
    left = dict(reversed(words_left_out(prompt)))
    if word not in left:
        raise UserError(f"--word {word!r} is no word of the prompt; there are {', '.join(left)}")
    return left[word]


def _images(options, pipe, seeds):
    if options.image:
        return read_image(options.image, pipe.generator.config.sample_size).to(pipe.generator.device)
    noise = draw_noise(pipe, seeds)
    return 2 * pipe([options.prompt] * len(seeds), latents=noise, batch_size=1, output_type="pt").images - 1


def _maps(name: str, pipe, images, prompt: str, without: str | None) -> dict:
    """Maps [B, S, S] of the CLIP similarity and, where there is a discriminator, of its logit."""
    import torch

    from ..clip import FrozenCLIP
    from ..explain import attention_x_gradient, contrast, discriminator_logit, grad_cam, similarity
    from ..explain import occlusion as occluded
    from ..models import RATLIPDiscriminator

    tower, texts = pipe.image_encoder, [prompt] if without is None else [prompt, without]
    alone = (lambda score: contrast(score, [(0, 1)])) if without is not None else (lambda score: score)
    similar = alone(similarity(FrozenCLIP.of(pipe), texts))
    maps = {
        "CLIP similarity, Grad-CAM": grad_cam(similar, images, tower.vision_model.encoder.layers[-1].layer_norm1),
        "CLIP similarity, attention x gradient": attention_x_gradient(similar, images, tower),
        "CLIP similarity, occlusion": occluded(similar, images),
    }
    discriminator = RATLIPDiscriminator.of_pipeline(bundled.resolve(name))
    if discriminator is not None:
        discriminator = discriminator.to(images).eval()
        with torch.no_grad():
            (embeds,) = pipe.encode_prompt(texts)
        logit = alone(discriminator_logit(discriminator, tower, embeds))
        maps["discriminator's logit, Grad-CAM"] = grad_cam(logit, images, discriminator.extractor)
        maps["discriminator's logit, attention x gradient"] = attention_x_gradient(logit, images, tower)
    return {label: values[:, 0] for label, values in maps.items()}


def _joined(parts: list):
    """Images or maps of models that may differ in size, in that of the first."""
    import torch

    side = parts[0].shape[-1]
    sized = []
    for part in parts:
        four = part if part.ndim == 4 else part[:, None]
        four = torch.nn.functional.interpolate(four.float(), (side, side), mode="bilinear")
        sized.append(four if part.ndim == 4 else four[:, 0])
    return torch.cat(sized)


def _insides(pipe, options, images, seeds, folder: Path) -> dict:
    """Figures of words, and of gates and states where the generator has them; what goes into the manifest."""
    import torch

    from ..clip import FrozenCLIP
    from ..explain import (
        attention_gates,
        figures,
        similarity,
        trace_states,
        word_importance,
        word_traces,
        words_left_out,
    )
    from ..models.recurrence import AcrossLayersStates

    words = word_importance(partial(similarity, FrozenCLIP.of(pipe)), images, options.prompt)
    figures.words_figure(words, "similarity lost without the word").save(folder / "explain_words.png")
    noise = draw_noise(pipe, seeds[:1]).to(images)
    left = words_left_out(options.prompt)
    with torch.no_grad():
        text, without = pipe.encode_prompt([options.prompt, *(rest for _, rest in left)])[0].split([1, len(left)])
    networks = pipe.generator, pipe.image_encoder
    if isinstance(pipe.generator.states, AcrossLayersStates):
        trace = trace_states(pipe.generator, noise, text)
        figures.states_figure(trace, f"recurrence by step, seed {seeds[0]}").save(folder / "explain_states.png")
        moved = word_traces(pipe.generator, noise, text, without)
        steps = [str(step + 1) for step in range(moved.shape[1])]
        title = "how far the state of a step moves without the word, by its length"
        figures.cells_figure(moved, [word for word, _ in left], steps, title).save(folder / "explain_steps.png")
    if gates := attention_gates(*networks, noise, text):
        figures.gates_figure(gates, "shuffle attention, gates").save(folder / "explain_gates.png")
    return {"words": {f"{place + 1} {word}": round(value, 5) for place, (word, value) in enumerate(words)}}


def compare_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("prompts", nargs="+", metavar="prompt", help="a row each")
    text = "pipelines, or folders that `ratlip generate` wrote: a column each"
    add("--sources", nargs="+", required=True, metavar="SOURCE", help=text)
    add_seed_arguments(parser, 2)


def compare(options, dtype, device):
    from ..utils.display import labelled_grid

    seeds, columns, labels = read_seeds(options), [], []
    listed = {source: _listed_images(Path(source), options.prompts) for source in options.sources}
    for source in options.sources:
        images = listed[source]
        if images is None:
            images = _generated(load_pipeline(source, dtype, "--sources").to(device), options.prompts, seeds)
        columns.append(images)
        labels += [f"{Path(source).name}, {number + 1}" for number in range(len(images[0]))]
    rows = [[image for images in columns for image in images[row]] for row in range(len(options.prompts))]
    facts = {"prompts": options.prompts, "sources": options.sources, "seeds": seeds}
    return labelled_grid(rows, options.prompts, labels), facts


def _generated(pipe, prompts: list[str], seeds: list[int]) -> list[list]:
    noise = draw_noise(pipe, seeds)
    return [pipe([prompt] * len(seeds), latents=noise, batch_size=1).images for prompt in prompts]


def _listed_images(folder: Path, prompts: list[str]) -> list[list] | None:
    """The images of each prompt by a folder's manifest, as many as the rarest prompt has; None without a manifest."""
    from PIL import Image

    if not (folder / "manifest.jsonl").is_file():
        return None
    try:
        lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
        files = [[folder / Path(line["file"]).name for line in lines if line["prompt"] == text] for text in prompts]
        fewest = min(map(len, files))
        images = [[Image.open(path).convert("RGB") for path in row[:fewest]] for row in files]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} cannot be read as a folder of `ratlip generate`: {error}") from error
    if not fewest:
        raise UserError(f"{folder} has no image of {prompts[[len(row) for row in files].index(0)]!r}")
    return images


def angles_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("prompt", help="before")
    add("edited_prompt", help="after, such as with one word exchanged")
    add("--swaps", type=int, default=8, help="random swaps of a word to compare with (default: %(default)s)")
    add("--swap_words", nargs="+", help="words for these (default: whole words of the tokenizer)")
    add_seed_arguments(parser, 32)


def angles(options, pipe, folder: Path):
    import torch

    from ..clip import FrozenCLIP
    from ..explain import edit_angles, figures, random_swaps

    seeds = read_seeds(options)
    if not 1 <= options.swaps <= _MOST_SWAPS or len(seeds) < 2:
        raise UserError(f"--swaps must lie in 1..{_MOST_SWAPS}, and --num_images must be at least 2")
    swaps = random_swaps(options.prompt, options.swap_words or _whole_words(pipe.tokenizer), options.swaps)
    noise, embed = draw_noise(pipe, seeds), torch.no_grad()(FrozenCLIP.of(pipe).embed_images)
    batch = 1 if pipe.generator.couples_batch else 16
    features = [
        embed(2 * pipe([text] * len(seeds), latents=noise, batch_size=batch, output_type="pt").images - 1)
        for text in (options.prompt, options.edited_prompt, *swaps)
    ]
    pool = torch.cat(features)
    ways = {"raw": {}, "centred": {"centre": pool.mean(0)}}
    ways["centred, scaled"] = {"centre": pool.mean(0), "scale": pool.std(0)}
    found = {name: edit_angles(features[0], features[1], features[2:], **way) for name, way in ways.items()}
    values = torch.tensor([list(row.values()) for row in found.values()]).T
    lines = ("edit", "random swaps", "other noise", "edit's ways", "edit and swaps")
    image = figures.cells_figure(values, lines, list(found), "angles in degrees", width=110)
    facts = {"prompt": options.prompt, "edited_prompt": options.edited_prompt, "swaps": swaps, "seeds": seeds}
    rounded = {name: {key: round(value, 2) for key, value in row.items()} for name, row in found.items()}
    return image, {**facts, "degrees": rounded}


def _whole_words(tokenizer) -> list[str]:
    words = (token.removesuffix("</w>") for token in tokenizer.get_vocab() if token.endswith("</w>"))
    return sorted(word for word in words if word.isalpha() and len(word) > 2)
