"""The prompted CLIP image tower: patch tokens and prompts in, patch tokens out, with fused projections.
Does what `models.clip.prompted_tower` does, on tokens instead of maps."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPVisionModelWithProjection

from .layers import Linear

QUICK_GELU = 1.702  # x * sigmoid(1.702 x)


class FastTower:
    """The frozen tower between a grid of patch tokens and its last layer.

    Args:
        image_encoder: the plain tower.
        prompt_layers: layers that get a prompt token.
        dtype: of the computation.
    """

    def __init__(self, image_encoder: CLIPVisionModelWithProjection, prompt_layers: Sequence[int], dtype: torch.dtype):
        tower = image_encoder.vision_model
        embeddings, self.norm = tower.embeddings, _Norm(tower.pre_layrnorm, dtype)
        positions = embeddings.position_embedding.weight.detach()
        self.class_token = (embeddings.class_embedding.detach() + positions[0]).to(dtype)
        self.positions = positions[1:].to(dtype)
        self.layers = [_Layer(layer, dtype) for layer in tower.encoder.layers]
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
    tower would be most of what drawing a batch takes in memory."""
    weight = layer.weight.detach()
    return Linear(weight, layer.bias.detach() * bias_factor, dtype, packed=weight.dtype != dtype)


def _joined(layers: list[nn.Linear], dtype: torch.dtype) -> list[Linear]:
    """One product for several layers where their weights must be copied anyway; else the layers, as [`_linear`]."""
    if all(layer.weight.dtype == dtype for layer in layers):
        return [_linear(layer, dtype) for layer in layers]
    weight, bias = (torch.cat([getattr(layer, name).detach() for layer in layers]) for name in ("weight", "bias"))
    return [Linear(weight, bias, dtype)]
