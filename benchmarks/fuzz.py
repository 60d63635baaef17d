"""Every parser of files from elsewhere, fed with damaged ones by hypothesis for a bounded time: `make fuzz`.
A parser may refuse with one of the errors that commands turn into a line; anything else is a finding, whose input is
kept in tests/fuzz_corpus. Figures go to docs/records/fuzz.jsonl and
docs/reliability.md."""

import argparse
import contextlib
import io
import itertools
import json
import shutil
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
CORPUS = ROOT / "tests" / "fuzz_corpus"
RECORDS, PAGE = ROOT / "docs" / "records" / "fuzz.jsonl", ROOT / "docs" / "reliability.md"
_LONGEST = 65_536  # bytes of a corpus file
_ROUND = 200  # inputs of one seed of hypothesis


@dataclass
class Parser:
    """What reads a file: `seeds` are sound contents, `read` gets a path with some content."""

    name: str
    file: str  # the name that the file must have
    read: Callable[[Path], object]
    seeds: list[bytes] = field(default_factory=list)


def _json(value) -> bytes:
    return json.dumps(value).encode()


def parsers() -> list[Parser]:
    """All of them; libraries are imported here."""
    from ratlip_hf import RATLIPGenerator, bundled
    from ratlip_hf.cli.options import load_pipeline
    from ratlip_hf.clip import load_clip
    from ratlip_hf.convert.folder import original_networks
    from ratlip_hf.convert.original import convert_original
    from ratlip_hf.data.manifest import read_manifest
    from ratlip_hf.data.prepare.importers import load_importer
    from ratlip_hf.data.prepare.raw_files import load_plain_pickle
    from ratlip_hf.data.prepare.source_dataset import SourceOptions
    from ratlip_hf.data.prepare.source_files import open_source
    from ratlip_hf.evaluation.inputs import Folder
    from ratlip_hf.evaluation.records import read_records
    from ratlip_hf.export.onnx_runner import read_record
    from ratlip_hf.training.checkpoints import _sound_facts
    from ratlip_hf.training.config import load_config
    from ratlip_hf.training.monitor import Log

    model = bundled.model_dir()
    clip = load_clip(model)
    torch.manual_seed(0)
    small = {"base_channels": 8, "bridge_channels": 16, "bridge_blocks": 1, "lstm_hidden": 8}
    plain = {"text_center": False, "text_norm": None, "upsampling": "nearest", "recurrence": "per_layer"}
    content = io.BytesIO()
    torch.save(original_networks(RATLIPGenerator.from_preset("tiny", **plain, **small).eval()), content)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, text in (
            ("é" * 60 + ".txt", b"a red bird"),
            ("b.json", b'{"caption": "x"}'),
            ("b.jpg", b"\xff\xd8"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text))

    def beside(name: str, read: Callable[[Path], object]) -> Callable[[Path], object]:
        """Read a folder in which there is also a file of this name."""

        def with_file(path: Path) -> object:
            (path.parent / name).touch()
            return read(path)

        return with_file

    def source(kind: str) -> Callable[[Path], object]:
        apart = kind == "webdataset"
        return lambda path: load_importer(kind)[0](open_source(path.parent, apart=apart), SourceOptions())

    def in_model(part: str) -> Callable[[Path], object]:
        def read(path: Path) -> None:
            copy = path.parent / "model"
            if not copy.exists():
                shutil.copytree(model, copy)
            shutil.copyfile(path, copy / part)
            try:
                load_pipeline(str(copy))
            finally:
                shutil.copyfile(model / part, copy / part)

        return read

    part = "generator/diffusion_pytorch_model.safetensors"
    manifest = {"kind": "folder", "splits": {"train": {"rows": 1, "files": [{"path": "a", "rows": 1, "sha256": "0"}]}}}
    record = {
        "protocol": {"name": "p", "num_real": 1, "num_fake": 1},
        "candidate": {},
        "scores": {"a": {"value": 1.0}},
    }
    onnx = {"format": 1, "generator": {"a": 1}, "text_encoder": {"b": 2}, "couples_batch": False}
    return [
        Parser("checkpoint", "a.pth", lambda path: convert_original(path, clip), [content.getvalue()]),
        Parser("weights", "w", in_model(part), [(model / part).read_bytes()]),
        Parser("generator's config", "c", in_model("generator/config.json"),
               [(model / "generator/config.json").read_bytes()]),
        Parser("CLIP's config", "c", in_model("image_encoder/config.json"),
               [(model / "image_encoder/config.json").read_bytes()]),
        Parser("tar", "a.tar", source("webdataset"), [archive.getvalue()]),
        Parser("captions", "metadata.jsonl", beside("a.jpg", source("folder")),
               [_json({"file_name": "a.jpg", "caption": "x"})]),
        Parser("pickle", "p", lambda path: load_plain_pickle(path.read_bytes()),
               [b"(lp0\nVa\np1\na.", b"\x80\x04]\x94\x8c\x01a\x94a."]),
        Parser("manifest", "manifest.json", lambda path: read_manifest(path.parent), [_json(manifest)]),
        Parser("images' manifest", "manifest.jsonl", beside("a", lambda path: Folder(path.parent)),
               [_json({"file": "a", "prompt": "b"})]),
        Parser("training config", "c.json", lambda path: load_config(["--config", str(path)]),
               [_json({"dataset_name": "synthetic-birds", "train_batch_size": 4})]),
        Parser("records", "r.jsonl", read_records, [_json(record) + b"\n"]),
        Parser("export's record", "onnx_export.json", lambda path: read_record(path.parent), [_json(onnx)]),
        Parser("facts", "facts.json", lambda path: _sound_facts(path.parent), [_json({"sha256": "0", "step": 1})]),
        Parser("log", "log.jsonl", lambda path: Log(path, 5), [_json({"step": 1, "images": 4, "d_loss": 0.5})]),
    ]  # fmt: skip


