"""The networks as training runs them: resizes as late as they commute, checkpointing by halves of an image block.
Owns that order, which is exact but for rounding; the definition is `models.blocks`."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ..models import RATLIPDiscriminator, RATLIPGenerator
from ..models.base import checkpoint_module
from ..models.blocks import ImageBlock


class LateResizing(ImageBlock):
    """[`ImageBlock`] with its first fusion unit and its shortcut on the small map: where the side doubles, at a
    quarter of their cost. Only for nearest neighbours, which repeat places and mix none."""

    def forward(self, x: torch.Tensor, states: Sequence[torch.Tensor]) -> torch.Tensor:
        """x [B, C_in, h, w] and four states [B, S] -> [B, C_out, size, size]."""
        return self.second_half(self.first_half(x, states[:2]), x, states[2:])

    def first_half(self, x: torch.Tensor, states: Sequence[torch.Tensor]) -> torch.Tensor:
        """The residual after its first convolution."""
        return self.conv1(self._resize(self.fuse1(x, states)))

    def second_half(self, residual: torch.Tensor, x: torch.Tensor, states: Sequence[torch.Tensor]) -> torch.Tensor:
        """The rest of the residual, and the shortcut."""
        return self._resize(self.shortcut(x)) + self.conv2(self.fuse2(residual, states))

    def _resize(self, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x, size=(self.size, self.size), mode="nearest")


def arrange(generator: RATLIPGenerator, discriminator: RATLIPDiscriminator, checkpointing: bool) -> None:
    """Put both networks into training mode and the generator into this order, with or without checkpointing."""
    generator.train(), discriminator.train()
    resize_late(generator)
    if checkpointing:
        generator.enable_gradient_checkpointing(checkpoint_by_halves)
        discriminator.enable_gradient_checkpointing()


def resize_late(generator: RATLIPGenerator, late: bool = True) -> None:
    """Give the image blocks that resize by nearest neighbours this form, or the defined one again."""
    for block in generator.blocks:
        if block.upsampling == "nearest":
            # The same module with the same parameters, hooks and names, so that nothing else has to know.
            block.__class__ = LateResizing if late else ImageBlock


def checkpoint_by_halves(module: torch.nn.Module, *args) -> torch.Tensor:
    """As [`checkpoint_module`], but half an image block at a time is recomputed, and in memory, in the backward pass.

    To be given to `enable_gradient_checkpointing`.
    """
    if not isinstance(module, LateResizing):
        return checkpoint_module(module, *args)
    x, states = args
    residual = checkpoint_module(module, x, states[:2], call=module.first_half)
    return checkpoint_module(module, residual, x, states[2:], call=module.second_half)
