"""What happens to CLIP's outputs before the networks read them: nothing in the paper, centring and scaling on request.
The statistics are buffers, so they travel with the weights."""

import torch
import torch.nn.functional as F
from torch import nn


class TextConditioning(nn.Module):
    """Centre and rescale sentence embeddings; with both options off it is the identity (the paper).

    Args:
        dim: width D of the embeddings.
        center: subtract the mean set by `fit`.
        norm: length that every embedding is given (before centring it is brought to length 1), or None.
    """

    def __init__(self, dim: int, center: bool = False, norm: float | None = None):
        super().__init__()
        self.norm = norm
        self.register_buffer("mean", torch.zeros(dim) if center else None)

    @torch.no_grad()
    def fit(self, prompt_embeds: torch.Tensor) -> None:
        """Set the mean from raw sentence embeddings [N, D]; does nothing when centring is off."""
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
    """Divide the features of each CLIP layer by a constant; the identity (the paper) unless switched on.

    Args:
        num_layers: how many layers are read.
        enabled: keep a scale per layer, set by `fit`.
    """

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
