"""The scorer of the synthetic birds: how well an image and a caption agree, by networks that share nothing with the
CLIP that generators are trained against. Its image tower is convolutional and has no patches, its text tower is
recurrent and reads whole words; it was trained on other birds and captions (examples/synthetic_birds/train_scorer.py).
"""

import re

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from ..utils.tensors import weights_sha256

IMAGE_SIZE = 64
_PADDING, _UNKNOWN = 0, 1  # the first word of the vocabulary has index 2


class BirdScorer(ModelMixin, ConfigMixin):
    """Embeds images and captions of synthetic birds; the cosine of the two says how well they agree.

    `vocabulary` are the words it knows, in order; `word_width`, `text_width` and `widths` are the sizes of the word
    vectors, of each direction of the recurrent network, and of the convolutions; `dim` that of the embeddings.
    """

    @register_to_config
    def __init__(
        self,
        vocabulary: tuple[str, ...],
        word_width: int = 48,
        text_width: int = 96,
        widths: tuple[int, ...] = (24, 48, 96, 128),
        dim: int = 96,
    ):
        super().__init__()
        self.places = {word: index for index, word in enumerate(vocabulary, start=_UNKNOWN + 1)}
        self.words = nn.Embedding(len(vocabulary) + 2, word_width, padding_idx=_PADDING)
        self.reader = nn.GRU(word_width, text_width, batch_first=True, bidirectional=True)
        self.text_projection = nn.Linear(2 * text_width, dim)
        layers, before = [], 3
        for width in widths:
            layers += [nn.Conv2d(before, width, 4, stride=2, padding=1), nn.BatchNorm2d(width), nn.SiLU()]
            before = width
        self.layers = nn.Sequential(*layers)
        grid = IMAGE_SIZE // 2 ** len(widths)
        self.image_projection = nn.Linear(before * grid**2, dim)
        self.logit_scale = nn.Parameter(torch.tensor(2.6))
        self.source = "memory"

    @classmethod
    def from_pretrained(cls, source, **options) -> "BirdScorer":
        """Load a folder, as `ModelMixin.from_pretrained`; frozen, in eval mode."""
        scorer = super().from_pretrained(source, **options).requires_grad_(False).eval()
        scorer.source = str(source)
        return scorer

    def embed_texts(self, captions: list[str]) -> torch.Tensor:
        """Embeddings [N, dim] of captions: the states of both directions at their last words, projected."""
        texts = [self._indices(caption) for caption in captions]
        lengths = torch.tensor([len(text) for text in texts])
        padded = nn.utils.rnn.pad_sequence([torch.tensor(text) for text in texts], batch_first=True)
        words = self.words(padded.to(self.device))
        _, last = self.reader(pack_padded_sequence(words, lengths, batch_first=True, enforce_sorted=False))
        return self.text_projection(torch.cat([last[0], last[1]], dim=1))

    def _indices(self, caption: str) -> list[int]:
        words = re.findall(r"[a-z]+", caption.lower())
        return [self.places.get(word, _UNKNOWN) for word in words] or [_UNKNOWN]

    def embed_images(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings [N, dim] of images [N, 3, S, S] in [-1, 1]; other sizes than 64 are resized by area."""
        images = images.to(self.device, self.dtype)
        if images.shape[-1] != IMAGE_SIZE:
            images = F.interpolate(images, (IMAGE_SIZE, IMAGE_SIZE), mode="area")
        return self.image_projection(self.layers(images).flatten(1))

    @torch.no_grad()
    def encode(self, captions: list[str]) -> torch.Tensor:
        """`embed_texts` without gradient, as of a [`~ratlip_hf.clip.FrozenCLIP`]."""
        return self.embed_texts(captions)

    def describe(self) -> dict[str, str | None]:
        """Source and SHA-256 of the weights, as of a [`~ratlip_hf.clip.FrozenCLIP`]."""
        return {"source": self.source, "revision": None, "weights_sha256": weights_sha256(self)}
