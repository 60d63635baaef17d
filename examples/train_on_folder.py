"""Trains on a folder of images, each with its captions in a text file of the same name next to it: prepares the data,
then trains a small model with the bundled CLIP. Options after the two folders go to the trainer.
Usage: python examples/train_on_folder.py IMAGES OUTPUT_DIR [--max_train_images 100000 ...]"""

import sys
from pathlib import Path

from ratlip_hf.cli.main import main as ratlip
from ratlip_hf.training.__main__ import main as train


def main(images: str, output_dir: str, *options: str) -> int:
    data, run = Path(output_dir) / "data", Path(output_dir) / "run"
    failed = ratlip(["data", "prepare", "folder", "--source", images, "--output_dir", str(data)])
    settings = ["--preset", "tiny", "--clip", "synthetic-birds", "--dataset_name", str(data), "--output_dir", str(run)]
    return failed or train([*settings, *options])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
