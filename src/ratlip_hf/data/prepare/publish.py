"""Publishing a prepared dataset: its card, with license, counts, splits and checksums, and its upload to the Hub."""

import hashlib
import html
import re
from pathlib import Path, PurePosixPath

import datasets
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCardData, HfApi

from ...utils.errors import UserError, one_line, printable
from ..manifest import MANIFEST, read_manifest, require_recorded_shards
from .source_dataset import Origin

_TEXT = """---
{metadata}
---

# {title}

{source}Prepared by `ratlip data prepare {kind}` (ratlip_hf {version}). Images: {images}.

```python
from datasets import load_dataset

data = load_dataset("this/folder/or/repository", split="train", streaming=True)
```

## License

{terms}

## Splits

Who is where: {splits_from}. Rows lie in a fixed random order (seed {order_seed}).

| split | images | files |
|---|---|---|
{counts}

## Columns

| column | content |
|---|---|
{columns}

Captions are cleaned: white space collapsed, empty and repeated captions of an image removed.

## Left out and repaired

{problems}

## Checksums (SHA-256)

```
{checksums}
```
"""
_MARKUP = re.compile(r"[\\`*\[\]|<>&]|[^\x20-\x7e]")
_COLUMNS = {
    "image": "the image, embedded",
    "captions": "one or more captions",
    "label": "class",
    "bbox": "left, top, width, height of the object in pixels of the stored image",
    "image_id": "name in the source",
}


def card_text(manifest: dict, origin: Origin, features: datasets.Features) -> str:
    """README.md of a dataset from its manifest."""
    splits, storage = manifest["splits"], manifest["storage"]
    files = [file for split in splits.values() for file in split["files"]]
    original = "original files"
    part = "only what training crops to around a box" if storage["crop"] else "uncropped"
    scaled = f"shorter side {storage['size']} px, JPEG of quality {storage['quality']}, {part}"
    return _TEXT.format(
        metadata=_metadata(manifest, origin, features),
        title=origin.title,
        source=f"Source: <{origin.homepage}>. " if origin.homepage else "",
        kind=manifest["kind"],
        version=manifest["made_by"]["ratlip_hf"],
        images=original if storage["size"] is None else scaled,
        terms=origin.terms,
        splits_from=_escaped(manifest["splits_from"]),
        order_seed=manifest["order_seed"],
        counts="\n".join(f"| {name} | {split['rows']:,} | {len(split['files'])} |" for name, split in splits.items()),
        columns="\n".join(f"| `{name}` | {_COLUMNS[name]} |" for name in features),
        problems=_problems(manifest),
        checksums="\n".join(f"{file['sha256']}  {file['path']}" for file in files),
    )


def _metadata(manifest: dict, origin: Origin, features: datasets.Features) -> str:
    data_files = [{"split": name, "path": f"data/{name}-*"} for name in manifest["splits"]]
    checksums = [file["sha256"] for split in manifest["splits"].values() for file in split["files"]]
    state = hashlib.sha256("".join(checksums).encode()).hexdigest()
    card = DatasetCardData(
        license=origin.license,
        pretty_name=origin.title,
        task_categories=["text-to-image"],
        language=["en"],
        # `datasets` finds its cache by the folder's name and this metadata, not by the shards. The checksum keeps
        # datasets of the same name apart, and a dataset from an earlier one at the same place.
        configs=[{"config_name": "default", "description": f"state {state}", "data_files": data_files}],
    )
    splits = datasets.SplitDict()
    for name, split in manifest["splits"].items():
        splits.add(datasets.SplitInfo(name, sum(file["bytes"] for file in split["files"]), split["rows"]))
    info = datasets.DatasetInfo(features=features, splits=splits)
    DatasetInfosDict({"default": info}).to_dataset_card_data(card)
    return card.to_yaml()


def _problems(manifest: dict) -> str:
    lines = [
        f"* {fate} {entry['count']:,}: {_escaped(reason)}"
        for fate, entries in (("left out", manifest["skipped"]), ("repaired", manifest["repaired"]))
        for reason, entry in entries.items()
    ]
    return "\n".join([*lines, *(f"* {_escaped(note)}" for note in manifest["notes"])]) or "Nothing."


def _escaped(text: str) -> str:
    """Words that may come from a file, as text of a card: no markup, no second line."""
    return (
        re.sub(r"([\\`*_\[\]|])", r"\\\1", html.escape(printable(text), quote=False)) if _MARKUP.search(text) else text
    )


def push(folder: Path, repository: str, private: bool = False) -> str:
    """Upload a folder from `prepare` to "user/name" and return the dataset's address. `private` goes for a repository
    that is made now. Raises UserError for an incomplete folder, a bad name, and a Hub that refuses or is not there."""
    if repository.count("/") != 1:
        raise UserError(f"the repository must be user/name, not {repository!r}")
    manifest = read_manifest(folder)
    require_recorded_shards(folder)
    files = [
        MANIFEST,
        "README.md",
        *(file["path"] for split in manifest["splits"].values() for file in split["files"]),
    ]
    for name in files:  # a link would publish a file from elsewhere
        path = folder / name
        if any(part.is_symlink() for part in (path, *list(path.parents)[: len(PurePosixPath(name).parts) - 1])):
            raise UserError(f"{path} is a link, or in one: only what lies in {folder} itself is published")
        if not path.is_file():
            raise UserError(f"{folder} is incomplete: {path} is not there")
    try:
        api = HfApi()
        api.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
        # Shards of an earlier upload would otherwise stay among the new ones.
        api.upload_folder(
            repo_id=repository,
            repo_type="dataset",
            folder_path=folder,
            allow_patterns=[re.sub(r"([*?[])", r"[\1]", name) for name in files],  # nothing that only lies there
            delete_patterns="data/*.parquet",
            commit_message="Upload prepared captioned images",
        )
    except Exception as error:  # a refusal, a missing token, or whatever the HTTP client says of a Hub out of reach
        raise UserError(f"cannot publish {repository}: {one_line(error)}") from error
    return f"{api.endpoint}/datasets/{repository}"
