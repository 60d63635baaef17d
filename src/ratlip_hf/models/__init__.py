"""The networks. Read blocks, recurrence, base, generator, discriminator, in this order, next to docs/method.md."""

from .base import PRESETS
from .discriminator import RATLIPDiscriminator, RATLIPDiscriminatorOutput
from .generator import RATLIPGenerator, RATLIPGeneratorOutput

__all__ = ["PRESETS", "RATLIPDiscriminator", "RATLIPDiscriminatorOutput", "RATLIPGenerator", "RATLIPGeneratorOutput"]
