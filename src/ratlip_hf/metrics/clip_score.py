"""CLIP score: the cosine between embeddings of pictures and of their captions.
Owns the figure's two forms and the rule that it is worth nothing without the encoder's name."""

from dataclasses import dataclass

import torch

from .checks import Vectors, as_paired_features, unit_length


@dataclass(frozen=True, eq=False)
class CLIPScore:
    """`cosine` in [-1, 1], `score` = 100 * cosine, `encoder`, and `per_sample` cosines [N] in float64."""

    cosine: float
    score: float
    encoder: str
    per_sample: torch.Tensor


def clip_score(image_embeds: Vectors, text_embeds: Vectors, *, encoder: str) -> CLIPScore:
    """Mean over pairs of cos(CLIP(image), CLIP(caption)), in float64.

    No value is clamped at 0 and there is no factor 2.5 (Hessel et al. 2021 have both); published figures near 0.3 are
    `cosine`, those near 30 `score`.

    Args:
        image_embeds: projected image embeddings [N, d], of any length but 0.
        text_embeds: projected text embeddings [N, d] of the captions, row by row.
        encoder: which CLIP they come from, recorded with the figure: scores of different encoders do not compare, and
            that of the CLIP a generator was trained with is the training signal, not a test.

    Raises:
        ValueError: for other shapes, NaN or infinite values, vectors of zeros, or no name of an encoder.
    """
    if not isinstance(encoder, str) or not encoder.strip():
        raise ValueError("a CLIP score needs the name of its encoder: pass encoder=")
    images, texts = as_paired_features(image_embeds, text_embeds, "image and text embeddings")
    cosines = (unit_length(images) * unit_length(texts)).sum(dim=1)
    return CLIPScore(float(cosines.mean()), 100 * float(cosines.mean()), encoder, cosines)
