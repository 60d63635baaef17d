"""Makes the tables of README.md and docs/ from the records of both kinds; `--check` only says if they differ.
Usage: python docs/tables.py [--check]. A table stands between `<!-- table: NAME -->` and `<!-- end -->`."""

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ratlip_hf.benchmark import inference, measuring, training_speed
from ratlip_hf.evaluation.records import ScoreRecord, read_records
from ratlip_hf.study.plan import TABLES
from ratlip_hf.study.results import contrast, describe_table
from ratlip_hf.utils.display import as_markdown

DOCS = Path(__file__).parent
RECORDS = DOCS / "records"
SPEED = RECORDS / "speed.jsonl"
LANES = RECORDS / "lanes.jsonl"
CARD = DOCS.parent / "src" / "ratlip_hf" / "assets" / "synthetic_birds" / "README.md"
PAGES = (
    DOCS.parent / "README.md",
    CARD,
    *(DOCS / f"{name}.md" for name in ("evaluation", "recipe", "study", "performance", "explore", "explain")),
    DOCS / "scaling.md",
)
_BLOCK = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_SCORES = {
    "attribute_accuracy": "colours right",
    "accuracy_crown": "crown",
    "accuracy_belly": "belly",
    "accuracy_wing": "wing",
    "accuracy_direction": "direction",
    "accuracy_background": "background",
    "accuracy_perch": "perch",
    "fid_judge": "FID (judge)",
    "kid_judge": "KID (judge)",
    "clip_score": "CLIP score (held out)",
    "diversity": "diversity / real",
}
_MEASURED = tuple(_SCORES)
_FURTHER = {
    "all_parts_right": "all colours right",
    "all_words_right": "all named words right",
    "precision_judge": "precision (judge)",
    "recall_judge": "recall (judge)",
    "clip_score": "fit of image and prompt (scorer)",
    "cmmd": "CMMD (scorer)",
    "r_precision": "R-precision (scorer)",
    "steps_at_joints": "steps at joints / real",
    **{f"power_{band}_of_4": f"power / real, band {band} of 4" for band in (1, 2, 3, 4)},
}
_LABELS = _SCORES | _FURTHER
_OF_IMAGES = ("fid_judge", "precision_judge", "recall_judge", "diversity", "attribute_accuracy", "accuracy_crown")
_OF_IMAGES += ("all_words_right", "power_1_of_4", "power_2_of_4", "power_3_of_4", "power_4_of_4", "steps_at_joints")


def bundled() -> str:
    """The bundled model next to fresh renders of the same birds, the latest record of each: every score it has."""
    latest = {record.candidate["model"]: record for record in read_records(RECORDS / "bundled.jsonl")}
    names = dict.fromkeys(name for record in latest.values() for name in record.scores)
    ordered = [*(name for name in _LABELS if name in names), *(name for name in names if name not in _LABELS)]
    body = [
        [_LABELS.get(name, f"`{name}`"), *(_score_cell(record.scores.get(name)) for record in latest.values())]
        for name in ordered
    ]
    return as_markdown(["score", *latest], body)


def recipe() -> str:
    """Short runs that differ in one thing each, by the scores that images are judged by."""
    return _by_model(read_records(RECORDS / "recipe.jsonl"), _OF_IMAGES)


def scorer() -> str:
    """The images of `recipe` in the scorer's order, beside what the judges say."""
    records = sorted(read_records(RECORDS / "recipe.jsonl"), key=lambda record: record.scores["cmmd"]["value"])
    return _by_model(records, ("cmmd", "fid_judge", "r_precision", "clip_score", "all_words_right"))


def _by_model(records: Sequence[ScoreRecord], names: Sequence[str]) -> str:
    body = [
        [
            record.candidate["model"].removesuffix("/pipeline"),
            *(_score_cell(record.scores.get(name)) for name in names),
        ]
        for record in records
    ]
    return as_markdown(["images", *(_LABELS[name] for name in names)], body)


