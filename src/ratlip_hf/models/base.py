"""What generator and discriminator have in common: presets, strict loading, gradient checkpointing, the preparation of
CLIP's outputs, and checks of configuration values."""

import contextlib
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from huggingface_hub import ModelCard
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import CLIPVisionConfig

from ..clip import MOST_LAYERS, grid_size
from ..model_card import network_card
from ..utils.compat import PortableConfig, for_diffusers
from ..utils.tensors import check_weights
from .blocks import ImageBlock

MOST_BLOCKS = 64
_LARGEST = {"bridge_blocks": MOST_BLOCKS, "base_channels": 1024, "bridge_channels": 4096, "clip_grid": 256}
_WIDEST = 16384  # of all other sizes: beyond it a single layer has gigabytes

PRESETS: dict[str, dict[str, dict]] = {
    # The paper's recurrence; shuffle attention where the released code has it (docs/method.md, section 9).
    "ratlip": {"generator": {}, "discriminator": {}},
    # The authors' code as it is: samples of one batch are coupled, pixels are normalised twice.
    "ratlip-released": {
        "generator": {"recurrence": "batch_as_time"},
        "discriminator": {"unused_shortcuts": True, "clip_input": "released"},
    },
    "galip": {
        "generator": {"fusion": "cat", "bridge_conv": "plain", "image_conv": "plain"},
        "discriminator": {"unused_shortcuts": True, "clip_input": "released"},
    },
    # 64-px images against the small CLIP of the synthetic birds.
    "tiny": {
        "generator": {
            "sample_size": 64,
            "noise_dim": 32,
            "text_dim": 128,
            "clip_width": 96,
            "clip_grid": 8,
            "base_channels": 16,
            "bridge_channels": 32,
            "prompt_layers": (0, 1, 2, 3),
            "attention_groups": 4,
            "image_conv": "plain",
            "upsampling": "bilinear",
            "text_center": True,
            "text_norm": 8.0,
        },
        "discriminator": {
            "clip_width": 96,
            "clip_grid": 8,
            "text_dim": 128,
            "feature_layers": (0, 2, 4),
            "extractor_channels": 64,
            "head_channels": 64,
            "gate_init": 1.0,
            "scale_features": True,
            "text_center": True,
            "text_norm": 8.0,
        },
    },
}


