"""Try a model by typing: an app on this machine, or with `--web` a page that makes its images in the browser."""

import argparse
import tempfile
import threading
from pathlib import Path

from .. import bundled
from ..utils.errors import UserError
from .options import load_pipeline


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--model",
        nargs="+",
        default=[bundled.NAME],
        help="folder or repository of a pipeline, several to compare them (default: synthetic-birds, bundled)",
    )
    add("--port", type=int, default=8000, help="of http://127.0.0.1 (default: %(default)s; 0: any that is free)")
    add("--share", action="store_true", help="let anybody use the app through a link of gradio.live, for a while")
    add(
        "--web",
        nargs="?",
        const="",
        metavar="FOLDER",
        help="no app, but the page that `ratlip export web` has written to this folder, or writes now",
    )


def run(options: argparse.Namespace) -> int:
    if not 0 <= options.port < 2**16:
        raise UserError(f"--port must be between 0 and 65535, not {options.port}")
    if options.web is None:
        return _serve_app(options)
    if options.share or len(options.model) > 1:
        raise UserError("a page has one model and is not shared: leave --share and further models out")
    return _serve_page(options)


def _serve_app(options: argparse.Namespace) -> int:
    try:
        from ..app import drawing, interface
    except ImportError as error:
        raise UserError(f"the app needs {error.name}: pip install 'ratlip_hf[demo]'") from error

    models = [drawing.Model(name, load_pipeline(name).optimize()) for name in dict.fromkeys(options.model)]
    app, url = interface.serve(models, options.port, share=options.share)
    print(f"{', '.join(options.model)}: {url} (Ctrl-C ends it)\nas a tool by MCP: {url}gradio_api/mcp/", flush=True)
    try:
        threading.Event().wait()
    finally:
        app.close(verbose=False)
    return 0


def _serve_page(options: argparse.Namespace) -> int:
    from ..web.export import read_description
    from ..web.server import HOST, make_server

    with tempfile.TemporaryDirectory(prefix="ratlip-web-") as temporary:
        folder = Path(options.web or Path(temporary) / "page")
        server = make_server(folder, options.port)  # before the export: a port that is taken is told at once
        with server:
            if not options.web:
                _export(options.model[0], folder)
            described = read_description(folder)
            print(f"{described['model']}: http://{HOST}:{server.server_port}/ (Ctrl-C ends it)", flush=True)
            server.serve_forever()
    return 0


def _export(model: str, folder: Path) -> None:
    from ..web.export import export_web

    pipe = load_pipeline(model)
    print("writing the page", flush=True)
    try:
        export_web(pipe, folder, bundled.resolve(model))
    except ImportError as error:
        raise UserError(str(error)) from error
