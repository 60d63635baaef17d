"""A pipeline as the folder of a repository: weights, discriminator, card and, on request, the code that loads it.

Below: which folder an export, of whatever kind, may replace: one in which it left all files as they are.
"""

import json
import os
import re
import shutil
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from transformers.utils import cached_file

from .. import bundled
from ..model_card import pipeline_card
from ..models import RATLIPDiscriminator
from ..models.pixel_discriminator import PixelDiscriminator
from ..pipeline import RECORD, RATLIPPipeline
from ..utils.errors import one_line
from ..utils.files import atomic_directory, file_sha256
from ..utils.tensors import check_weights
from ..version import __version__
from .single_file import Import, self_contained

ONNX_RECORD = "onnx_export.json"
WEB_RECORD = "web_export.json"
SPACE_RECORD = "space_export.json"
_HOLDS = {
    RECORD: "export for the Hub",
    ONNX_RECORD: "ONNX export",
    WEB_RECORD: "web export",
    SPACE_RECORD: "export of a Space",
}
HANDLER = "handler.py"  # for inference endpoints
_PIPELINE, _GENERATOR = "pipeline", "ratlip_generator"
_UPLOAD_CACHE = ".cache"  # where `hf upload-large-folder` notes what it has sent
CODE = (f"{_PIPELINE}.py", f"generator/{_GENERATOR}.py")
_WITHOUT_PACKAGE = f"""
## Without ratlip_hf

`{CODE[0]}` and `{CODE[1]}` were generated from ratlip_hf {__version__}.
With them, diffusers and transformers are enough:

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{{repository}}", trust_remote_code=True)
```

Where ratlip_hf is installed, `RATLIPPipeline.from_pretrained` takes its own code instead and needs no
`trust_remote_code`.
"""
_SECTION = re.compile(r"\n## Without ratlip_hf\n.*?(?=\n## |\Z)", flags=re.DOTALL)


def export_hub(
    pipe: RATLIPPipeline,
    folder: str | os.PathLike,
    repository: str,
    source: str | os.PathLike,
    with_code: bool = False,
) -> list[str]:
    """Write a folder that can be uploaded as it is, or nothing.

    Args:
        pipe: the pipeline; with a generator and an image tower.
        folder: the folder to make; an untouched earlier export in it is replaced.
        repository: "user/name" on the Hub, for the card.
        source: folder or repository that `pipe` was loaded from; its discriminator and its card are taken along.
        with_code: add the code, generated from this package's sources, that diffusers runs with
            `trust_remote_code=True` where this package is not installed.

    Returns:
        Paths of the files in the folder.

    Raises:
        ValueError: for a folder with something else in it, or a pipeline without generator or image tower.
        OSError: when the folder cannot be written.
    """
    refuse_other_folders(folder)
    if missing := [name for name in ("generator", "image_encoder") if getattr(pipe, name) is None]:
        raise ValueError(f"{source} has no {missing[0]}: there is nothing to publish without it")
    for network in (pipe.generator, pipe.image_encoder, pipe.text_encoder):
        if network is not None:
            check_weights(network, source)
    kinds = RATLIPDiscriminator, PixelDiscriminator
    discriminators = [network for kind in kinds if (network := kind.of_pipeline(source)) is not None]
    with atomic_directory(folder) as staged:
        pipe.save_pretrained(staged)
        for network in discriminators:
            network.save_pretrained(staged / network.folder)
        if with_code:
            for path, text in code_files().items():
                (staged / path).write_text(text, encoding="utf-8")
        shutil.copyfile(Path(__file__).with_name(HANDLER), staged / HANDLER)
        _complete_index(staged, with_code)
        card = _source_card(source) or _own_card(pipe, repository, source)
        text = _SECTION.sub("", str(card)).rstrip() + "\n"
        text += _WITHOUT_PACKAGE.format(repository=repository) if with_code else ""
        (staged / "README.md").write_text(text, encoding="utf-8")
        return write_record(staged, RECORD, {"model": public_name(source), "with_code": with_code})