class StrictModel(PortableConfig, ModelMixin, ConfigMixin):
    """A network that is saved and published as diffusers does it, and loaded only as a whole.

    `folder` is where it lies in a pipeline's folder or repository.
    """

    folder: str

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As in diffusers, but a missing weight raises ValueError and so does a dtype given as a string."""
        refuse_string_dtypes(kwargs)
        with_info = kwargs.pop("output_loading_info", False)
        kwargs = for_diffusers({**kwargs, "output_loading_info": True})
        model, info = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        check_weights(model, pretrained_model_name_or_path)
        if info["missing_keys"]:
            missing = sorted(info["missing_keys"])
            raise ValueError(
                f"{pretrained_model_name_or_path} lacks {len(missing)} weight(s) of {cls.__name__}, "
                f"for example {missing[0]}: the file is incomplete or belongs to another configuration"
            )
        return (model, info) if with_info else model

    @classmethod
    def of_pipeline(cls, source: str | os.PathLike, **options) -> Self | None:
        """The network of this kind that comes with a pipeline (folder or repository), or None without one.

        It lies in `folder`: inside, as on the Hub, or next to it, as the trainer leaves it. `options` are those of
        `from_pretrained`.
        """
        places: list[tuple[str | os.PathLike, str | None]] = [(source, cls.folder)]
        if Path(source).is_dir():  # of a name on the Hub, this would be another repository
            places.append((Path(source).parent / cls.folder, None))
        for folder, subfolder in places:
            try:
                return cls.from_pretrained(str(folder), subfolder=subfolder, **options)
            except OSError:
                if Path(folder, subfolder or "", "config.json").exists():  # it is there, but cannot be read
                    raise
        return None

    def _upload_folder(self, working_dir, repo_id, *args, **kwargs):
        """Every way of publishing a network ends here, with the card that diffusers has written or found."""
        if (readme := Path(working_dir) / "README.md").is_file():
            network_card(self, ModelCard.load(readme), repo_id).save(readme)
        return super()._upload_folder(working_dir, repo_id, *args, **kwargs)


class RATLIPModel(StrictModel):
    """Base of [`RATLIPGenerator`] and [`RATLIPDiscriminator`]."""

    _supports_gradient_checkpointing = True
    _layers_option: str  # the configuration value that lists layers of the CLIP image tower

    @classmethod
    def from_preset(cls, name: str, **overrides) -> "RATLIPModel":
        """A model with fresh weights from a named preset (`ratlip`, `ratlip-released`, `galip`, `tiny`).

        Keyword arguments replace single values. Raises ValueError for an unknown preset or value.
        """
        known = inspect.signature(cls.__init__).parameters
        if unknown := sorted(overrides.keys() - known):
            raise ValueError(f"{cls.__name__} has no option {unknown[0]!r}; there are {', '.join(list(known)[1:])}")
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name][cls.folder], **overrides})

    def check_tower(self, tower: CLIPVisionConfig) -> None:
        """Raise ValueError unless this network was built for an image tower of that width, grid and depth."""
        config = self.config
        if (tower.hidden_size, grid_size(tower)) != (config.clip_width, config.clip_grid):
            raise ValueError(
                f"this {type(self).__name__} was built for a CLIP image tower of width {config.clip_width} and grid "
                f"{config.clip_grid}, not width {tower.hidden_size} and grid {grid_size(tower)}"
            )
        layers = list(config[self._layers_option])
        if max(layers) >= tower.num_hidden_layers:
            raise ValueError(
                f"{self._layers_option} {layers} reach beyond the CLIP tower's {tower.num_hidden_layers} layers"
            )

    def enable_gradient_checkpointing(self, gradient_checkpointing_func=None) -> None:
        """Recompute activations in the backward pass. BatchNorm statistics still move once per step."""
        super().enable_gradient_checkpointing(gradient_checkpointing_func or checkpoint_module)

    def _run(self, module: torch.nn.Module, *args) -> torch.Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(module, *args)
        return module(*args)


def refuse_string_dtypes(kwargs: dict) -> None:
    """Raise ValueError if `dtype`/`torch_dtype` holds a string; diffusers would silently load float32 instead."""
    for name in ("dtype", "torch_dtype"):
        value = kwargs.get(name)
        for item in value.values() if isinstance(value, dict) else [value]:
            if isinstance(item, str):
                raise ValueError(f"{name}={item!r} is a string; pass a torch.dtype such as torch.float16")


class TextConditioning(nn.Module):
    """Centre and rescale text embeddings of width D; with both options off it is the identity (the paper).

    `center` subtracts the mean set by `fit`; `norm` is the length that every embedding is given, in which case it is
    brought to length 1 before it is centred.
    """

    mean: torch.Tensor | None

    def __init__(self, dim: int, center: bool = False, norm: float | None = None):
        super().__init__()
        self.norm = norm
        self.register_buffer("mean", torch.zeros(dim) if center else None)

    @torch.no_grad()
    def fit(self, prompt_embeds: torch.Tensor) -> None:
        """Set the mean from raw text embeddings [N, D]; does nothing when centring is off."""
        if self.mean is not None:
            self.mean.copy_(self._unit(prompt_embeds).mean(dim=0))

    def forward(self, prompt_embeds: torch.Tensor) -> torch.Tensor:
        """[B, D] -> [B, D]."""
        text = self._unit(prompt_embeds)
        if self.mean is not None:
            text = text - self.mean
        return text if self.norm is None else self.norm * F.normalize(text, dim=1)

    def _unit(self, prompt_embeds: torch.Tensor) -> torch.Tensor:
        return prompt_embeds if self.norm is None else F.normalize(prompt_embeds, dim=1)


class FeatureScale(nn.Module):
    """Divide the features of each CLIP layer by a constant set by `fit`; the identity (the paper) unless enabled."""

    scale: torch.Tensor | None

    def __init__(self, num_layers: int, enabled: bool = False):
        super().__init__()
        self.register_buffer("scale", torch.ones(num_layers) if enabled else None)

    @torch.no_grad()
    def fit(self, image_features: torch.Tensor) -> None:
        """Set each layer's scale to its standard deviation over features [N, L, C, g, g] of real images."""
        if self.scale is not None:
            self.scale.copy_(image_features.float().std(dim=(0, 2, 3, 4)))

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        """[B, L, C, g, g] -> [B, L, C, g, g]."""
        return image_features if self.scale is None else image_features / self.scale[:, None, None, None]