def study() -> str:
    """Table III on the synthetic birds, with its contrasts."""
    text = describe_table(_study_records("table3"), TABLES["table3"], _MEASURED)
    head, rest = text.split("\n", 1)
    for name, label in _SCORES.items():
        head = head.replace(f"| {name} |", f"| {label} |")
    return f"{head}\n{rest}"


def study_parts() -> str:
    """The contrasts in every single measure, which the plan only describes."""
    records = _study_records("table3")
    lines = []
    for pair in TABLES["table3"].contrasts:
        found = (contrast(records, *pair, score) for score in _MEASURED)
        lines += [
            [_SCORES[score], *_contrast_cells(each)] for score, each in zip(_MEASURED, found, strict=True) if each
        ]
    return as_markdown(["measure", "difference", "mean", "95 % interval"], lines)


def _contrast_cells(found) -> list[str]:
    low, high = found.interval
    return [f"{found.better} - {found.baseline}", f"{found.mean:+.3f}", f"[{low:+.3f}, {high:+.3f}]"]


def _study_records(table: str) -> list[ScoreRecord]:
    names = {variant.name for key in (table, "variants") for variant in TABLES[key].variants}
    return [record for record in read_records(RECORDS / "study_birds.jsonl") if record.candidate["variant"] in names]


_KEPT = ("crown", "belly", "wing", "direction", "background", "perch", "size")


def explorations(*columns: tuple[str, str, str]) -> str:
    """Scores of `score_explorations.py`: for each column a title, a check and what its scores' names begin with."""
    latest = {record.protocol["name"]: record for record in read_records(RECORDS / "explore.jsonl")}
    rows = [("changed", "the named attribute changes"), ("kept", "the others stay")]
    rows += [(f"kept_{name}", f"of these: {name}") for name in _KEPT]
    found = [(latest[f"explore-{check}"], start) for _, check, start in columns]
    body = [[label, *(_score_cell(r.scores.get(f"{start}{name}")) for r, start in found)] for name, label in rows]
    body.append(["images", *(str(record.protocol["num_fake"]) for record, _ in found)])
    return as_markdown(["", *(title for title, *_ in columns)], [row for row in body if set(row[1:]) != {"-"}])


def interpolations() -> str:
    """Of ways with even and with plain steps: the longest step by the shortest."""
    records = read_records(RECORDS / "explore.jsonl")
    scores = [record for record in records if record.protocol["name"] == "explore-interpolations"][-1].scores
    names = {
        "plain steps": ("plain_within_factor_2", "plain_median"),
        "even steps": ("within_factor_2", "median_ratio"),
    }
    body = [[name, *(_score_cell(scores[each]) for each in pair)] for name, pair in names.items()]
    return as_markdown(["", "ways within a factor of 2", "longest by shortest, median"], body)


def pointing() -> str:
    """The pointing game: a row for each network and method."""
    cells = {}
    for record in read_records(RECORDS / "explore.jsonl"):
        if record.protocol["name"] == "pointing-game":
            row = record.candidate["explained"], record.candidate["method"]
            cells.setdefault(row, {})[record.protocol["images"], record.protocol["weights"]] = record.scores
    body = []
    for row, scores in cells.items():
        renders, made, random = (scores[key] for key in _CONDITIONS)
        shown = [
            _score_cell(renders["pointing"]),
            *(f"{renders[f'pointing_{part}']['value']:.2f}" for part in _KEPT[:3]),
        ]
        shown += [f"{renders['energy']['value']:.2f}", f"{renders['other_bird']['value']:.2f}"]
        body.append([*row, *shown, _score_cell(made["pointing"]), _score_cell(random["pointing"])])
    head = [
        "explained",
        "method",
        "renders",
        *_KEPT[:3],
        "energy",
        "map of another bird",
        "generated",
        "random weights",
    ]
    return as_markdown(head, body)


_CONDITIONS = (("renders", "trained"), ("generated", "trained"), ("renders", "random"))


