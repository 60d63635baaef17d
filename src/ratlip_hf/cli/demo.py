"""Try a model by typing: `ratlip demo --web` shows a page that makes the images in the browser itself."""

import argparse
import tempfile
from pathlib import Path

from .. import bundled
from ..utils.errors import UserError
from .options import add_model_argument, load_pipeline


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--web",
        nargs="?",
        const="",
        required=True,
        metavar="FOLDER",
        help="serve the folder that `ratlip export web` has written; without a folder, export --model first",
    )
    add_model_argument(parser)
    add("--port", type=int, default=8000, help="of http://127.0.0.1 (default: %(default)s; 0: any that is free)")


def run(options: argparse.Namespace) -> int:
    from ..web.export import read_description
    from ..web.server import HOST, make_server

    if not 0 <= options.port < 2**16:
        raise UserError(f"--port must be between 0 and 65535, not {options.port}")
    with tempfile.TemporaryDirectory(prefix="ratlip-web-") as temporary:
        folder = Path(options.web or Path(temporary) / "page")
        server = make_server(folder, options.port)  # before the export: a port that is taken is told at once
        with server:
            if not options.web:
                _export(options.model, folder)
            described = read_description(folder)
            print(f"{described['model']}: http://{HOST}:{server.server_port}/ (Ctrl-C ends it)", flush=True)
            server.serve_forever()
    return 0


def _export(model: str, folder: Path) -> None:
    from ..web.export import export_web

    pipe = load_pipeline(model)
    print("writing the page; this takes a minute", flush=True)
    try:
        export_web(pipe, folder, bundled.resolve(model))
    except ImportError as error:
        raise UserError(str(error)) from error
