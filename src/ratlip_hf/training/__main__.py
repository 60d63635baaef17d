"""Command line of the trainer: `accelerate launch -m ratlip_hf.training --config synthetic_birds --output_dir DIR`.
The repository's `train_ratlip.py` calls the same `main`."""

import logging
import os
import sys

import transformers

from ..utils.errors import UserError, command_line, first_few
from .config import load_config


@command_line
def main(argv: list[str] | None = None) -> int:
    config = load_config(argv)
    first = os.environ.get("RANK", "0") == "0"  # of several processes one speaks; errors come from all
    level = logging.INFO if first else logging.ERROR
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if first:
        print(config.to_json(), end="", flush=True)
    try:
        from .loop import train
    except ModuleNotFoundError as error:
        raise UserError(f"training needs {error.name}: pip install 'ratlip_hf[train]'") from error
    transformers.logging.disable_progress_bar()  # one for every saved file would bury the log
    with first_few(logging.getLogger("ratlip_hf.clip")):
        train(config)
    return 0


def exit_with(code: int) -> None:
    """End the process with this exit code; after a signal without waiting for an upload that is under way."""
    if code > 128:
        logging.shutdown()
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    exit_with(main())
