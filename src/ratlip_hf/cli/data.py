"""Prepare, check and publish captioned images for training: `ratlip data prepare|check|embed|push`."""

import argparse
import json
import os
from pathlib import Path

from ..data.prepare.importers import DEFAULT_NUM_IMAGES, KINDS, WITHOUT_SOURCE
from ..utils.errors import UserError, printable
from .options import add_subcommands

_SUBCOMMANDS = {
    "prepare": "write a dataset as Parquet shards with a card and a manifest",
    "check": "count what is in a prepared dataset and what is wrong with it",
    "embed": "store text embeddings, for training with --text_embeddings true",
    "push": "publish a prepared dataset on the Hub",
}
_MOST_WORKERS = 512
_LINES = 24  # of problems: a screen, together with the counts
_EXAMPLE_WIDTH = 44


def add_arguments(parser: argparse.ArgumentParser) -> None:
    prepare, check, embed, push = add_subcommands(parser, "data_subcommand", "subcommand", _SUBCOMMANDS).values()
    _add_prepare_arguments(prepare)
    for subcommand in (check, embed, push):
        subcommand.add_argument("folder", type=Path, help="folder from `ratlip data prepare`")
    check.add_argument("--json", action="store_true", help="print one JSON object instead of a screen")
    embed.add_argument("--clip", required=True, help="the CLIP of the training run: repository or folder")
    embed.add_argument("--clip_revision", help="branch, tag or commit of the CLIP repository")
    push.add_argument("repository", help="user/name of the dataset on the Hub")
    push.add_argument("--private", action="store_true", help="make a new repository private")


def _add_prepare_arguments(parser: argparse.ArgumentParser) -> None:
    add, without = parser.add_argument, ", ".join(WITHOUT_SOURCE)
    add("kind", help=f"what the source is: {', '.join(KINDS)}")
    add("--source", type=Path, help=f"folder or archive with the raw data (all kinds but {without})")
    add("--output_dir", type=Path, required=True, help="folder to make")
    add(
        "--store_size",
        default="original",
        help="'original' keeps the files; a number scales shorter sides to it, as JPEG, uncropped (default: original)",
    )
    add(
        "--store_crop",
        action="store_true",
        help="of images with the box of an object, store only the part that training crops to; needs --store_size",
    )
    add("--quality", type=int, default=90, help="of the JPEGs that a size needs (default: 90)")
    add("--images_per_shard", type=int, default=1000, help="per Parquet file (default: 1000)")
    add("--workers", type=int, help="processes (default: one per core)")
    add("--captions", type=Path, help="folder or archive of captions that lie outside the source")
    add("--split", default="stackgan", help="of birds: stackgan (default), reed or official; of flowers: official")
    add("--seed", type=int, default=0, help="of the sampling of faces and of synthetic-birds (default: 0)")
    defaults = ", ".join(f"{number} {kind}" for kind, number in DEFAULT_NUM_IMAGES.items())
    add(
        "--num_images",
        type=int,
        help=f"faces: how many to sample; synthetic-birds: how many for training (default: {defaults})",
    )
    add("--num_test_images", type=int, default=2_000, help="faces: how many of them are for tests (default: 2000)")
    add("--image_size", type=int, default=64, help="synthetic-birds: side in pixels (default: 64)")


def run(options: argparse.Namespace) -> int:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise UserError(f"ratlip data needs {error.name}: pip install 'ratlip_hf[train]'") from error
    datasets.disable_progress_bars()
    return {"prepare": _prepare, "check": _check, "embed": _embed, "push": _push}[options.data_subcommand](options)


def _prepare(options: argparse.Namespace) -> int:
    from ..data.prepare.shards import PreparationFailed, Storage, prepare
    from ..data.prepare.source_dataset import SourceOptions

    if options.kind not in KINDS:
        raise UserError(f"kind must be one of {', '.join(KINDS)}, not {options.kind!r}")
    if options.kind not in WITHOUT_SOURCE and options.source is None:
        raise UserError("--source is needed: the folder with the raw data")
    for name in ("source", "captions"):
        if (path := getattr(options, name)) is not None and not (path.is_dir() or path.is_file()):
            raise UserError(f"--{name} {path} is not a folder or an archive")
    if options.workers is not None and not 1 <= options.workers <= _MOST_WORKERS:
        raise UserError(f"--workers must lie in 1..{_MOST_WORKERS}, not {options.workers}")
    original = options.store_size == "original"
    if not (original or (options.store_size.isascii() and options.store_size.isdecimal())):
        raise UserError(f"--store_size must be 'original' or a number of pixels, not {options.store_size!r}")
    size = None if original else int(options.store_size)
    choices = {name: getattr(options, name) for name in SourceOptions.__dataclass_fields__}
    storage = Storage(size, options.quality, options.store_crop, options.images_per_shard)
    workers = options.workers or os.cpu_count() or 1
    try:
        manifest = prepare(
            options.kind, options.source, options.output_dir, SourceOptions(**choices), storage, workers
        )
    except PreparationFailed as error:
        print("\n".join(_found_lines(error.found)))
        raise
    print(prepared_screen(manifest, options.output_dir))
    return 0


