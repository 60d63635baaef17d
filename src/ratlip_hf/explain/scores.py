"""What is explained: functions from images to scores, made of anything that embeds images and captions.

An embedder has `embed_images(images [B, 3, S, S] in [-1, 1])`, which is differentiable, and `encode(captions)`, both
to [B, D]: a [`~ratlip_hf.clip.FrozenCLIP`], such as `FrozenCLIP.of(pipe)`, or the scorer of a small world. A score is
any function from images to [B, K], of which every column is explained by itself.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from transformers import CLIPVisionModelWithProjection

from ..clip import image_features
from ..models import RATLIPDiscriminator

Score = Callable[[torch.Tensor], torch.Tensor]


def similarity(embedder, captions: Sequence[str]) -> Score:
    """The cosine with each of K captions: images [B, 3, S, S] -> [B, K]."""
    with torch.no_grad():
        texts = F.normalize(embedder.encode(list(captions)).float(), dim=1)
    return lambda images: F.normalize(embedder.embed_images(images).float(), dim=1) @ texts.T


def discriminator_logit(
    discriminator: RATLIPDiscriminator, image_encoder: CLIPVisionModelWithProjection, prompt_embeds: torch.Tensor
) -> Score:
    """The discriminator's logit with each of K raw text embeddings [K, D]: images [B, 3, S, S] -> [B, K]."""
    config = discriminator.config

    def score(images: torch.Tensor) -> torch.Tensor:
        features = image_features(image_encoder, images, config.feature_layers, config.clip_input)
        features, texts = discriminator.condition(features, prompt_embeds)
        maps = discriminator.extractor(features)  # once for all texts: it does not read them
        logits = [discriminator.referee(maps, text.expand(len(images), -1)) for text in texts]
        return torch.stack(logits, dim=1)

    return score


def contrast(score: Score, groups: Sequence[Sequence[int]]) -> Score:
    """How far a column exceeds the mean of its rivals, which explains one word instead of the whole caption.

    Args:
        score: images -> [B, K].
        groups: for each of G results, a column and then its rivals, such as the caption with other colours.

    Returns:
        images -> [B, G]
    """

    def contrasted(images: torch.Tensor) -> torch.Tensor:
        columns = score(images)
        return torch.stack([columns[:, g[0]] - columns[:, list(g[1:])].mean(dim=1) for g in groups], dim=1)

    return contrasted
