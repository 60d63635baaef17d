"""The dataset card of a prepared corpus: licence, counts, where splits come from, what was left out, checksums.
Owns the text of README.md and the metadata in it that the Hub and `datasets` read."""

import hashlib

import datasets
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCardData

from .corpus import Origin

_TEXT = """---
{metadata}
---

# {title}

{source}Prepared by `ratlip data prepare {kind}` (ratlip_hf {version}). Pictures: {pictures}.

```python
from datasets import load_dataset

data = load_dataset("this/folder/or/repository", split="train", streaming=True)
```

## Licence

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

Captions are cleaned: white space collapsed, empty and repeated sentences of an image removed.

## Left out and repaired

{problems}

## Checksums (SHA-256)

```
{checksums}
```
"""
_COLUMNS = {
    "image": "the picture, embedded",
    "captions": "one or more sentences",
    "label": "class",
    "bbox": "left, top, width, height of the object in pixels of the stored picture",
    "image_id": "name in the source",
}


def card_text(manifest: dict, origin: Origin, features: datasets.Features) -> str:
    """README.md of a corpus from its manifest."""
    splits, storage = manifest["splits"], manifest["storage"]
    files = [file for split in splits.values() for file in split["files"]]
    original = "original files"
    scaled = f"shorter side {storage['size']} px, JPEG of quality {storage['quality']}, uncropped"
    return _TEXT.format(
        metadata=_metadata(manifest, origin, features),
        title=origin.title,
        source=f"Source: <{origin.homepage}>. " if origin.homepage else "",
        kind=manifest["kind"],
        version=manifest["made_by"]["ratlip_hf"],
        pictures=original if storage["size"] is None else scaled,
        terms=origin.terms,
        splits_from=manifest["splits_from"],
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
        license=origin.licence,
        pretty_name=origin.title,
        task_categories=["text-to-image"],
        language=["en"],
        # `datasets` finds its cache by the folder's name and this metadata, not by the shards. The checksum keeps
        # corpora of the same name apart, and a corpus from an earlier one at the same place.
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
        f"* {verb} {entry['count']:,}: {reason}"
        for verb, entries in (("left out", manifest["skipped"]), ("repaired", manifest["repaired"]))
        for reason, entry in entries.items()
    ]
    return "\n".join([*lines, *(f"* {note}" for note in manifest["notes"])]) or "Nothing."
