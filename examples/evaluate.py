"""Scores a model of synthetic birds by the bundled protocol and prints its scores with their intervals.
Usage: python examples/evaluate.py [PIPELINE [PROMPTS]]"""

import json
import sys
import tempfile
from pathlib import Path

from ratlip_hf import bundled
from ratlip_hf.cli.main import main as ratlip


def main(model: str = bundled.NAME, max_images: str = "") -> None:
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "record.jsonl"
        limit = ["--max_images", max_images] if max_images else []
        if ratlip(["evaluate", "--model", model, "--output_file", str(record), *limit]):
            raise SystemExit(2)
        scores = json.loads(record.read_text())["scores"]
    for name, score in scores.items():
        print(f"{name:28} {score['value']:8.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
