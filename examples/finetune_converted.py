"""Converts a checkpoint of the original programs and fine-tunes it on a prepared dataset (`ratlip data prepare`).
Options after the three paths go to the trainer, such as --clip and --max_train_images.
Usage: python examples/finetune_converted.py CHECKPOINT.pth DATA OUTPUT_DIR [--train_batch_size 8 ...]"""

import sys
from pathlib import Path

from ratlip_hf.convert.folder import save_conversion
from ratlip_hf.convert.original import convert_original
from ratlip_hf.training.__main__ import main as train


def main(checkpoint: str, data: str, output_dir: str, *options: str) -> int:
    clip = options[options.index("--clip") + 1] if "--clip" in options else "openai/clip-vit-base-patch32"
    converted = convert_original(checkpoint, clip)
    print("\n".join([*converted.summary(), *converted.warnings]))
    pipeline = Path(output_dir) / "converted"
    save_conversion(converted, pipeline)
    settings = ["--pretrained_model_name_or_path", str(pipeline), "--dataset_name", data]
    return train([*settings, "--output_dir", str(Path(output_dir) / "run"), *options])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
