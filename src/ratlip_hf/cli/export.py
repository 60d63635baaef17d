"""Write a pipeline for other programs: `ratlip export hub|onnx|web|space`."""

import argparse
import shlex
from pathlib import Path

from .. import bundled
from ..utils.errors import UserError
from ..utils.locks import locked
from .options import add_model_argument, add_subcommands, load_pipeline

_TARGETS = {
    "hub": "write a folder that is ready for the Hub, on request with the code that loads it without ratlip_hf",
    "onnx": "write two ONNX graphs, text and images, that agree with PyTorch",
    "web": "write a static folder whose page makes the images in the visitor's browser",
    "space": "write a folder that is a Space of the Hub, the page or the app, and on request upload it",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    hub, onnx, web, space = add_subcommands(parser, "export_target", "target", _TARGETS).values()
    for target in (hub, onnx, web, space):
        target.add_argument("folder", type=Path, help="folder to make; an earlier export in it is replaced")
        add_model_argument(target)
    hub.add_argument(
        "--with_code",
        action="store_true",
        help="write the code as well, so that diffusers alone can load the repository with trust_remote_code=True",
    )
    hub.add_argument("--repo_id", help="name on the Hub that the card gives (default: user/ and the folder's name)")
    text = "static: the page, made by the visitor's browser; gradio: the app (default: %(default)s)"
    space.add_argument("--kind", default="static", choices=("static", "gradio"), help=text)
    space.add_argument("--push", metavar="REPO", help="user/name of the Space to upload to, which is made if need be")
    onnx.add_argument("--dtype", default="float32", choices=("float32", "float16"), help="default: %(default)s")


def run(options: argparse.Namespace) -> int:
    with locked(options.folder):
        return {"hub": _hub, "onnx": _onnx, "web": _web, "space": _space}[options.export_target](options)


def _hub(options: argparse.Namespace) -> int:
    from ..export.repository import CODE, export_hub, refuse_other_folders

    refuse_other_folders(options.folder)  # before minutes of work
    repository = _checked(options.repo_id or f"user/{options.folder.resolve().name}", "--repo_id")
    pipe = load_pipeline(options.model)
    files = export_hub(pipe, options.folder, repository, bundled.resolve(options.model), options.with_code)
    size = sum((options.folder / path).stat().st_size for path in files) / 2**20
    code = f"{', '.join(CODE)}: loads without ratlip_hf, with trust_remote_code=True"
    print(
        f"{_model_line(options.model, pipe.generator.config)}\n"
        f"discriminator  {'in discriminator/' if 'discriminator/config.json' in files else 'none with this model'}\n"
        f"code           {code if options.with_code else 'none: loads with ratlip_hf'}\n"
        f"written        {options.folder}: {len(files)} files, {size:.1f} MiB\n"
        f"to publish     hf upload {repository} {shlex.quote(str(options.folder))}"
    )
    return 0


def _checked(repository: str, option: str) -> str:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UserError(f"{option} must be user/name as the Hub allows it, not {repository!r}: {error}") from error
    if repository.count("/") != 1:
        raise UserError(f"{option} must be user/name, not {repository!r}")
    return repository


def _onnx(options: argparse.Namespace) -> int:
    from ..export.onnx_export import PACKAGES, export_onnx
    from ..export.onnx_runner import IMAGE_GRAPH, TEXT_GRAPH, require
    from ..export.repository import ONNX_RECORD, refuse_other_folders

    try:
        require(*PACKAGES)
    except ImportError as error:
        raise UserError(str(error)) from error
    refuse_other_folders(options.folder, ONNX_RECORD)  # before minutes of work
    record = export_onnx(load_pipeline(options.model), options.folder, options.dtype)
    sizes = {name: (options.folder / name).stat().st_size / 2**20 for name in (TEXT_GRAPH, IMAGE_GRAPH)}
    print(_model_line(options.model, record["generator"]))
    print(f"graphs         {', '.join(f'{name} {size:.1f} MiB' for name, size in sizes.items())} ({record['dtype']})")
    for what, found in record["difference_to_torch"].items():
        print(
            f"{what:<15}largest difference to PyTorch {found['largest']:.1e} of the largest value, mean "
            f"{found['mean']:.1e}; batches of {' and '.join(map(str, record['checked_batches']))}"
        )
    if record["one_by_one"]:
        print(
            "recurrence     every image by itself, as the pipeline makes it; in the networks, the images of a "
            "batch depend on each other"
        )
    print(f"written        {options.folder}")
    return 0


def _web(options: argparse.Namespace) -> int:
    from ..export.onnx_export import PACKAGES
    from ..export.onnx_runner import require
    from ..export.repository import WEB_RECORD, refuse_other_folders
    from ..web.export import export_web

    try:
        require(*PACKAGES)
    except ImportError as error:
        raise UserError(str(error)) from error
    refuse_other_folders(options.folder, WEB_RECORD)  # before minutes of work
    pipe = load_pipeline(options.model)
    described = export_web(pipe, options.folder, bundled.resolve(options.model))
    print(
        f"{_model_line(options.model, pipe.generator.config)}\n"
        f"a visitor gets {sum(described['downloads'].values()) / 1e6:.1f} MB: model and libraries, packed\n"
        f"written        {options.folder}\n"
        f"to look at it  ratlip demo --web {shlex.quote(str(options.folder))}"
    )
    return 0


def _space(options: argparse.Namespace) -> int:
    from ..app.space import export_space, push_space
    from ..export.onnx_export import PACKAGES
    from ..export.onnx_runner import require
    from ..export.repository import SPACE_RECORD, refuse_other_folders

    repository = _checked(options.push, "--push") if options.push else "user/birds"
    if options.kind == "static":
        try:
            require(*PACKAGES)
        except ImportError as error:
            raise UserError(str(error)) from error
    refuse_other_folders(options.folder, SPACE_RECORD)  # before the work
    pipe = load_pipeline(options.model)
    files = export_space(pipe, options.folder, bundled.resolve(options.model), options.kind)
    size = sum((options.folder / path).stat().st_size for path in files) / 2**20
    print(
        f"{_model_line(options.model, pipe.generator.config)}\n"
        f"written        {options.folder}: a {options.kind} Space, {len(files)} files, {size:.1f} MiB"
    )
    if options.push:
        print(f"published      {push_space(options.folder, repository, options.kind)}")
    else:
        print(f"to publish     the same with --push {repository}")
    return 0


def _model_line(model: str, config: dict) -> str:
    sizes = f"{config['sample_size']} px, noise {config['noise_dim']}, text {config['text_dim']}"
    return f"model          {model}: {sizes}"
