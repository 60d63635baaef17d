"""Where in an image does a word come from? The similarity with the prompt, less that of the prompt without the word.
Usage: python examples/explain.py [PIPELINE [FILE]]"""

import sys

import torch

from ratlip_hf import RATLIPPipeline, bundled, explain
from ratlip_hf.clip import FrozenCLIP
from ratlip_hf.explain import figures

PROMPT = "a yellow bird with a red crown and blue wings"


def main(model: str = bundled.NAME, file: str = "explain.png") -> None:
    pipe = RATLIPPipeline.from_pretrained(bundled.resolve(model))
    image = 2 * pipe(PROMPT, generator=torch.Generator().manual_seed(0), output_type="pt").images - 1
    embedder = FrozenCLIP.of(pipe)
    left = [pair for pair in explain.words_left_out(PROMPT) if pair[0] in ("yellow", "red", "blue")]
    captions = [PROMPT, *(without for _, without in left)]
    score = explain.contrast(explain.similarity(embedder, captions), [(0, 1), (0, 2), (0, 3)])
    maps = {
        "attention x gradient": explain.attention_x_gradient(score, image, pipe.image_encoder)[0],
        "occlusion": explain.occlusion(score, image)[0],
    }
    figures.saliency_figure(image.expand(3, -1, -1, -1), maps, [word for word, _ in left]).save(file)


if __name__ == "__main__":
    main(*sys.argv[1:])
