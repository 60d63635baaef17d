"""A pipeline as a Space of the Hub: `ratlip export space` writes the folder, on request uploads it."""

import importlib.metadata
import os
import re
import shutil
from pathlib import Path

from huggingface_hub import HfApi

from .. import bundled
from ..export import repository
from ..pipeline import RATLIPPipeline
from ..utils.errors import UserError, one_line
from ..utils.files import atomic_directory
from ..web.export import export_web

KINDS = ("static", "gradio")
GRADIO = "6.31.0"  # as in constraints.txt; the Space installs it by itself
PACKAGE = Path(__file__).parents[1]
_NOT_NEEDED = shutil.ignore_patterns("__pycache__", "assets", "page")  # bundled models, the page for browsers
_CARD = """---
title: {title}
emoji: 🐦
colorFrom: red
colorTo: yellow
sdk: {sdk}
pinned: false
short_description: Type, and an image appears
---

# {title}

{text}

Made by `ratlip export space` of ratlip_hf (Apache-2.0) from the model {model}.
"""
_STATIC = """Type, and an image appears: the model runs in the visitor's browser, on one thread of WebAssembly.
Nothing that is typed leaves the tab, and the same seed gives the same image as in Python."""
_GRADIO = """Type, and an image appears. The app has an API whose arguments are called like the pipeline's, and it is
a tool by MCP; see its foot. The same prompt and seed give the same image as `ratlip generate`."""
_APP = '''"""The app of this Space. `ratlip_hf/` and `model/` lie next to it."""

import threading

from ratlip_hf import RATLIPPipeline
from ratlip_hf.app.drawing import Model
from ratlip_hf.app.interface import serve

pipe = RATLIPPipeline.from_pretrained("model").optimize()
serve([Model({model!r}, pipe)], port=7860, host="0.0.0.0")
threading.Event().wait()
'''


def export_space(
    pipe: RATLIPPipeline, folder: str | os.PathLike, source: str | os.PathLike, kind: str = "static"
) -> list[str]:
    """Write a folder that is a Space as it stands, or nothing.

    Args:
        pipe: a pipeline in float32 on the CPU, with all of its parts.
        folder: the folder to make; an untouched earlier export in it is replaced.
        source: the folder or repository that `pipe` was loaded from, for the card.
        kind: "static" is the page that makes its images in the browser, "gradio" the app, with this package's code
            and the model in the folder.

    Returns:
        Paths of the files in the folder.

    Raises:
        ValueError, ImportError, OSError: as [`~web.export.export_web`].
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    folder = Path(os.path.abspath(folder))
    repository.refuse_other_folders(folder, repository.SPACE_RECORD)
    name = repository.public_name(source)
    with atomic_directory(folder) as staged:
        if kind == "static":
            export_web(pipe, staged, source)
            (staged / repository.WEB_RECORD).unlink()
        else:
            pipe.save_pretrained(staged / "model")
            shutil.copytree(PACKAGE, staged / PACKAGE.name, ignore=_NOT_NEEDED)
            (staged / "app.py").write_text(_APP.format(model=name), encoding="utf-8")
            (staged / "requirements.txt").write_text(_requirements(), encoding="utf-8")
        sdk = "static" if kind == "static" else f"gradio\nsdk_version: {GRADIO}\napp_file: app.py"
        text = _STATIC if kind == "static" else _GRADIO
        title = "Type, and a bird appears" if name == bundled.NAME else f"Images by {name.split('/')[-1]}"
        card = _CARD.format(title=_plain(title), sdk=sdk, text=text, model=f"`{name}`")
        (staged / "README.md").write_text(card, encoding="utf-8")
        return repository.write_record(staged, repository.SPACE_RECORD, {"model": name, "kind": kind})


def _plain(text: str) -> str:
    """Without what means something to YAML."""
    return re.sub(r"[^\w .,-]", "_", text)


def _requirements() -> str:
    """What the package needs besides Gradio; of torch, the build without CUDA, which starts sooner."""
    needed = [line for line in importlib.metadata.requires(PACKAGE.name) or () if "extra ==" not in line]
    return "\n".join(["--extra-index-url https://download.pytorch.org/whl/cpu", *sorted(needed)]) + "\n"


def push_space(folder: str | os.PathLike, name: str, kind: str) -> str:
    """Upload an exported folder as the Space "user/name", which is made if there is none. Returns its address.

    Raises [`UserError`] when the Hub refuses it or cannot be reached.
    """
    api = HfApi()
    try:
        api.create_repo(name, repo_type="space", space_sdk=kind, exist_ok=True)
        api.upload_folder(
            folder_path=folder, repo_id=name, repo_type="space", commit_message="Export", delete_patterns="*"
        )
    except (OSError, ValueError, RuntimeError) as error:  # the client's errors are of these
        raise UserError(f"{folder} is written, but the upload to {name} failed: {one_line(error)}") from error
    return f"{api.endpoint}/spaces/{name}"
