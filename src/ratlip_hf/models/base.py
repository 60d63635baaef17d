"""What generator and discriminator have in common: presets, strict loading, gradient checkpointing.
A checkpoint with a missing weight is an error here, never a model with uninitialised memory."""

import inspect

import torch
from diffusers import ConfigMixin, ModelMixin
from transformers import CLIPVisionConfig

from ..utils.compat import for_diffusers
from ..utils.portable_config import PortableConfig
from .checkpointing import checkpoint_module
from .clip import grid_size
from .presets import preset


def refuse_string_dtypes(kwargs: dict) -> None:
    """Raise ValueError if `dtype`/`torch_dtype` holds a string; diffusers would silently load float32 instead."""
    for name in ("dtype", "torch_dtype"):
        value = kwargs.get(name)
        for item in value.values() if isinstance(value, dict) else [value]:
            if isinstance(item, str):
                raise ValueError(f"{name}={item!r} is a string; pass a torch.dtype such as torch.float16")


class RATLIPModel(PortableConfig, ModelMixin, ConfigMixin):
    """Base of [`RATLIPGenerator`] and [`RATLIPDiscriminator`]."""

    _supports_gradient_checkpointing = True
    _preset_part: str
    _layers_option: str  # the configuration value that lists layers of the CLIP image tower

    @classmethod
    def from_preset(cls, name: str, **overrides) -> "RATLIPModel":
        """A model with fresh weights from a named preset (`ratlip`, `ratlip-released`, `galip`, `tiny`).

        Keyword arguments replace single values. Raises ValueError for an unknown preset or value.
        """
        known = inspect.signature(cls.__init__).parameters
        if unknown := sorted(overrides.keys() - known):
            raise ValueError(f"{cls.__name__} has no option {unknown[0]!r}; there are {', '.join(list(known)[1:])}")
        return cls(**{**preset(name)[cls._preset_part], **overrides})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As in diffusers, but a missing weight raises ValueError and so does a dtype given as a string."""
        refuse_string_dtypes(kwargs)
        with_info = kwargs.pop("output_loading_info", False)
        kwargs = for_diffusers({**kwargs, "output_loading_info": True})
        model, info = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        if info["missing_keys"]:
            missing = sorted(info["missing_keys"])
            raise ValueError(
                f"{pretrained_model_name_or_path} lacks {len(missing)} weight(s) of {cls.__name__}, "
                f"for example {missing[0]}: the file is incomplete or belongs to another configuration"
            )
        return (model, info) if with_info else model

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
