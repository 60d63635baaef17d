"""`RATLIPGenerator`: noise and a text embedding in, an image out, through a frozen CLIP tower that is borrowed.
`forward` has the five steps of docs/method.md, section 4."""

import math
import warnings
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import nn
from transformers import CLIPVisionModelWithProjection

from ..clip import prompted_tower
from .base import (
    RATLIPModel,
    TextConditioning,
    check_choices,
    check_counts,
    check_layers,
    check_numbers,
    check_text_options,
)
from .blocks import CONV_BLOCKS, FUSION_SLOPE, UPSAMPLINGS, BridgeBlock, ImageBlock
from .recurrence import RECURRENCES, build_states

SAMPLE_SIZES = (32, 64, 128, 224, 256, 512)
FUSIONS = ("cat", "rat")


@dataclass
class RATLIPGeneratorOutput(BaseOutput):
    """Output of [`RATLIPGenerator`].

    Args:
        sample (`torch.Tensor`): images [B, 3, S, S], nominally in [-1, 1], unclamped.
    """

    sample: torch.Tensor


class RATLIPGenerator(RATLIPModel):
    """The RATLIP generator (docs/method.md, section 4). Defaults are the `ratlip` preset: 224 px, CLIP ViT-B/32.

    The frozen CLIP image tower is an argument of `forward`, never a submodule: it exists once per pipeline, is in no
    checkpoint of this class and is never trained by it.

    Args:
        sample_size (`int`): side of the images: 32, 64, 128, 224, 256 or 512.
        noise_dim (`int`): width Z of the noise.
        text_dim (`int`): width D of the text embedding.
        clip_width (`int`), clip_grid (`int`): width of the CLIP image tower and patches along one side.
        base_channels (`int`): channels of the last image block; earlier ones have up to 8 times as many.
        bridge_channels (`int`), bridge_blocks (`int`): size of the bridge.
        lstm_hidden (`int`): size h of the recurrent state.
        prompt_layers (`tuple[int]`): 0-based CLIP layers that get a prompt token.
        residual_scale (`float`): weight of the CLIP block's output, which is added to the bridge grid.
        attention_groups (`int`): groups G of shuffle attention.
        upsampling (`str`): "nearest" or "bilinear".
        fusion (`str`): what drives the bridge's affines: "rat" (a recurrent state) or "cat" ([z, T] itself, GALIP).
        recurrence (`str`): form of "rat": "across_layers" (the paper), "per_layer", or "batch_as_time" (the released
            code: samples of a batch influence each other).
        bridge_conv, image_conv (`str`): form of the convolutions: "plain", "bn_act" or "bn_act_sa".
        text_center (`bool`), text_norm (`float`, *optional*): see [`TextConditioning`]; off in the paper.

    Raises:
        ValueError: for a combination that cannot be built; the message names the rule.
    """

    folder = "generator"
    _layers_option = "prompt_layers"

    @register_to_config
    def __init__(
        self,
        sample_size: int = 224,
        noise_dim: int = 100,
        text_dim: int = 512,
        clip_width: int = 768,
        clip_grid: int = 7,
        base_channels: int = 64,
        bridge_channels: int = 64,
        bridge_blocks: int = 4,
        lstm_hidden: int = 64,
        prompt_layers: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8),
        residual_scale: float = 0.1,
        attention_groups: int = 8,
        upsampling: str = "nearest",
        fusion: str = "rat",
        recurrence: str = "across_layers",
        bridge_conv: str = "bn_act_sa",
        image_conv: str = "bn_act_sa",
        text_center: bool = False,
        text_norm: float | None = None,
    ):
        super().__init__()
        self.gradient_checkpointing = False
        _check_options(self.config)
        sizes = image_sizes(sample_size, clip_grid)
        channels = image_channels(base_channels, len(sizes))
        _check_channels(self.config, channels)

        condition_dim = noise_dim + text_dim
        self.text_conditioning = TextConditioning(text_dim, text_center, text_norm)
        self.noise_proj = nn.Linear(noise_dim, bridge_channels * clip_grid**2)

        steps = bridge_blocks * BridgeBlock.AFFINES
        self.states = build_states(fusion, recurrence, noise_dim, text_dim, lstm_hidden, steps)
        self.bridge = nn.ModuleList(
            BridgeBlock(bridge_channels, self.states.state_dim, bridge_conv, attention_groups)
            for _ in range(bridge_blocks)
        )
        self.to_grid = nn.Conv2d(bridge_channels, clip_width, 5, padding=2)
        self.prompt_proj = nn.Linear(condition_dim, len(prompt_layers) * clip_width)

        self.from_grid = nn.Conv2d(clip_width, channels[0], 5, padding=2)
        self.blocks = nn.ModuleList(
            ImageBlock(c_in, c_out, size, condition_dim, image_conv, attention_groups, upsampling)
            for c_in, c_out, size in zip(channels, channels[1:], sizes, strict=False)
        )
        self.to_rgb = nn.Conv2d(channels[-1], 3, 3, padding=1)

    @property
    def couples_batch(self) -> bool:
        """Whether the images of one batch depend on each other (the released code's recurrence)."""
        return self.config.fusion == "rat" and self.config.recurrence == "batch_as_time"

    def forward(
        self,
        noise: torch.Tensor,
        prompt_embeds: torch.Tensor,
        image_encoder: CLIPVisionModelWithProjection,
        return_dict: bool = True,
        style: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> RATLIPGeneratorOutput | tuple[torch.Tensor]:
        """Generate one image per row of `noise` and `prompt_embeds`.

        Args:
            noise (`torch.Tensor`): z [B, Z], standard normal.
            prompt_embeds (`torch.Tensor`): raw projected text embeddings [B, D], not normalised.
            image_encoder (`CLIPVisionModelWithProjection`): the frozen CLIP image tower.
            return_dict (`bool`): return a [`RATLIPGeneratorOutput`] instead of a tuple.
            style (`tuple`, *optional*): other noise [B, Z] and text embeddings [B, D] for the image blocks (stage 4);
                bridge and CLIP block keep the first ones.

        Raises:
            ValueError: if the inputs or the tower do not fit the configuration.
        """
        self.check_inputs(noise, prompt_embeds, image_encoder)
        config = self.config
        text = self.text_conditioning(prompt_embeds)
        condition = torch.cat([noise, text], dim=1)

        # 1. Code
        x = self.noise_proj(noise).unflatten(1, (config.bridge_channels, config.clip_grid, config.clip_grid))

        # 2. Bridge: affine layer t of the whole bridge takes state t
        states = self.states(noise, text)
        for index, block in enumerate(self.bridge):
            x = self._run(block, x, states[index * BridgeBlock.AFFINES : (index + 1) * BridgeBlock.AFFINES])
        grid = self.to_grid(x)

        # 3. CLIP block
        prompts = self.prompt_proj(condition).unflatten(1, (len(config.prompt_layers), config.clip_width))
        tokens = prompted_tower(image_encoder, grid, prompts, config.prompt_layers)
        x = self.from_grid(grid + config.residual_scale * tokens)

        # 4. Image generator: CAT fusion throughout
        if style is not None:
            self.check_inputs(*style, image_encoder)
            condition = torch.cat([style[0], self.text_conditioning(style[1])], dim=1)
        for block in self.blocks:
            x = self._run(block, x, [condition] * ImageBlock.AFFINES)

        # 5. RGB
        sample = self.to_rgb(F.leaky_relu(x, FUSION_SLOPE))
        return RATLIPGeneratorOutput(sample=sample) if return_dict else (sample,)

    def check_inputs(self, noise: torch.Tensor, prompt_embeds: torch.Tensor, image_encoder) -> None:
        """What `forward` refuses (ValueError, TypeError) or warns of: widths, lengths, the tower, a coupled batch."""
        config = self.config
        widths = (("noise", noise, config.noise_dim), ("prompt_embeds", prompt_embeds, config.text_dim))
        for name, value, width in widths:
            if value.ndim != 2 or value.shape[1] != width:
                raise ValueError(f"{name} must be [batch, {width}], not {list(value.shape)}")
        # `shape[0]`, not `len`, here and below the forward pass: `len` would fix the batch size when it is exported.
        if noise.shape[0] != prompt_embeds.shape[0]:
            raise ValueError(f"noise has {noise.shape[0]} rows but prompt_embeds has {prompt_embeds.shape[0]}")
        if not isinstance(getattr(image_encoder, "vision_model", None), torch.nn.Module):
            raise TypeError(
                f"image_encoder must be a CLIPVisionModelWithProjection, not {type(image_encoder).__name__}"
            )
        self.check_tower(image_encoder.config)
        if self.couples_batch and len(noise) > 1:
            warnings.warn(
                "recurrence='batch_as_time' reproduces the released code, in which every image of a batch depends "
                "on all of its prompts; generate one sample at a time for independent images",
                stacklevel=3,
            )


def image_sizes(sample_size: int, clip_grid: int) -> list[int]:
    """Sides of the image blocks: powers of two from 8 (or the first that holds the grid) and `sample_size` last.
    Raises ValueError for a grid larger than the image."""
    if clip_grid > sample_size:
        raise ValueError(f"clip_grid must lie in 1..sample_size ({sample_size}), not {clip_grid}")
    powers = [2**k for k in range(3, math.ceil(math.log2(sample_size)))]
    return [size for size in [*powers, sample_size] if size >= clip_grid]


def image_channels(base_channels: int, num_blocks: int) -> list[int]:
    """Channels before the first image block and after each one: base * min(2^k, 8), largest first."""
    return [base_channels * min(2**k, 8) for k in range(num_blocks, -1, -1)]


def _check_options(config) -> None:
    check_counts(config, "sample_size", "noise_dim", "text_dim", "clip_width", "clip_grid")
    check_counts(config, "base_channels", "bridge_channels", "bridge_blocks", "lstm_hidden", "attention_groups")
    check_choices(config, sample_size=SAMPLE_SIZES, fusion=FUSIONS, recurrence=RECURRENCES, upsampling=UPSAMPLINGS)
    check_choices(config, bridge_conv=CONV_BLOCKS, image_conv=CONV_BLOCKS)
    check_numbers(config, "residual_scale")
    check_layers(config, "prompt_layers")
    check_text_options(config)


def _check_channels(config, channels: list[int]) -> None:
    if config.bridge_channels % 2:
        raise ValueError(f"bridge_channels must be even (its blocks halve them), not {config.bridge_channels}")
    step = 2 * config.attention_groups
    attended = [config.bridge_channels] if config.bridge_conv == "bn_act_sa" else []
    attended += channels[1:] if config.image_conv == "bn_act_sa" else []
    for width in attended:
        if width % step:
            raise ValueError(
                f"shuffle attention with {config.attention_groups} groups needs every width to be a multiple of "
                f"{step}, but a block has {width} channels: change attention_groups, base_channels or bridge_channels"
            )