def checkpoint_module(module: nn.Module, *args) -> torch.Tensor:
    """module(*args) with its activations recomputed in the backward pass; BatchNorm statistics move only once.

    Of an image block that resizes late, half is recomputed, and in memory, at a time.
    """
    if isinstance(module, ImageBlock) and module.resizes_late:
        x, states = args
        residual = _recomputed(module, module.first_half, x, states[:2])
        return _recomputed(module, module.second_half, residual, x, states[2:])
    return _recomputed(module, module, *args)


def _recomputed(module: nn.Module, call: Callable[..., torch.Tensor], *args) -> torch.Tensor:
    """call(*args), which is `module` or a part of it."""
    # The second run sees the batch that the first has already counted: its statistics must not move again.
    return checkpoint(
        call, *args, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), untracked_statistics(module))
    )


class untracked_statistics:
    """Lets BatchNorm compute as before but leaves its buffers where they are.

    May be entered again and again: a second backward pass (the gradient penalty's) recomputes once more.
    """

    def __init__(self, module: nn.Module):
        self.norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
        self.momenta = [norm.momentum for norm in self.norms]
        counters = (norm.num_batches_tracked for norm in self.norms)
        self.counters = [counter for counter in counters if counter is not None]

    def __enter__(self) -> None:
        self.counts = [counter.clone() for counter in self.counters]
        for norm in self.norms:
            norm.momentum = 0.0  # not eval mode, which would normalise by the running statistics

    def __exit__(self, *_) -> None:
        for norm, momentum in zip(self.norms, self.momenta, strict=True):
            norm.momentum = momentum
        for counter, count in zip(self.counters, self.counts, strict=True):
            counter.copy_(count)  # not one less: perhaps only some of the norms were called


def check_counts(config: Mapping, *names: str) -> None:
    """Sizes must be positive integers, and no larger than what can be built in seconds."""
    for name in names:
        value, largest = config[name], _LARGEST.get(name, _WIDEST)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a positive integer, not {value!r}")
        if value > largest:
            raise ValueError(f"{name} must be at most {largest}, not {value}")


def check_choices(config: Mapping, **choices: Sequence) -> None:
    """Values must be one of a list."""
    for name, allowed in choices.items():
        if config[name] not in allowed:
            raise ValueError(f"{name} must be one of {tuple(allowed)}, not {config[name]!r}")


def check_numbers(config: Mapping, *names: str) -> None:
    """Values must be finite numbers."""
    for name in names:
        value = config[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
            raise ValueError(f"{name} must be a finite number, not {value!r}")


def check_layers(config: Mapping, name: str) -> None:
    """Layers of the CLIP tower: at least one, 0-based, increasing."""
    layers = config[name]
    sound = isinstance(layers, list | tuple) and len(layers) > 0
    sound = sound and all(type(layer) is int and 0 <= layer < MOST_LAYERS for layer in layers)
    if not sound or list(layers) != sorted(set(layers)):
        raise ValueError(f"{name} must list increasing 0-based layers of the CLIP tower, at least one, not {layers!r}")


def check_text_options(config: Mapping) -> None:
    """Centring is on or off, the norm a positive number or None."""
    check_choices(config, text_center=(False, True))
    if config["text_norm"] is not None:
        check_numbers(config, "text_norm")
        if config["text_norm"] <= 0:
            raise ValueError(f"text_norm must be positive or None, not {config['text_norm']}")
