"""Makes `recorded.safetensors`, the numbers that `test_parity` holds the port to; run once, with the golden file.
Inputs and excerpts of outputs come from the original programs; the discriminator phase on seeded inputs is our own."""

import sys
from pathlib import Path

import torch
from phases import discriminator_phase, seeded_pairs
from recipe import excerpt
from safetensors.torch import load_file, save_file

WHOLE = ("noise", "text_embeds", "token_ids", "ratlip_g_loss", "galip_g_loss")
EXCERPTS = ("sentence_embeds", "ratlip_images_one_batch")


def main(golden: Path) -> None:
    expected = load_file(golden)
    recorded = {name: expected[name] for name in WHOLE}
    recorded |= {name: excerpt(expected[name]) for name in EXCERPTS}
    for family in ("ratlip", "galip"):
        for index, image in enumerate(expected[f"{family}_images_each_alone"]):
            recorded[f"{family}_image_alone_{index}"] = excerpt(image)
    recorded |= {name: excerpt(value) for name, value in expected.items() if "_g_grad/" in name}
    recorded |= {f"d_phase/{name}": excerpt(value) for name, value in discriminator_phase(*seeded_pairs()).items()}
    target = Path(__file__).with_name("recorded.safetensors")
    save_file({name: value.contiguous() for name, value in recorded.items()}, target)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
