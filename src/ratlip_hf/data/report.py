"""What `ratlip data prepare` and `ratlip data check` show: one screen of text each.
Owns layout only."""

from pathlib import Path

_LINES = 24  # a screen, together with the counts
_EXAMPLE_WIDTH = 44


def prepared_screen(manifest: dict, out: Path) -> str:
    """Counts, what was left out or repaired and why, and how to go on."""
    splits = ", ".join(f"{split['rows']:,} {name}" for name, split in manifest["splits"].items())
    files = sum(len(split["files"]) for split in manifest["splits"].values())
    size = sum(file["bytes"] for split in manifest["splits"].values() for file in split["files"])
    return "\n".join(
        [
            f"{out}: {splits} images in {files} shards, {size / 1e6:,.1f} MB",
            f"  splits: {manifest['splits_from']}",
            *_problem_lines({f"skipped: {reason}": entry for reason, entry in manifest["skipped"].items()}),
            *_problem_lines({f"repaired: {reason}": entry for reason, entry in manifest["repaired"].items()}),
            *(f"  note: {note}" for note in manifest["notes"]),
            f"train on it: python -m ratlip_hf.training --train_data_dir {out}",
        ]
    )


def checked_screen(result: dict) -> str:
    """Counts per split, then problems, the most frequent first."""
    lines = [f"{result['folder']} ({result['kind']})"]
    for name, split in result["splits"].items():
        numbers = split["captions_per_image"]
        spread = ", ".join(f"{count:,} with {number}" for number, count in numbers.items())
        classes = f", {split['classes']} classes" if split["classes"] else ""
        lines.append(f"  {name}: {split['images']:,} images{classes}, {split['captions']:,} captions ({spread})")
    return "\n".join([*lines, *(_problem_lines(result["problems"]) or ["  no problems found"])])


def _problem_lines(problems: dict[str, dict]) -> list[str]:
    ordered = sorted(problems.items(), key=lambda item: -item[1]["count"])
    lines = [f"  {entry['count']:>7,}  {reason} ({_examples(entry)})" for reason, entry in ordered[:_LINES]]
    return lines + ([f"  and {len(ordered) - _LINES} more kinds"] if len(ordered) > _LINES else [])


def _examples(entry: dict) -> str:
    """The first example, cut to what a line can hold."""
    first = entry["examples"][0]
    shown = first if len(first) <= _EXAMPLE_WIDTH else f"...{first[-_EXAMPLE_WIDTH:]}"
    return shown + (", ..." if entry["count"] > 1 else "")
