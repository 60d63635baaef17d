"""The frozen CLIP: loading it, encoding text, and its image tower as the networks use it, with images in and features
out, or prompted from inside."""

import contextlib
import logging
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from safetensors import safe_open
from torch import nn
from transformers import (
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.utils import cached_file, extract_commit_hash

from .bundled import resolve
from .utils.errors import one_line, printable
from .utils.files import read_json, require_regular_files
from .utils.tensors import at_least_float32, check_weights, load_tensors, weights_sha256

logger = logging.getLogger(__name__)

_HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only")

DEFAULT_CLIP = "openai/clip-vit-base-patch32"  # what the original programs were trained with
DEFAULT_REVISION = "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268"  # of it, where no other is asked for
CLIP_INPUTS = ("clip", "released")

# What a configuration may ask for: far beyond the largest CLIP, and still built in seconds.
MOST_LAYERS = 128
_LARGEST_SIZES = {
    "num_hidden_layers": MOST_LAYERS,
    "hidden_size": 8192,
    "intermediate_size": 65536,
    "num_attention_heads": 256,
    "projection_dim": 8192,
    "vocab_size": 2**20,
    "max_position_embeddings": 2**14,
    "image_size": 2048,
    "patch_size": 2048,
    "num_channels": 3,
}
Tower = Any  # CLIP's vision transformer; releases of transformers have different classes for it
_SHORTEST = 3  # tokens of a prompt: start, a word, end
_PICKLED = "pytorch_model"


@dataclass
class FrozenCLIP:
    """Tokenizer and both towers of one CLIP, in eval mode and without gradients.

    `source` is where it was loaded from, `revision` the commit on the Hub (None for a folder or a model in memory).
    """

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModelWithProjection
    image_encoder: CLIPVisionModelWithProjection
    source: str = "memory"
    revision: str | None = None

    def __post_init__(self):
        for tower in (self.text_encoder, self.image_encoder):
            tower.requires_grad_(False).eval()

    @classmethod
    def of(cls, pipe) -> "FrozenCLIP":
        """The CLIP of a pipeline, which shares its towers."""
        return cls(pipe.tokenizer, pipe.text_encoder, pipe.image_encoder)

    def encode(self, captions: list[str]) -> torch.Tensor:
        """Raw projected text embeddings [N, D] of the captions, without gradient."""
        with torch.no_grad():
            return encode_text(self.tokenizer, self.text_encoder, captions)

    def embed_images(self, images: torch.Tensor, clip_input: str = "clip") -> torch.Tensor:
        """Raw projected embeddings [N, D] of images [N, 3, H, W] in [-1, 1], prepared as [`prepare_pixels`] does."""
        images = images.to(self.image_encoder.device)
        return image_features_and_embeds(self.image_encoder, images, layers=(0,), clip_input=clip_input)[1]

    def to(self, device: torch.device | str) -> "FrozenCLIP":
        """Move both towers. Returns this object."""
        self.text_encoder.to(device), self.image_encoder.to(device)
        return self

    def describe(self) -> dict[str, Any]:
        """What a training run records: source, revision, and the SHA-256 of both towers' weights."""
        digest = weights_sha256(self.text_encoder, self.image_encoder)
        return {"source": self.source, "revision": self.revision, "weights_sha256": digest}


def load_clip(source: str | os.PathLike | CLIPModel, tokenizer: CLIPTokenizer | None = None, **kwargs) -> FrozenCLIP:
    """Load a frozen CLIP.

    Args:
        source: a CLIP repository or folder, the folder of a RATLIP pipeline (its CLIP is taken), "synthetic-birds"
            for the bundled one, or a `CLIPModel`, for which `tokenizer` is needed too.
        tokenizer: use this one instead of the tokenizer next to the weights.
        kwargs: passed to transformers, for example `revision=` or `dtype=`.

    Raises:
        ValueError: when nothing loadable lies there; one line.
    """
    if isinstance(source, CLIPModel):
        if tokenizer is None:
            raise ValueError("a CLIPModel brings no tokenizer: pass tokenizer= as well")
        dtype = kwargs.pop("dtype", None) or source.dtype
        if kwargs:
            raise ValueError(f"{', '.join(kwargs)} mean nothing for a CLIPModel that is already loaded")
        return _split(source, tokenizer, dtype)
    source = resolve(source)
    if source == DEFAULT_CLIP:
        kwargs.setdefault("revision", DEFAULT_REVISION)
    if os.path.isdir(source):
        require_regular_files(source)
    try:
        where = {key: kwargs[key] for key in _HUB_OPTIONS if key in kwargs}
        index = cached_file(source, "model_index.json", _raise_exceptions_for_missing_entries=False, **where)
        folders = ("text_encoder", "image_encoder", "tokenizer") if index else ("", "", "")
        # One commit for all parts, found once: a push in between cannot mix two CLIPs, and the run can be repeated.
        revision = extract_commit_hash(cached_file(source, "config.json", subfolder=folders[1], **where), None)
        if revision is not None:
            kwargs["revision"] = where["revision"] = revision
        text = _load_tower(CLIPTextModelWithProjection, source, folders[0], kwargs)
        image = _load_tower(CLIPVisionModelWithProjection, source, folders[1], kwargs)
        tokenizer = tokenizer or CLIPTokenizer.from_pretrained(source, subfolder=folders[2], **where)
    except Exception as error:  # a damaged folder raises almost anything
        raise ValueError(f"no CLIP could be loaded from {str(source)!r}: {one_line(error)}") from error
    return FrozenCLIP(tokenizer, text, image, str(source), revision)


def clip_configs(source: str | os.PathLike, **kwargs) -> tuple[CLIPTextConfig, CLIPVisionConfig]:
    """The configurations of both towers of what [`load_clip`] takes as `source`, without their weights.

    `kwargs` are those that find files on the Hub, for example `revision=`. Raises ValueError, in one line, where there
    are none, and for another architecture, such as SigLIP.
    """
    source, configs = resolve(source), []
    try:
        index = cached_file(source, "model_index.json", _raise_exceptions_for_missing_entries=False, **kwargs)
        for kind, folder in ((CLIPTextConfig, "text_encoder"), (CLIPVisionConfig, "image_encoder")):
            values, _ = PreTrainedConfig.get_config_dict(source, subfolder=folder if index else "", **kwargs)
            if not values:
                raise OSError("there is no config.json")
            if (architecture := values.get("model_type", "unknown")) not in ("clip", kind.model_type):
                raise ValueError(
                    f"{source} is of the architecture {architecture!r}: RATLIP needs the class token and the "
                    "projections of a CLIP; take one of model_type 'clip'"
                )
            configs.append(kind.from_dict(values.get(kind.base_config_key, values)))
    except OSError as error:
        raise ValueError(f"no CLIP was found at {str(source)!r}: {one_line(error)}") from error
    return tuple(configs)


def _load_tower(kind: type[PreTrainedModel], source: str | os.PathLike, folder: str, kwargs: dict):
    check_clip_sizes(source, folder, kwargs)
    # A full CLIP holds the other tower too, which transformers would report tensor by tensor.
    with _quiet_transformers():
        tower, info = kind.from_pretrained(source, subfolder=folder, output_loading_info=True, **kwargs)
    _raise_if_missing(info["missing_keys"], source, kind)
    check_weights(tower, source)
    return tower


def check_clip_sizes(source: str | os.PathLike, folder: str, options: dict) -> None:
    """Raise ValueError for a configuration of a CLIP, or of one of its towers, that asks for sizes which make no sense
    or no machine can build; nothing is allocated. `options` are those of the loading call."""
    where = {key: options[key] for key in _HUB_OPTIONS if key in options}
    file = cached_file(source, "config.json", subfolder=folder, _raise_exceptions_for_missing_entries=False, **where)
    config = read_json(file) if file else {}
    for part in (config, *(config.get(name) for name in ("text_config", "vision_config"))):
        for name, value in part.items() if isinstance(part, dict) else ():
            if name in _LARGEST_SIZES and (type(value) is not int or not 1 <= value <= _LARGEST_SIZES[name]):
                raise ValueError(
                    f"{file}: {name} must be a whole number from 1 to {_LARGEST_SIZES[name]}, not {value!r}"
                )


def check_loaded_tower(tower: PreTrainedModel, source: str | os.PathLike, folder: str, options: dict) -> None:
    """Raise ValueError if the files that `tower` was loaded from lack any of its weights, or hold implausible ones.

    transformers only warns and leaves random numbers in their place. `options` are those of the loading call.
    """
    check_weights(tower, source)
    where = {key: options[key] for key in _HUB_OPTIONS if key in options}
    variant = f".{options['variant']}" if options.get("variant") else ""

    def find(name: str) -> str | None:
        return cached_file(source, name, subfolder=folder, _raise_exceptions_for_missing_entries=False, **where)

    names = (f"model{variant}.safetensors", f"{_PICKLED}{variant}.bin")
    indices = (f"model.safetensors.index{variant}.json", f"{_PICKLED}.bin.index{variant}.json")
    files = [file for file in map(find, (names[0], indices[0], names[1], indices[1])) if file][:1]
    if not files:  # a format of somebody else's, of whose completeness nothing is known here
        return
    if files[0].endswith(".json"):
        parts = sorted(set(read_json(files[0])["weight_map"].values()))
        files = [file for name in parts if (file := find(name))]
    stored: set[str] = set()
    for file in files:
        stored.update(_stored_names(file))
    _raise_if_missing(set(tower.state_dict()) - stored, source, type(tower))


def _stored_names(file: str) -> Iterable[str]:
    if file.endswith(".bin"):
        return load_tensors(file, mmap=True)
    with safe_open(file, "pt") as weights:
        return weights.keys()


def _raise_if_missing(missing: Iterable[str], source: str | os.PathLike, kind: type) -> None:
    if missing := sorted(missing):
        raise ValueError(f"{source} lacks {len(missing)} weight(s) of {kind.__name__}, for example {missing[0]}")


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    verbosity, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.logging.enable_progress_bar()


def _split(model: CLIPModel, tokenizer: CLIPTokenizer, dtype: torch.dtype) -> FrozenCLIP:
    text = CLIPTextModelWithProjection(model.config.text_config)
    image = CLIPVisionModelWithProjection(model.config.vision_config)
    for tower in (text, image):
        names = tower.state_dict().keys()
        tower.load_state_dict({name: value for name, value in model.state_dict().items() if name in names})
    return FrozenCLIP(tokenizer, text.to(model.device, dtype), image.to(model.device, dtype))


def encode_text(
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModelWithProjection,
    captions: list[str],
    device: torch.device | None = None,
) -> torch.Tensor:
    """Raw projected text embeddings [N, D]: text projection of the end token, not normalised.

    `device` is where the tower runs, if that is not where its weights lie (CPU offload).

    Captions beyond the tokenizer's limit are cut, keeping the end token, with a warning that names the lost words.

    Raises:
        ValueError: when tokenizer and text tower do not belong together.
    """
    config = text_encoder.config
    limits = (tokenizer.model_max_length, config.max_position_embeddings)
    if not all(isinstance(value, int | float) and value >= _SHORTEST for value in limits):
        raise ValueError(f"the tokenizer's model_max_length must be a number from {_SHORTEST}, not {limits[0]!r}")
    limit = int(min(limits))
    tokens = tokenizer(captions, padding="max_length", truncation=True, max_length=limit, return_tensors="pt")
    ids = tokens.input_ids
    if int(ids.max()) >= config.vocab_size or not _end_token_is_found(ids, config.eos_token_id):
        # Pooling would silently read position 0 and give every caption the same embedding.
        raise ValueError(
            "the tokenizer does not fit the text encoder: its ids exceed the vocabulary or lack the end token "
            f"{config.eos_token_id}"
        )
    _warn_of_lost_words(tokenizer, captions, limit)
    return text_encoder(input_ids=ids.to(device or text_encoder.device)).text_embeds


def _end_token_is_found(ids: torch.Tensor, eos_token_id: int) -> bool:
    legacy = 2  # transformers then takes the largest id as the end token
    return eos_token_id == legacy or bool((ids == eos_token_id).any(dim=1).all())


def _warn_of_lost_words(tokenizer: CLIPTokenizer, captions: list[str], limit: int) -> None:
    # A token stands for at least one byte, so shorter captions need not be counted.
    for caption in (caption for caption in captions if len(caption.encode()) > limit - 2):
        ids = tokenizer(caption, truncation=False, verbose=False).input_ids
        if len(ids) > limit:
            lost = tokenizer.decode(ids[limit - 1 : -1], skip_special_tokens=True).strip()
            logger.warning("the prompt was cut at %d tokens; these words were lost: %s", limit, printable(lost[:300]))


def grid_size(config: CLIPVisionConfig) -> int:
    """Patches along one side of the tower's input image."""
    return config.image_size // config.patch_size


def prepare_pixels(images: torch.Tensor, size: int, clip_input: str = "clip") -> torch.Tensor:
    """Turn images [B, 3, H, W] in [-1, 1] into the tower's input [B, 3, size, size]; differentiable.

    `"clip"` does what CLIP was trained with: [0, 1], antialiased bicubic resize, mean and std. Values outside the
    range are not clamped, so that they keep a gradient. `"released"` is what the authors' code does and what their
    checkpoints need: the image is mapped to [0, 1] twice, so the tower sees [0.5, 1], and resized by nearest
    neighbour (docs/method.md, section 5).

    Raises:
        ValueError: for an unknown `clip_input`.
    """
    if clip_input not in CLIP_INPUTS:
        raise ValueError(f"clip_input must be one of {CLIP_INPUTS}, not {clip_input!r}")
    pixels = (images + 1) / 2
    if clip_input == "released":
        pixels = F.interpolate((pixels + 1) / 2, size=(size, size), mode="nearest")
    elif pixels.shape[-2:] != (size, size):
        # At least float32: CPUs have no antialiased resize for half precision.
        full = F.interpolate(
            at_least_float32(pixels), size=(size, size), mode="bicubic", align_corners=False, antialias=True
        )
        pixels = full.to(pixels.dtype)
    mean = pixels.new_tensor(OPENAI_CLIP_MEAN)[:, None, None]
    std = pixels.new_tensor(OPENAI_CLIP_STD)[:, None, None]
    return (pixels - mean) / std


def image_features(
    image_encoder: CLIPVisionModelWithProjection,
    images: torch.Tensor,
    layers: Sequence[int] = (1, 4, 8),
    clip_input: str = "clip",
) -> torch.Tensor:
    """Patch tokens after some layers of the frozen tower, as maps: what the discriminator reads.

    The tower is left after the last layer asked for.

    Args:
        image_encoder: frozen CLIP image tower.
        images: [B, 3, H, W] in [-1, 1].
        layers: 0-based layers in increasing order.
        clip_input: preprocessing, see [`prepare_pixels`].

    Returns:
        [B, len(layers), width, g, g].
    """
    with _awake(image_encoder) as tower:
        hidden = _embed_pixels(tower, images, clip_input)
        _, features = _run_layers(tower, hidden, range(max(layers) + 1), layers)
    return features


def image_features_and_embeds(
    image_encoder: CLIPVisionModelWithProjection,
    images: torch.Tensor,
    layers: Sequence[int] = (1, 4, 8),
    clip_input: str = "clip",
) -> tuple[torch.Tensor, torch.Tensor]:
    """[`image_features`] and the projected image embedding [B, D] (not normalised) from one pass of the tower."""
    with _awake(image_encoder) as tower:
        hidden = _embed_pixels(tower, images, clip_input)
        hidden, features = _run_layers(tower, hidden, range(len(tower.encoder.layers)), layers)
        pooled = tower.post_layernorm(hidden[:, 0])
    return features, image_encoder.visual_projection(pooled)


def prompted_tower(
    image_encoder: CLIPVisionModelWithProjection,
    grid: torch.Tensor,
    prompts: torch.Tensor,
    prompt_layers: Sequence[int],
) -> torch.Tensor:
    """The generator's CLIP block (docs/method.md, section 4): a feature grid takes the place of the patch embedding.

    Args:
        image_encoder: frozen CLIP image tower.
        grid: [B, width, g, g], used as the patch tokens.
        prompts: [B, P, width]; token j is appended before layer `prompt_layers[j]` and dropped after it.
        prompt_layers: P 0-based layers in increasing order.

    Returns:
        The patch tokens after the last layer, without post-LayerNorm, as [B, width, g, g] in the grid's dtype.
    """
    with _awake(image_encoder) as tower:
        dtype = tower.embeddings.patch_embedding.weight.dtype
        hidden = _with_class_token(tower, grid.flatten(2).transpose(1, 2).to(dtype))
        by_layer = dict(zip(prompt_layers, prompts.to(dtype).unbind(dim=1), strict=True))
        for index, layer in enumerate(tower.encoder.layers):
            if index in by_layer:
                hidden = torch.cat([hidden, by_layer[index][:, None]], dim=1)
                hidden = layer(hidden, attention_mask=None)[:, :-1]
            else:
                hidden = layer(hidden, attention_mask=None)
    return _as_map(hidden).to(grid.dtype)


def _embed_pixels(tower: Tower, images: torch.Tensor, clip_input: str) -> torch.Tensor:
    pixels = prepare_pixels(images, tower.embeddings.image_size, clip_input)
    embed = tower.embeddings.patch_embedding
    return _with_class_token(tower, embed(pixels.to(embed.weight.dtype)).flatten(2).transpose(1, 2))


def _with_class_token(tower: Tower, patches: torch.Tensor) -> torch.Tensor:
    """Patch tokens [B, g*g, width] -> input of layer 0 [B, 1 + g*g, width]."""
    with _hooks_around(tower.embeddings):
        class_token = tower.embeddings.class_embedding.expand(patches.shape[0], 1, -1)
        positions = tower.embeddings.position_embedding(tower.embeddings.position_ids)
        return tower.pre_layrnorm(torch.cat([class_token, patches], dim=1) + positions)


def _run_layers(
    tower: Tower, hidden: torch.Tensor, run: range, select: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    if list(select) != sorted(set(select)) or not 0 <= min(select) <= max(select) < len(tower.encoder.layers):
        raise ValueError(
            f"feature layers must increase and lie in 0..{len(tower.encoder.layers) - 1}, not {list(select)}"
        )
    picked = []
    for index in run:
        hidden = tower.encoder.layers[index](hidden, attention_mask=None)
        if index in select:
            picked.append(_as_map(hidden))
    return hidden, torch.stack(picked, dim=1)


def _as_map(hidden: torch.Tensor) -> torch.Tensor:
    """Tokens [B, 1 + g*g, width] -> patch tokens as [B, width, g, g]."""
    patches = hidden[:, 1:].transpose(1, 2)
    side = math.isqrt(patches.shape[-1])
    return patches.unflatten(2, (side, side))


@contextlib.contextmanager
def _awake(image_encoder: CLIPVisionModelWithProjection) -> Iterator[Tower]:
    """The tower inside `image_encoder`, on its device even under CPU offload.

    Offloading hangs on the `forward` of whole components, which is never called when inner layers are used directly.
    """
    with _hooks_around(image_encoder):
        yield image_encoder.vision_model


@contextlib.contextmanager
def _hooks_around(module: nn.Module) -> Iterator[None]:
    hooks = _offloading_hooks(module)
    for hook in hooks:
        hook.pre_forward(module)
    try:
        yield
    finally:
        for hook in reversed(hooks):
            hook.post_forward(module, None)


def _offloading_hooks(module: nn.Module) -> list:
    """Outermost first. accelerate keeps one hook on a module, diffusers (group offloading) a registry of them."""
    hook, registry = getattr(module, "_hf_hook", None), getattr(module, "_diffusers_hook", None)
    hooks = [] if registry is None else list(reversed(registry.hooks.values()))
    return hooks if hook is None else [*hooks, hook]
