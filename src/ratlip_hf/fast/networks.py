"""`FastGenerator`: generator and image tower of a pipeline, rewritten for inference on CPUs.
Same inputs, same images."""

import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPVisionModelWithProjection

from ..models import RATLIPGenerator
from ..models.blocks import FUSION_SLOPE
from ..models.recurrence import PerLayerStates
from . import parts
from .layers import Convolution, Linear, rearrange, reordered
from .parts import order_of

QUICK_GELU = 1.702  # x * sigmoid(1.702 x)
_TOGETHER = 32  # image blocks up to this size take the whole batch; larger ones one image after the other, in cache


class FastGenerator:
    """A [`RATLIPGenerator`] with its image tower in eval mode, for inference on CPUs, in float32, bfloat16 or float64.

    The plain networks are left as they are, and later changes of their weights do not reach it; see `fast.session`.
    Without `keep_plain` they are moved to torch's meta device piece by piece, as each is rewritten: their weights are
    gone afterwards. Raises ValueError for a generator with a part that has no fast form.
    """

    def __init__(
        self,
        generator: RATLIPGenerator,
        image_encoder: CLIPVisionModelWithProjection,
        dtype: torch.dtype,
        keep_plain: bool = True,
    ):
        parts.check_assumptions(generator)
        free = _keep if keep_plain else _free
        self.plain, self.image_encoder, self.dtype = generator, image_encoder, dtype
        config, blocks, bridge = generator.config, generator.blocks, generator.bridge
        self.grid, self.residual_scale = config.clip_grid, config.residual_scale
        states, self.text_conditioning = generator.states, copy.deepcopy(generator.text_conditioning)
        self.states = parts.BatchedCells(states) if isinstance(states, PerLayerStates) else copy.deepcopy(states)

        # The image blocks first: what their folding leaves free in memory then serves the rest.
        order = order_of(blocks[0], generator.from_grid.out_channels)
        self.from_grid = Convolution(*reordered(generator.from_grid, order, None), dtype, config.clip_grid, padding=2)
        free(generator.from_grid)
        self.blocks, size = [], config.clip_grid
        for block in blocks:
            self.blocks.append(parts.FastImageBlock(block, size, dtype))
            free(block.conv1, block.conv2, block.shortcut)
            size = block.size
        order = order_of(blocks[-1], generator.to_rgb.in_channels)
        self.to_rgb = Convolution(*reordered(generator.to_rgb, None, order), dtype, config.sample_size, padding=1)

        order = order_of(bridge[0], config.bridge_channels)
        self.noise_proj = _map_projection(generator.noise_proj, order, config.clip_grid, dtype)
        self.bridge = [parts.FastBridgeBlock(block, config.clip_grid, dtype) for block in bridge]
        self.to_grid = Convolution(*reordered(generator.to_grid, None, order), dtype, config.clip_grid, padding=2)
        self.prompt_proj = _linear(generator.prompt_proj, dtype)
        self.tower = FastTower(image_encoder, config.prompt_layers, dtype, free)

        self.bridge_affines = parts.AffineBank(parts.ordered_affines(bridge), dtype)
        self.image_affines = parts.AffineBank(parts.ordered_affines(blocks), dtype)
        free(generator, image_encoder)

    def __call__(self, noise: torch.Tensor, prompt_embeds: torch.Tensor) -> torch.Tensor:
        """Noise [B, Z] and raw text embeddings [B, D] -> images [B, 3, S, S], as [`RATLIPGenerator`]."""
        self.plain.check_inputs(noise, prompt_embeds, self.image_encoder)
        text = self.text_conditioning(prompt_embeds)
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
        samples = [self._finish(image, pairs, together, row) for row, image in enumerate(x.split(1))]
        return torch.cat(samples).permute(0, 3, 1, 2)

    def _clip_block(self, grid: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        prompts = self.prompt_proj(condition).unflatten(1, (-1, grid.shape[3]))
        tokens = self.tower(grid.flatten(1, 2), prompts)
        return grid + self.residual_scale * tokens.unflatten(1, (self.grid, self.grid))

    def _finish(self, x: torch.Tensor, pairs: list, start: int, row: int) -> torch.Tensor:
        """The large image blocks and the colours of one image, x [1, h, h, C], the `row`-th of its batch."""
        for block, four in zip(self.blocks[start:], pairs[start:], strict=True):
            x = block(x, [(gamma[row : row + 1], beta[row : row + 1]) for gamma, beta in four])
        return self.to_rgb(F.leaky_relu_(x, FUSION_SLOPE))


def _keep(*modules: nn.Module) -> None:
    pass


def _free(*modules: nn.Module) -> None:
    for module in modules:
        module.to("meta")


def _fours(pairs: list) -> list[list]:
    """Affine layers block by block; both kinds of block have four."""
    return [pairs[index : index + 4] for index in range(0, len(pairs), 4)]


def _map_projection(layer: nn.Linear, order: torch.Tensor | None, side: int, dtype: torch.dtype) -> Linear:
    """A linear layer whose outputs are a map [C, side, side] as one that gives it as [side, side, C]."""
    weight = layer.weight.detach().unflatten(0, (-1, side**2))
    weight, bias = rearrange(weight, layer.bias.detach().unflatten(0, (-1, side**2)), order, None)
    return Linear(weight.transpose(0, 1).flatten(0, 1), bias.T.flatten(), dtype)


class FastTower:
    """The frozen tower between a grid of patch tokens and its last layer; `prompt_layers` get a prompt token."""

    def __init__(
        self,
        image_encoder: CLIPVisionModelWithProjection,
        prompt_layers: Sequence[int],
        dtype: torch.dtype,
        free: Callable[[nn.Module], None],
    ):
        tower = image_encoder.vision_model
        embeddings, self.norm = tower.embeddings, _Norm(tower.pre_layrnorm, dtype)
        positions = embeddings.position_embedding.weight.detach()
        self.class_token = (embeddings.class_embedding.detach() + positions[0]).to(dtype)
        self.positions = positions[1:].to(dtype)
        self.layers = []
        for layer in tower.encoder.layers:
            self.layers.append(_Layer(layer, dtype))
            free(layer)
        self.prompt_of = {layer: number for number, layer in enumerate(prompt_layers)}

    def __call__(self, grid: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        """Grid [B, g * g, width] and prompts [B, P, width] -> patch tokens [B, g * g, width] after the last layer."""
        class_token = self.class_token.expand(len(grid), 1, -1)
        hidden = self.norm(torch.cat([class_token, grid + self.positions], dim=1))
        for index, layer in enumerate(self.layers):
            number = self.prompt_of.get(index)
            hidden = layer(hidden, None if number is None else prompts[:, number : number + 1])
        return hidden[:, 1:]


class _Norm:
    def __init__(self, norm: nn.LayerNorm, dtype: torch.dtype, factor: float = 1):
        self.shape, self.eps = norm.normalized_shape, norm.eps
        self.weight, self.bias = ((vector.detach() * factor).to(dtype) for vector in (norm.weight, norm.bias))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, self.shape, self.weight, self.bias, self.eps)


class _Layer:
    """One layer of the tower. A prompt is read by the other tokens and gets no output of its own."""

    def __init__(self, layer: nn.Module, dtype: torch.dtype):
        attention, mlp = layer.self_attn, layer.mlp
        self.heads, self.scale = attention.num_heads, attention.scale
        self.quick = type(mlp.activation_fn).__name__ == "QuickGELUActivation"
        self.activation = F.silu if self.quick else mlp.activation_fn
        # x * sigmoid(a x) = silu(a x) / a, and silu is one pass. Norm and biases carry the factor, so that weights
        # stay as they are and need no copy.
        self.factor = QUICK_GELU if self.quick else 1
        self.norm1, self.norm2 = _Norm(layer.layer_norm1, dtype), _Norm(layer.layer_norm2, dtype, self.factor)
        self.width = attention.embed_dim
        self.qkv = _joined([attention.q_proj, attention.k_proj, attention.v_proj], dtype)
        self.out = _linear(attention.out_proj, dtype)
        self.fc1, self.fc2 = (_linear(part, dtype, self.factor) for part in (mlp.fc1, mlp.fc2))

    def __call__(self, hidden: torch.Tensor, prompt: torch.Tensor | None) -> torch.Tensor:
        """Tokens [B, N, width] and perhaps a prompt [B, 1, width] -> [B, N, width]."""
        count = hidden.shape[1]
        tokens = hidden if prompt is None else torch.cat([hidden, prompt], dim=1)
        tokens = self.norm1(tokens)
        read = [piece for product in self.qkv for piece in product(tokens).split(self.width, dim=2)]
        q, k, v = (piece.unflatten(2, (self.heads, -1)).transpose(1, 2) for piece in read)
        read = F.scaled_dot_product_attention(q[:, :, :count], k, v, scale=self.scale)
        hidden = hidden + self.out(read.transpose(1, 2).flatten(2))
        inner = self.fc1(self.norm2(hidden))
        inner = F.silu(inner, inplace=True) if self.quick else self.activation(inner)
        return torch.add(hidden, self.fc2(inner), alpha=1 / self.factor)


def _linear(layer: nn.Linear, dtype: torch.dtype, bias_factor: float = 1) -> Linear:
    """The layer with its bias multiplied. In the dtype that it has, it keeps its weight: a packed copy of the whole
    tower would be most of what a batch takes in memory."""
    weight = layer.weight.detach()
    return Linear(weight, layer.bias.detach() * bias_factor, dtype, packed=weight.dtype != dtype)


def _joined(layers: list[nn.Linear], dtype: torch.dtype) -> list[Linear]:
    """One product for several layers where their weights must be copied anyway; else the layers, as [`_linear`]."""
    if all(layer.weight.dtype == dtype for layer in layers):
        return [_linear(layer, dtype) for layer in layers]
    weight, bias = (torch.cat([getattr(layer, name).detach() for layer in layers]) for name in ("weight", "bias"))
    return [Linear(weight, bias, dtype)]
