"""The folder of an ONNX export: the names in it and the record that says what the graphs are.
Shared by the writer and the runner; no graph is made or opened here."""

import json
import os
from pathlib import Path

from . import exported_folder

TEXT_GRAPH = "text_encoder.onnx"
PICTURE_GRAPH = "generator.onnx"
TOKENIZER = "tokenizer"
RECORD = "onnx_export.json"
_FORMAT = 1  # of the record: a reader refuses what it does not know


def write_record(folder: Path, record: dict) -> None:
    """Put `record`, which has the entries that [`read_record`] asks for, into the folder."""
    exported_folder.write_record(folder, RECORD, {"format": _FORMAT, **record})


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


def refuse_other_folders(folder: str | os.PathLike) -> None:
    """Raise ValueError for a folder that an export would not replace."""
    exported_folder.refuse_foreign(folder, RECORD, "ONNX export")
