"""R-precision: how often a picture is closer to its own caption than to captions of other pictures.
Owns the figure and the draw of the mismatched captions."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch

from .checks import Vectors, as_features, as_finite, as_paired_features, as_tensor, unit_length


@dataclass(frozen=True, eq=False)
class RPrecision:
    """`value` in [0, 1], and `per_sample` hits [N]: 1, 0, or the share of a tie."""

    value: float
    per_sample: torch.Tensor


def draw_mismatched(groups: Sequence[Hashable], count: int = 99, seed: int = 0) -> torch.Tensor:
    """For each of N captions draw `count` captions of other groups, without replacement.

    The protocol of AttnGAN (Xu et al. 2018, section 4): 99 mismatched descriptions beside the true one. Whether a
    group is a picture or, as for the birds there, a class, is the caller's choice and part of the protocol.

    Args:
        groups: what each caption belongs to, for example its picture's or its class's id, [N].
        count: captions to draw for each.
        seed: of the draws.

    Returns:
        Indices of captions [N, count].

    Raises:
        ValueError: if some group has fewer than `count` captions outside of it, or `count` is not positive.
    """
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    labels = torch.tensor([numbers[group] for group in groups], dtype=torch.long)
    if count < 1 or not len(labels):
        raise ValueError(f"cannot draw {count} mismatched captions among {len(labels)}")
    most = int(labels.bincount().max())
    if len(labels) - most < count:
        raise ValueError(f"{count} mismatched captions are wanted, but a group has only {len(labels) - most} others")
    generator, rows = torch.Generator().manual_seed(seed), []
    for label in labels:
        order = torch.randperm(len(labels), generator=generator)
        rows.append(order[labels[order] != label][:count])
    return torch.stack(rows)


def r_precision(
    image_embeds: Vectors,
    text_embeds: Vectors,
    candidate_embeds: Vectors,
    candidates: torch.Tensor | None = None,
) -> RPrecision:
    """Share of pictures whose own caption has the largest cosine among it and K mismatched ones (R = 1), in float64.

    In a tie of the own caption with t others the picture counts 1 / (1 + t), the mean over fair ways to break it: an
    encoder that tells nothing apart gets the chance level 1 / (1 + K), not 1.

    Args:
        image_embeds: [N, d].
        text_embeds: embeddings [N, d] of the pictures' own captions.
        candidate_embeds: embeddings [N, K, d] of each picture's mismatched captions; or, with `candidates`, of a pool
            [P, d], for example `text_embeds` again.
        candidates: indices [N, K] into the pool, as from [`draw_mismatched`].

    Raises:
        ValueError: for other shapes, indices outside the pool, NaN or infinite values, or vectors of zeros.
    """
    images, texts = map(unit_length, as_paired_features(image_embeds, text_embeds, "image and text embeddings"))
    own = (images * texts).sum(dim=1)
    if candidates is None:
        others = _check_given(candidate_embeds, images)
        rivals = (others @ images[:, :, None])[..., 0]
    else:
        pool, candidates = _check_pool(candidate_embeds, candidates, images)
        # Row by row: the embeddings of all candidates at once would be K times the pool.
        rivals = torch.stack([pool[row] @ image for row, image in zip(candidates, images, strict=True)])
    # The same caption twice must tie exactly, however its two cosines were summed up.
    ties = (rivals - own[:, None]).abs() <= 1e-12
    beaten = ((rivals > own[:, None]) & ~ties).any(dim=1)
    hits = (~beaten).double() / (1 + ties.sum(dim=1))
    return RPrecision(float(hits.mean()), hits)


def _check_given(embeds: Vectors, images: torch.Tensor) -> torch.Tensor:
    embeds, (count, dim) = as_tensor(embeds), images.shape
    if embeds.ndim != 3 or (embeds.shape[0], embeds.shape[2]) != (count, dim) or not embeds.shape[1]:
        raise ValueError(f"candidate embeddings must be [{count}, K, {dim}], not {list(embeds.shape)}")
    return unit_length(as_finite(embeds, "candidate embeddings"))


def _check_pool(pool: Vectors, candidates: torch.Tensor, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    pool, candidates = as_features(pool, name="candidate embeddings"), as_tensor(candidates)
    if pool.shape[1] != images.shape[1] or candidates.ndim != 2 or len(candidates) != len(images):
        shapes = f"{list(pool.shape)} and {list(candidates.shape)}"
        raise ValueError(f"the pool must be [P, {images.shape[1]}] and candidates [{len(images)}, K], not {shapes}")
    if (
        candidates.is_floating_point()
        or not candidates.numel()
        or not 0 <= candidates.min() <= candidates.max() < len(pool)
    ):
        raise ValueError(f"candidates must be indices of the {len(pool)} embeddings in the pool, at least one per row")
    return unit_length(pool), candidates.to(pool.device)
