"""`RATLIPDiscriminator`: CLIP features and a text embedding in, one logit per sample out (docs/method.md, section 5).
It never reads pixels; `clip.image_features` makes its input."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import nn

from ..clip import CLIP_INPUTS
from .base import (
    FeatureScale,
    RATLIPModel,
    TextConditioning,
    check_choices,
    check_counts,
    check_layers,
    check_numbers,
    check_text_options,
)


@dataclass
class RATLIPDiscriminatorOutput(BaseOutput):
    """Output of [`RATLIPDiscriminator`].

    Args:
        logits (`torch.Tensor`): [B], large for real matching pairs; unbounded (hinge loss).
    """

    logits: torch.Tensor


class ResidualBlock(nn.Module):
    """shortcut(x) + gamma * res(x), and + beta * f when a deeper layer's features f are merged in.

    gamma and beta are scalars; `res` is conv3x3 - LeakyReLU - conv3x3 - LeakyReLU without biases.
    """

    def __init__(self, in_channels: int, out_channels: int, gate_init: float, merges: bool, unused_shortcut: bool):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((1,), float(gate_init)))
        self.beta = nn.Parameter(torch.full((1,), float(gate_init))) if merges else None
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.changes_width = in_channels != out_channels
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if self.changes_width or unused_shortcut else None
        if self.shortcut is not None and not self.changes_width:
            self.shortcut.requires_grad_(False)  # original checkpoints hold it, nothing ever calls it

    def forward(self, x: torch.Tensor, features: torch.Tensor | None = None) -> torch.Tensor:
        """x [B, C_in, g, g] (and features of the same shape) -> [B, C_out, g, g]."""
        residual = F.leaky_relu(self.conv2(F.leaky_relu(self.conv1(x), 0.2)), 0.2)
        skipped = self.shortcut(x) if self.shortcut is not None and self.changes_width else x
        out = skipped + self.gamma * residual
        if features is None:
            return out
        assert self.beta is not None, "a block that merges nothing was given features"
        return out + self.beta * features


class FeatureMerger(nn.Module):
    """FE extractor: merges the features of successive CLIP layers and narrows them."""

    def __init__(self, width: int, out_channels: int, num_layers: int, gate_init: float, unused_shortcuts: bool):
        super().__init__()
        self.blocks = nn.ModuleList(
            ResidualBlock(width, width, gate_init, merges=True, unused_shortcut=unused_shortcuts)
            for _ in range(num_layers - 1)
        )
        self.project = ResidualBlock(width, out_channels, gate_init, merges=False, unused_shortcut=False)

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        """[B, L, width, g, g] -> [B, out_channels, g, g]."""
        x, *deeper = image_features.unbind(dim=1)
        for block, features in zip(self.blocks, deeper, strict=True):
            x = block(x, features)
        return self.project(x)


class Referee(nn.Module):
    """Scores extracted features together with the text repeated at every place: exactly one logit per sample."""

    def __init__(self, in_channels: int, hidden_channels: int, grid: int):
        super().__init__()
        kernel = min(4, grid)
        self.conv1 = nn.Conv2d(in_channels, hidden_channels, kernel, bias=False)
        self.conv2 = nn.Conv2d(hidden_channels, 1, grid - kernel + 1, bias=False)

    def forward(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """x [B, C, g, g] and text [B, D] -> logits [B]."""
        text = text[:, :, None, None].expand(-1, -1, *x.shape[2:])
        return self.conv2(F.leaky_relu(self.conv1(torch.cat([x, text], dim=1)), 0.2)).flatten()


class RATLIPDiscriminator(RATLIPModel):
    """The RATLIP and GALIP discriminator with its conditional head. Defaults fit CLIP ViT-B/32.

    Args:
        clip_width (`int`), clip_grid (`int`): width of the CLIP image tower and patches along one side.
        text_dim (`int`): width D of the text embedding.
        feature_layers (`tuple[int]`): 0-based CLIP layers whose features are read, in order.
        clip_input (`str`): how pixels are prepared for these features: "clip" or "released"
            (see [`~clip.prepare_pixels`]); recorded here because the weights depend on it.
        extractor_channels (`int`), head_channels (`int`): widths after the extractor and inside the head.
        gate_init (`float`): start of the gates gamma and beta; 0 in the paper.
        unused_shortcuts (`bool`): keep the 1x1 convolutions that original checkpoints contain but never use.
        scale_features (`bool`): divide each layer's features by a constant, see [`FeatureScale`]; off in the paper.
        text_center (`bool`), text_norm (`float`, *optional*): see [`TextConditioning`]; off in the paper.

    Raises:
        ValueError: for a combination that cannot be built.
    """

    folder = "discriminator"
    _layers_option = "feature_layers"

    @register_to_config
    def __init__(
        self,
        clip_width: int = 768,
        clip_grid: int = 7,
        text_dim: int = 512,
        feature_layers: tuple[int, ...] = (1, 4, 8),
        clip_input: str = "clip",
        extractor_channels: int = 512,
        head_channels: int = 128,
        gate_init: float = 0.0,
        unused_shortcuts: bool = False,
        scale_features: bool = False,
        text_center: bool = False,
        text_norm: float | None = None,
    ):
        super().__init__()
        self.gradient_checkpointing = False
        check_counts(self.config, "clip_width", "clip_grid", "text_dim", "extractor_channels", "head_channels")
        check_choices(
            self.config, clip_input=CLIP_INPUTS, unused_shortcuts=(False, True), scale_features=(False, True)
        )
        check_numbers(self.config, "gate_init")
        check_layers(self.config, "feature_layers")
        check_text_options(self.config)

        self.text_conditioning = TextConditioning(text_dim, text_center, text_norm)
        self.feature_scale = FeatureScale(len(feature_layers), scale_features)
        self.extractor = FeatureMerger(
            clip_width, extractor_channels, len(feature_layers), gate_init, unused_shortcuts
        )
        self.referee = Referee(extractor_channels + text_dim, head_channels, clip_grid)

    def condition(
        self, image_features: torch.Tensor, prompt_embeds: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Centre and scale raw inputs (the identity in the paper); shapes stay. No trained weight is involved."""
        return self.feature_scale(image_features), self.text_conditioning(prompt_embeds)

    def forward(
        self,
        image_features: torch.Tensor,
        prompt_embeds: torch.Tensor,
        return_dict: bool = True,
        conditioned: bool = False,
    ) -> RATLIPDiscriminatorOutput | tuple[torch.Tensor]:
        """Score pairs of image and text.

        Args:
            image_features (`torch.Tensor`): [B, L, width, g, g] from [`~clip.image_features`].
            prompt_embeds (`torch.Tensor`): raw projected text embeddings [B, D], not normalised.
            return_dict (`bool`): return a [`RATLIPDiscriminatorOutput`] instead of a tuple.
            conditioned (`bool`): the inputs have already been through `condition`; the gradient penalty needs
                gradients with respect to those.

        Raises:
            ValueError: if the inputs do not fit the configuration.
        """
        config = self.config
        expected = [len(config.feature_layers), config.clip_width, config.clip_grid, config.clip_grid]
        if list(image_features.shape[1:]) != expected:
            raise ValueError(f"image_features must be [batch, {str(expected)[1:]}, not {list(image_features.shape)}")
        if list(prompt_embeds.shape) != [len(image_features), config.text_dim]:
            raise ValueError(
                f"prompt_embeds must be [{len(image_features)}, {config.text_dim}], not {list(prompt_embeds.shape)}"
            )
        if not conditioned:
            image_features, prompt_embeds = self.condition(image_features, prompt_embeds)
        logits = self.referee(self._run(self.extractor, image_features), prompt_embeds)
        return RATLIPDiscriminatorOutput(logits=logits) if return_dict else (logits,)
