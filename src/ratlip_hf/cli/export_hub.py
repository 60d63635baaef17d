"""Write a pipeline as a folder that is ready for the Hub, on request with the code that loads it without ratlip_hf.
Owns the target's options and what it prints; the work is done in `export.hub`."""

import argparse
import shlex
from pathlib import Path

from huggingface_hub.utils import HFValidationError, validate_repo_id

from .. import bundled
from ..export.hub import CODE, export_hub, refuse_other_folders
from ..utils.errors import UserError
from .loading import load_pipeline


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="folder to make; an earlier export in it is replaced")
    parser.add_argument(
        "--model", default=bundled.NAME, help="folder or repository of a pipeline (default: %(default)s, bundled)"
    )
    parser.add_argument(
        "--with_code",
        action="store_true",
        help="write the code as well, so that diffusers alone can load the repository with trust_remote_code=True",
    )
    parser.add_argument("--repo_id", help="name on the Hub that the card gives (default: user/ and the folder's name)")


def run(options: argparse.Namespace) -> int:
    refuse_other_folders(options.folder)  # before minutes of work
    repository = _repository(options)
    pipe = load_pipeline(options.model)
    files = export_hub(pipe, options.folder, repository, bundled.resolve(options.model), options.with_code)
    config = pipe.generator.config
    size = sum((options.folder / path).stat().st_size for path in files) / 2**20
    code = f"{', '.join(CODE)}: loads without ratlip_hf, with trust_remote_code=True"
    print(
        f"model          {options.model}: {config.sample_size} px, noise {config.noise_dim}, text {config.text_dim}\n"
        f"discriminator  {'in discriminator/' if 'discriminator/config.json' in files else 'none with this model'}\n"
        f"code           {code if options.with_code else 'none: loads with ratlip_hf'}\n"
        f"written        {options.folder}: {len(files)} files, {size:.1f} MiB\n"
        f"to publish     hf upload {repository} {shlex.quote(str(options.folder))}"
    )
    return 0


def _repository(options: argparse.Namespace) -> str:
    repository = options.repo_id or f"user/{options.folder.resolve().name}"
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UserError(f"--repo_id must be user/name as the Hub allows it, not {repository!r}: {error}") from error
    if repository.count("/") != 1:
        raise UserError(f"--repo_id must be user/name, not {repository!r}")
    return repository
