"""Where a run's sentence embeddings come from: `ratlip data embed`, or the run itself, once, before its first step.
Owns that choice and the place in the output folder; files and fingerprints are in `data.embeddings`."""

from pathlib import Path

from ..data.embeddings import FOLDER, EmbeddingTable, StoredEmbeddings, remembered_embeddings
from ..data.manifest import MANIFEST
from ..data.rows import Columns, Rows, ShardRows
from ..frozen_clip import FrozenCLIP
from ..utils.errors import UserError
from .config import TrainingConfig


def caption_embeddings(
    config: TrainingConfig, sources: list[str], parts: list[Rows], clip: FrozenCLIP | None
) -> list[EmbeddingTable] | None:
    """Embeddings of all captions, one table per part of a mixture; None without `text_embeddings` or in a dry run.

    Stored ones of this CLIP are taken; of other map-style data the captions are encoded here and kept in
    `<output_dir>/text_embeddings/<part>`, where a resumed run finds them. Of several processes the main one must come
    first, for example under `accelerator.main_process_first()`.

    Args:
        config: `text_embeddings`, `dry_run`, `caption_column` and `output_dir` are read.
        sources: names or folders of the parts.
        parts: their rows.
        clip: the CLIP that training uses; may be None where nothing is asked for.

    Raises:
        UserError: for streamed data without stored embeddings.
    """
    if not config.text_embeddings:
        return None
    fingerprint = clip.describe()["weights_sha256"]
    tables = [
        _table(config, index, source, rows, clip, fingerprint)
        for index, (source, rows) in enumerate(zip(sources, parts, strict=True))
    ]
    return None if config.dry_run else tables


def _table(
    config: TrainingConfig, index: int, source: str, rows: Rows, clip: FrozenCLIP, fingerprint: str
) -> EmbeddingTable | None:
    streamed = isinstance(rows, ShardRows)
    # Stored ones are always those of the column that preparing writes.
    if (Path(source) / MANIFEST).is_file() and config.caption_column == Columns.captions:
        try:
            return StoredEmbeddings(Path(source), "train", fingerprint)
        except UserError:
            if streamed:
                raise
    if streamed:
        raise UserError(
            f"the captions of {source} cannot be embedded while streaming: make a folder of it with ratlip data "
            "prepare, run ratlip data embed there and train on it, or leave streaming or text_embeddings out"
        )
    if config.dry_run:  # leaves nothing
        return None
    place = Path(config.output_dir) / FOLDER / str(index)
    return remembered_embeddings(place, list(rows.captions(len(rows))), clip.encode, fingerprint)
