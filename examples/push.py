"""Publishes a pipeline on the Hub, with a card, and with the code that runs it where this package is not installed.
Log in first (`hf auth login`). Usage: python examples/push.py PIPELINE USER/NAME"""

import sys
import tempfile
from pathlib import Path

from huggingface_hub import HfApi

from ratlip_hf import RATLIPPipeline, bundled
from ratlip_hf.export.repository import export_hub


def main(model: str, repository: str) -> None:
    source = bundled.resolve(model)
    pipe = RATLIPPipeline.from_pretrained(source)
    api = HfApi()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "export"
        export_hub(pipe, folder, repository, source, with_code=True)
        api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder)
    print(f"https://huggingface.co/{repository}")


if __name__ == "__main__":
    main(*sys.argv[1:])
