"""RATLIP in the Hugging Face ecosystem: text-to-image GANs around a frozen CLIP.
Importing the package makes its classes known to diffusers; they themselves are imported when first used."""

import importlib
from typing import TYPE_CHECKING

from .registration import register_when_needed
from .version import __version__

if TYPE_CHECKING:
    from diffusers import ModelMixin

    from .models import RATLIPDiscriminator, RATLIPGenerator
    from .pipeline import RATLIPPipeline

__all__ = ["ModelMixin", "RATLIPDiscriminator", "RATLIPGenerator", "RATLIPPipeline", "__version__"]

_HOMES = {
    "ModelMixin": "diffusers",  # by this name here, diffusers recognises a library of models
    "RATLIPDiscriminator": "ratlip_hf.models",
    "RATLIPGenerator": "ratlip_hf.models",
    "RATLIPPipeline": "ratlip_hf.pipeline",
}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_when_needed()
