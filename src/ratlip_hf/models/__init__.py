"""The networks: generator, discriminator, and the frozen CLIP towers as they use them.
Nothing here knows of training, data or files beyond diffusers' own loading and saving."""

from .base import PRESETS
from .discriminator import RATLIPDiscriminator, RATLIPDiscriminatorOutput
from .generator import RATLIPGenerator, RATLIPGeneratorOutput

__all__ = [
    "PRESETS",
    "RATLIPDiscriminator",
    "RATLIPDiscriminatorOutput",
    "RATLIPGenerator",
    "RATLIPGeneratorOutput",
]