def _score_cell(score: dict | None) -> str:
    if score is None:
        return "-"
    digits = 1 if abs(score["value"]) >= 10 else 3
    interval = f" ({score['low']:.{digits}f} to {score['high']:.{digits}f})" if "low" in score else ""
    return f"{score['value']:.{digits}f}{interval}"


def lanes() -> str:
    """What readers of a stream fetch and hold, simulated by `benchmarks/lanes.py`: a row per case."""
    head = ["shards", "readers", "lanes", "requests", "fetched / corpus", "shards read by several"]
    head += ["most images", "most bytes", "memory"]
    body = []
    for line in map(json.loads, LANES.read_text().splitlines()):
        case = line["case"]
        workers = f" x {case['workers']} workers" if case["workers"] > 1 else ""
        body.append(
            [
                f"{case['shards']:,}{', uneven' if case['uneven'] else ''} ({case['bytes'] / 1e9:,.1f} GB)",
                f"{case['processes']}{workers}",
                str(case["lanes"]),
                f"{line['requests']:,}",
                f"{line['bytes'] / case['bytes']:.3f}",
                f"{line['shards_of_several']:,}",
                f"{line['most_samples']:.3f}",
                f"{line['most_bytes']:.3f}",
                f"{line['held'] / 1e6:.0f} MB",
            ]
        )
    return as_markdown(head, body)


def speed(part: str, table: Callable[[dict], str]) -> str:
    """A table of the latest record of `ratlip benchmark` that has this part."""
    return table(_speed_records(part)[-1][part])


def speed_everywhere(part: str, table: Callable[[dict], str], in_full: bool = False) -> str:
    """The same for every processor or GPU, the last measured first, introduced by its name and, in full, by versions
    and command."""
    latest = {record["machine"]["device"]: record for record in _speed_records(part)}
    ordered = sorted(latest.values(), key=lambda record: record["machine"]["date"], reverse=True)
    return "\n\n".join(f"{_introduced(record, in_full)}:\n\n{table(record[part])}" for record in ordered)


def _introduced(record: dict, in_full: bool) -> str:
    machine = record["machine"]
    return f"{measuring.describe_machine(machine)}; `{record['command']}`" if in_full else machine["device"]


def _speed_records(part: str) -> list[dict]:
    records = [json.loads(line) for line in SPEED.read_text().splitlines()]
    return [record for record in records if part in record]


TABLE_MAKERS: dict[str, Callable[[], str]] = {
    "bundled": bundled,
    "recipe": recipe,
    "scorer": scorer,
    "study": study,
    "study-parts": study_parts,
    "edits": lambda: explorations(("plain", "edits", ""), ("rest held", "edits-kept", "")),
    "inversions": lambda: explorations(
        ("found again", "inversions", ""), ("then one word edited", "inversions", "edit_")
    ),
    "interpolations": interpolations,
    "pointing": pointing,
    "lanes": lanes,
    "inference": lambda: speed_everywhere("inference", inference.inference_table, in_full=True),
    "roofline": lambda: speed_everywhere("inference", inference.roofline_table),
    "operations": lambda: speed("inference", inference.operations_table),
    "diffusion": lambda: speed("diffusion", inference.diffusion_table),
    "training-steps": lambda: speed_everywhere("training", training_speed.training_table),
    "start-up": lambda: speed("start_up", inference.start_up_table),
}


def filled(text: str) -> str:
    """A page's text with its tables made anew. Raises KeyError for a table that nobody makes."""
    return _BLOCK.sub(lambda match: f"{match[1]}{TABLE_MAKERS[match[2]]()}\n{match[3]}", text)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a page is out of date")
    check = parser.parse_args(argv).check
    outdated = [page for page in PAGES if page.read_text() != filled(page.read_text())]
    for page in outdated:
        print(f"{page.name}: {'differs from the records' if check else 'tables made anew'}")
        if not check:
            page.write_text(filled(page.read_text()))
    return int(check and bool(outdated))


if __name__ == "__main__":
    sys.exit(main())
