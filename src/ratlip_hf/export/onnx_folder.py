"""The folder of an ONNX export: the names in it and the record that says what the graphs are.
Shared by the writer and the runner; no graph is made or opened here."""

import json
import os
from pathlib import Path

TEXT_GRAPH = "text_encoder.onnx"
PICTURE_GRAPH = "generator.onnx"
TOKENIZER = "tokenizer"
RECORD = "onnx_export.json"
_OWN = {TEXT_GRAPH, PICTURE_GRAPH, TOKENIZER, RECORD}
_FORMAT = 1  # of the record: a reader refuses what it does not know


def write_record(folder: Path, record: dict) -> None:
    """Put `record`, which has the entries that [`read_record`] asks for, into the folder."""
    (folder / RECORD).write_text(json.dumps({"format": _FORMAT, **record}, indent=2) + "\n", encoding="utf-8")


def read_record(folder: str | os.PathLike) -> dict:
    """The record of an export.

    Returns:
        "generator": its configuration; "text_encoder": vocab_size, max_position_embeddings, eos_token_id;
        "couples_batch": whether pictures of one batch influence each other; and what was exported with what.

    Raises:
        ValueError: when the folder holds no export, or one that this version cannot read.
    """
    path = Path(folder) / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{folder} holds no ONNX export: there is no {RECORD} (see ratlip export onnx)") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        raise ValueError(f"{path} was not written by this version of ratlip export onnx: export the model again")
    if missing := {"generator", "text_encoder", "couples_batch"} - record.keys():
        raise ValueError(f"{path} is damaged: it lacks {', '.join(sorted(missing))}")
    return record


def refuse_foreign(folder: str | os.PathLike) -> None:
    """Raise ValueError unless `folder` is new, empty, or an earlier export with nothing else in it."""
    folder = Path(folder)
    if folder.is_symlink() or folder.is_mount():
        raise ValueError(f"{folder} is a link or a mount point: choose a folder inside it")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file: name the folder to make")
    inside = {path.name for path in folder.iterdir()}
    if inside and RECORD not in inside:
        raise ValueError(f"{folder} is not empty and holds no ONNX export: choose a new folder")
    if foreign := sorted(inside - _OWN):
        raise ValueError(f"{folder} holds {foreign[0]} beside an ONNX export: move it away or choose a new folder")
