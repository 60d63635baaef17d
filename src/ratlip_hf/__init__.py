"""RATLIP in the Hugging Face ecosystem: text-to-image GANs around a frozen CLIP.
Importing the package makes its classes known to diffusers, so that `DiffusionPipeline.from_pretrained` finds them."""

import diffusers
from diffusers import ModelMixin
from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES

from .models import RATLIPDiscriminator, RATLIPGenerator
from .pipeline import RATLIPPipeline
from .version import __version__

__all__ = ["ModelMixin", "RATLIPDiscriminator", "RATLIPGenerator", "RATLIPPipeline", "__version__"]

# diffusers looks pipelines and AutoModel's classes up on its own module, and components in libraries it knows. With
# this entry model_index.json says ["ratlip_hf", "RATLIPGenerator"], which outlives any move of the defining module.
LOADABLE_CLASSES["ratlip_hf"] = {"ModelMixin": ["save_pretrained", "from_pretrained"]}
for _public in (RATLIPPipeline, RATLIPGenerator, RATLIPDiscriminator):
    setattr(diffusers, _public.__name__, _public)
# diffusers' own pipeline tests read the source of `encode_prompt` through this module.
diffusers.pipelines.RATLIPPipeline = RATLIPPipeline
