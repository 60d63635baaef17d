"""Sentence embeddings of prompts that were seen before.
Owns the store and its size; encoding itself is `frozen_clip.encode_text`."""

from collections import OrderedDict
from collections.abc import Callable

import torch

CAPACITY = 1024  # prompts; 2 kB each for CLIP ViT-B/32


class TextCache:
    """The embeddings of the last [`CAPACITY`] different prompts."""

    def __init__(self, capacity: int = CAPACITY):
        self.capacity = capacity
        self.rows: OrderedDict[str, torch.Tensor] = OrderedDict()

    def __call__(self, prompts: list[str], encode: Callable[[list[str]], torch.Tensor]) -> torch.Tensor:
        """Embeddings [P, D]; `encode` is asked once, for the prompts that are new."""
        rows = {prompt: self.rows[prompt] for prompt in prompts if prompt in self.rows}
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in rows]
        if new:
            rows |= {prompt: row.detach().clone() for prompt, row in zip(new, encode(new), strict=True)}
        for prompt in prompts:
            self.rows[prompt] = rows[prompt]
            self.rows.move_to_end(prompt)
        while len(self.rows) > self.capacity:
            self.rows.popitem(last=False)
        return torch.stack([rows[prompt] for prompt in prompts])