def code_files() -> dict[str, str]:
    """The code of a repository by its paths: two files that need torch, diffusers and transformers only.

    diffusers copies each of them into a cache by itself, so that neither can import the other.
    """
    # Loading through the class itself, other sources and fresh weights remain the package's business.
    pipeline = self_contained(
        "pipeline",
        "RATLIPPipeline",
        left_out={
            "RATLIPPipeline": ("from_clip", "from_single_file", "from_pretrained", "_dict_from_json_file", "optimize")
        },
        stand_ins={"RATLIPGenerator": Import("diffusers", "ModelMixin", inside=False)},
    )
    generator = self_contained(
        "models.generator",
        "RATLIPGenerator",
        left_out={"RATLIPModel": ("from_preset",), "StrictModel": ("of_pipeline", "_upload_folder")},
    )
    return dict(zip(CODE, (pipeline, generator), strict=True))


def _complete_index(folder: Path, with_code: bool) -> None:
    path = folder / "model_index.json"
    index = json.loads(path.read_text(encoding="utf-8"))
    # diffusers downloads all weights of a repository unless told otherwise; the pipeline never reads these.
    unread = sorted(file.relative_to(folder).as_posix() for file in folder.glob("*discriminator/*.safetensors"))
    if unread:
        index["_ignore_files"] = unread
    code = {"auto_map": {"AutoModel": f"{_GENERATOR}.RATLIPGenerator"}}  # where diffusers' AutoModel looks for it
    if with_code:
        index["_class_name"] = [_PIPELINE, "RATLIPPipeline"]
        index["generator"] = [_GENERATOR, "RATLIPGenerator"]
        index |= code
        config = folder / "generator" / "config.json"
        _write_json(config, json.loads(config.read_text(encoding="utf-8")) | code)
    _write_json(path, index)


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _source_card(source: str | os.PathLike) -> ModelCard | None:
    path = cached_file(source, "README.md", _raise_exceptions_for_missing_entries=False)
    try:
        return ModelCard.load(path) if path else None
    except Exception as error:  # YAML that is none raises errors of several libraries
        raise ValueError(f"{path} has no metadata that can be read, correct it first: {one_line(error)}") from error


def _own_card(pipe: RATLIPPipeline, repository: str, source: str | os.PathLike) -> ModelCard:
    known = ModelCardData(license=bundled.LICENSE) if public_name(source) == bundled.NAME else None
    return pipeline_card(pipe.components, repository, known)


def public_name(source: str | os.PathLike) -> str:
    """What a reader on another machine may learn of the source."""
    if Path(source) == bundled.model_dir():
        return bundled.NAME
    return Path(source).resolve().name if Path(source).is_dir() else str(source)


# Records of exports, and what they allow to replace


def write_record(folder: Path, record: str, facts: dict) -> list[str]:
    """Put `facts` and the hashes of all files into the folder, as a file named `record`; returns the files' paths."""
    files = {path: file_sha256(folder / path) for path in _files(folder, record)}
    content = {"ratlip_hf": __version__, **facts, "files": files}
    (folder / record).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return [*files, record]


def refuse_other_folders(folder: str | os.PathLike, record: str = RECORD) -> None:
    """Raise ValueError unless `folder` is new, empty, or an earlier export in which nothing was added or changed.

    `record` is the file that [`write_record`] leaves, which says what kind of export that is.
    """
    folder = Path(folder)
    if folder.resolve() == Path.cwd():  # replaced as a whole, it would be gone for the shell that stands in it
        raise ValueError(f"{folder} is the folder that you are in: choose another one, or start from elsewhere")
    if folder.is_symlink() or folder.is_mount():
        raise ValueError(f"{folder} is a link or a mount point: choose a folder inside it")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file: name the folder to make")
    if not any(folder.iterdir()):
        return
    try:
        written = dict(json.loads((folder / record).read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{folder} is not empty and holds no {_HOLDS[record]}: choose a new folder") from error
    for path in _files(folder, record):
        if path not in written:
            raise ValueError(
                f"{folder} holds {path}, which no export has written: move it away or choose a new folder"
            )
        if file_sha256(folder / path) != written[path]:
            raise ValueError(f"{folder / path} was changed after the export: move it away or choose a new folder")


def _files(folder: Path, record: str) -> list[str]:
    paths = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if not path.is_dir())
    return [path.as_posix() for path in paths if path.parts[0] != _UPLOAD_CACHE and str(path) != record]