def outcome(parser: Parser, path: Path) -> str:
    """ "read", "refused", or the name of an error that no command turns into a line."""
    from ratlip_hf.utils.errors import UserError

    try:
        with contextlib.redirect_stderr(io.StringIO()):
            parser.read(path)
    except (UserError, ValueError, OSError):
        return "refused"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "read"


def spoil(content: bytes, changes: list[tuple[float, int, bytes]]) -> bytes:
    """Content with pieces replaced, cut out, put in or repeated, each at a place between 0 and 1 of its length."""
    for place, kind, piece in changes:
        at = int(place * len(content))
        width = len(piece) or 1
        match kind:
            case 0:
                content = content[:at] + piece + content[at + width :]
            case 1:
                content = content[:at] + content[at + width :]
            case 2:
                content = content[:at] + piece + content[at:]
            case 3:
                content = content[:at] + content[max(0, at - 64) : at] + content[at:]
            case 4:
                content = content[:at]
    return content


def fuzz(parser: Parser, seconds: float, folder: Path) -> tuple[Counter, dict[str, bytes]]:
    """Outcomes by name, and an input for each kind of finding, the smallest that hypothesis has tried."""
    from hypothesis import HealthCheck, given, seed, settings
    from hypothesis import strategies as st

    pieces = st.one_of(
        st.binary(max_size=16),
        st.sampled_from([b"null", b"-1", b"1e999", b"NaN", b'"x"', b"[]", b"{}", b"9" * 30, b"[" * 5000, b"\xff\xfe"]),
        st.integers(-(2**63), 2**63).map(lambda number: str(number).encode()),
    )
    change = st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 4), pieces)
    results, findings, end = Counter(), {}, time.monotonic() + seconds

    @settings(max_examples=_ROUND, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(parser.seeds), st.lists(change, max_size=4))
    def attack(sound: bytes, changes: list) -> None:
        if time.monotonic() > end:
            return
        content = spoil(sound, changes)
        path = folder / parser.file
        path.write_bytes(content)
        result = outcome(parser, path)
        if result not in ("read", "refused"):
            kind = result.partition(":")[0]
            if kind not in findings or len(content) < len(findings[kind]):
                findings[kind] = content
            result = "finding"
        results[result] += 1

    for number in itertools.takewhile(lambda _: time.monotonic() < end, itertools.count()):
        seed(number)(attack)()
    return results, findings


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=60.0, help="for each parser (default: %(default)s)")
    seconds = options.parse_args().seconds
    from faults import write_block

    from ratlip_hf.cli.options import quiet_libraries
    from ratlip_hf.utils.display import as_markdown

    torch.set_num_threads(1)
    quiet_libraries()
    records = []
    for parser in parsers():
        with tempfile.TemporaryDirectory() as folder:
            results, findings = fuzz(parser, seconds, Path(folder))
        for kind, content in findings.items():
            print(f"FINDING in {parser.name}: {kind}, {len(content)} bytes", flush=True)
            if len(content) <= _LONGEST:
                CORPUS.mkdir(exist_ok=True)
                (CORPUS / f"{parser.name.replace(' ', '_')}-{kind}").write_bytes(content)
        records.append({"parser": parser.name, "seconds": seconds, **results})
        print(records[-1], flush=True)
    RECORDS.write_text("".join(json.dumps(record) + "\n" for record in records))
    columns = ("read", "refused", "finding")
    rows = [(record["parser"], *(str(record.get(name, 0)) for name in columns)) for record in records]
    write_block(PAGE, "fuzz", as_markdown(("parser", "read", "refused", "findings"), rows))
    return int(any(record.get("finding") for record in records))


if __name__ == "__main__":
    sys.exit(main())