def _check(options: argparse.Namespace) -> int:
    from ..data.prepare.check import check

    result = check(options.folder)
    print(json.dumps(result, indent=2, ensure_ascii=False) if options.json else checked_screen(result))
    return 0


def _embed(options: argparse.Namespace) -> int:
    from ..data.manifest import read_manifest

    read_manifest(options.folder)  # a mistake is reported before CLIP is loaded

    from ..clip import load_clip
    from ..data.read.embeddings import embed_captions

    clip = load_clip(options.clip, **({"revision": options.clip_revision} if options.clip_revision else {}))
    written = embed_captions(options.folder, clip.encode, clip.describe()["weights_sha256"])
    print(f"written to {', '.join(map(str, written))}")
    return 0


def _push(options: argparse.Namespace) -> int:
    from ..data.prepare.publish import push

    print(f"published at {push(options.folder, options.repository, options.private)}")
    return 0


# What `prepare` and `check` print: one screen of text each


def prepared_screen(manifest: dict, output_dir: Path) -> str:
    """Counts, what was left out or repaired and why, and how to go on."""
    splits = ", ".join(f"{split['rows']:,} {name}" for name, split in manifest["splits"].items())
    files = [file for split in manifest["splits"].values() for file in split["files"]]
    size = sum(file["bytes"] for file in files)
    return "\n".join(
        [
            f"{output_dir}: {splits} images in {len(files)} shards, {size / 1e6:,.1f} MB",
            f"  splits: {manifest['splits_from']}",
            *_found_lines(manifest),
            f"train on it: python -m ratlip_hf.training --train_data_dir {output_dir}",
        ]
    )


def _found_lines(found: dict) -> list[str]:
    """What was left out or repaired and why, remarks, and which files were read and which were not."""
    return [
        *_problem_lines({f"skipped: {reason}": entry for reason, entry in found["skipped"].items()}),
        *_problem_lines({f"repaired: {reason}": entry for reason, entry in found["repaired"].items()}),
        *(f"  note: {printable(note)}" for note in found["notes"]),
        *(
            f"  {'read' if state == 'read' else 'left unread'}: "
            + "; ".join(
                printable(name) + (f" ({count:,} files)" if count > 1 else "") for name, count in groups.items()
            )
            for state, groups in found["source_files"].items()
            if groups
        ),
    ]


def checked_screen(result: dict) -> str:
    """Counts per split, then problems, the most frequent first."""
    lines = [f"{result['folder']} ({printable(str(result['kind']))})"]
    for name, split in result["splits"].items():
        spread = ", ".join(f"{count:,} with {number}" for number, count in split["captions_per_image"].items())
        classes = f", {split['classes']} classes" if split["classes"] else ""
        lines.append(
            f"  {printable(name)}: {split['images']:,} images{classes}, {split['captions']:,} captions ({spread})"
        )
    return "\n".join([*lines, *(_problem_lines(result["problems"]) or ["  no problems found"])])


def _problem_lines(problems: dict[str, dict]) -> list[str]:
    ordered = sorted(problems.items(), key=lambda item: -item[1]["count"])
    lines = [f"  {entry['count']:>7,}  {printable(reason)} ({_examples(entry)})" for reason, entry in ordered[:_LINES]]
    return lines + ([f"  and {len(ordered) - _LINES} more kinds"] if len(ordered) > _LINES else [])


def _examples(entry: dict) -> str:
    """The first example, cut to what a line can hold."""
    first = entry["examples"][0]
    first = printable(first)
    shown = first if len(first) <= _EXAMPLE_WIDTH else f"...{first[-_EXAMPLE_WIDTH:]}"
    return shown + (", ..." if entry["count"] > 1 else "")
