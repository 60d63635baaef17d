"""`FastGenerator`: generator and image tower of a pipeline, rewritten for drawing. Same inputs, same pictures.
The plain forward in `models` is the definition; this is a copy of its weights in another form."""

import torch
from torch import nn
from transformers import CLIPVisionModelWithProjection

from ..models import RATLIPGenerator
from .affines import AffineBank
from .blocks import FastBridgeBlock, FastImageBlock, FastRGB, affines_and_orders, order_of
from .folding import rearrange, reordered
from .layers import Convolution, Linear
from .states import fast_states
from .tower import FastTower

_TOGETHER = 32  # image blocks up to this size take the whole batch; larger ones one picture after the other, in cache


class FastGenerator:
    """A [`RATLIPGenerator`] with its image tower in eval mode, for drawing on CPUs.

    Later changes of the plain weights do not reach it; see `fast.session`.

    Args:
        generator, image_encoder: the plain networks; they are read and left as they are.
        dtype: of the computation: float32, bfloat16 or float64.
    """

    def __init__(self, generator: RATLIPGenerator, image_encoder: CLIPVisionModelWithProjection, dtype: torch.dtype):
        self.plain, self.image_encoder, self.dtype = generator, image_encoder, dtype
        config, blocks, bridge = generator.config, generator.blocks, generator.bridge
        self.grid, self.residual_scale = config.clip_grid, config.residual_scale
        self.states = fast_states(generator.states)

        # The image blocks first: what their folding leaves free in memory then serves the rest.
        order = order_of(blocks[0], generator.from_grid.out_channels)
        self.from_grid = Convolution(*reordered(generator.from_grid, order, None), dtype, config.clip_grid, padding=2)
        sizes = [config.clip_grid, *(block.size for block in blocks)]
        self.blocks = [FastImageBlock(block, size, dtype) for block, size in zip(blocks, sizes, strict=False)]
        order = order_of(blocks[-1], generator.to_rgb.in_channels)
        self.to_rgb = FastRGB(generator.to_rgb, order, config.sample_size, dtype)

        order = order_of(bridge[0], config.bridge_channels)
        self.noise_proj = _map_projection(generator.noise_proj, order, config.clip_grid, dtype)
        self.bridge = [FastBridgeBlock(block, config.clip_grid, dtype) for block in bridge]
        self.to_grid = Convolution(*reordered(generator.to_grid, None, order), dtype, config.clip_grid, padding=2)
        weight = generator.prompt_proj.weight
        self.prompt_proj = Linear(weight, generator.prompt_proj.bias, dtype, packed=weight.dtype != dtype)
        self.tower = FastTower(image_encoder, config.prompt_layers, dtype)

        self.bridge_affines = AffineBank(*affines_and_orders(bridge), dtype)
        self.image_affines = AffineBank(*affines_and_orders(blocks), dtype)

    def __call__(self, noise: torch.Tensor, prompt_embeds: torch.Tensor) -> torch.Tensor:
        """Noise [B, Z] and raw sentence embeddings [B, D] -> pictures [B, 3, S, S], as [`RATLIPGenerator`]."""
        plain = self.plain
        plain.check_inputs(noise, prompt_embeds, self.image_encoder)
        text = plain.text_conditioning(prompt_embeds)
        pairs = self.bridge_affines(self.states(noise, text))
        condition = torch.cat([noise, text], dim=1).to(self.dtype)

        x = self.noise_proj(noise.to(self.dtype)).unflatten(1, (self.grid, self.grid, -1))
        for block, four in zip(self.bridge, _fours(pairs), strict=True):
            x = block(x, four)
        x = self.from_grid(self._clip_block(self.to_grid(x), condition))

        pairs = _fours(self.image_affines([condition] * self.image_affines.count))
        together = sum(block.size <= _TOGETHER for block in self.blocks)
        for block, four in zip(self.blocks[:together], pairs, strict=False):
            x = block(x, four)
        samples = [self._finish(picture, pairs, together, row) for row, picture in enumerate(x.split(1))]
        return torch.cat(samples).permute(0, 3, 1, 2)

    def _clip_block(self, grid: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        prompts = self.prompt_proj(condition).unflatten(1, (-1, grid.shape[3]))
        tokens = self.tower(grid.flatten(1, 2), prompts)
        return grid + self.residual_scale * tokens.unflatten(1, (self.grid, self.grid))

    def _finish(self, x: torch.Tensor, pairs: list, start: int, row: int) -> torch.Tensor:
        """The large image blocks and the colours of one picture, x [1, h, h, C], the `row`-th of its batch."""
        for block, four in zip(self.blocks[start:], pairs[start:], strict=True):
            x = block(x, [(gamma[row : row + 1], beta[row : row + 1]) for gamma, beta in four])
        return self.to_rgb(x)


def _fours(pairs: list) -> list[list]:
    """Affine layers block by block; both kinds of block have four."""
    return [pairs[index : index + 4] for index in range(0, len(pairs), 4)]


def _map_projection(layer: nn.Linear, order: torch.Tensor | None, side: int, dtype: torch.dtype) -> Linear:
    """A linear layer whose outputs are a map [C, side, side] as one that gives it as [side, side, C]."""
    weight = layer.weight.detach().unflatten(0, (-1, side**2))
    weight, bias = rearrange(weight, layer.bias.detach().unflatten(0, (-1, side**2)), order, None)
    return Linear(weight.transpose(0, 1).flatten(0, 1), bias.T.flatten(), dtype)
