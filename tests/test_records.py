"""Records of scores: what they refuse, that they survive a file, and that only equal protocols compare."""

import json
import math

import pytest

from ratlip_hf.evaluation import ScoreRecord, append_record, compare_records, read_records
from ratlip_hf.evaluation.records import check_place_for_records
from ratlip_hf.version import __version__

PROTOCOL = {"name": "kid_birds", "num_real": 3000, "num_fake": 3000, "resize": (64, 64), "seed": 0}
SCORES = {"kid": {"value": 0.25, "low": 0.2, "high": 0.3}}


def record(scores=SCORES, **changes) -> ScoreRecord:
    return ScoreRecord({**PROTOCOL, **changes}, {"model": "toy"}, scores)


def test_records_survive_a_file_and_compare_with_fresh_ones(tmp_path):
    append_record(tmp_path / "runs" / "results.jsonl", record())
    append_record(tmp_path / "runs" / "results.jsonl", record({"kid": {"value": 0.5}, "fid": {"value": 1.0}}))
    first, second = read_records(tmp_path / "runs" / "results.jsonl")
    assert first.environment["ratlip_hf"] == __version__ and "torch" in first.environment
    assert first.candidate == {"model": "toy"}
    assert compare_records(record(), first) == {"kid": (SCORES["kid"], SCORES["kid"])}
    assert compare_records(first, second) == {"kid": (SCORES["kid"], {"value": 0.5})}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_fake": 500}, r"differ: num_fake \(3000 against 500\)$"),
        ({"num_fake": 500, "seed": 1}, r"num_fake .*, seed \(0 against 1\)"),
        ({"ema": True}, r"ema \(not given against true\)"),
    ],
)
def test_scores_of_different_protocols_are_not_compared(changes, message):
    for pair in ((record(), record(**changes)), (record(**changes), record())):
        with pytest.raises(ValueError, match="do not compare"):
            compare_records(*pair)
    with pytest.raises(ValueError, match=message):
        compare_records(record(), record(**changes))


def test_the_environment_is_no_part_of_the_protocol():
    other = ScoreRecord(PROTOCOL, {"model": "other"}, SCORES, {"torch": "0.1"})
    assert compare_records(record(), other)
    with pytest.raises(ValueError, match="share no score"):
        compare_records(record(), record({"fid": {"value": 1.0}}))


def test_few_images_are_said():
    assert record().warnings() == record(num_real=0, num_fake=2048).warnings() == []
    assert [line[:23] for line in record(num_fake=2047).warnings()] == ["only 2047 generated ima"]
    assert len(record(num_real=100, num_fake=100).warnings()) == 2


@pytest.mark.parametrize(
    ("scores", "message"),
    [({}, "says nothing"), ({"kid": {"low": 1.0}}, "must have a value"), ({"kid": {"value": math.nan}}, "be finite")],
)
def test_records_that_say_nothing_are_refused(scores, message):
    with pytest.raises(ValueError, match=message):
        record(scores)


def test_a_protocol_without_its_numbers_is_refused():
    with pytest.raises(ValueError, match="needs name, num_real"):
        ScoreRecord({"num_fake": 1}, {}, SCORES)


@pytest.mark.parametrize("line", ["{", json.dumps({"scores": {}}), json.dumps([1])])
def test_a_line_that_is_no_record_is_named(tmp_path, line):
    append_record(tmp_path / "results.jsonl", record())
    with open(tmp_path / "results.jsonl", "a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match="line 2, is no record"):
        read_records(tmp_path / "results.jsonl")


def test_a_file_that_could_not_be_written_is_refused_beforehand(tmp_path):
    check_place_for_records(tmp_path / "new" / "results.jsonl")
    assert not any(tmp_path.iterdir())
    with pytest.raises(ValueError, match="is a folder"):
        check_place_for_records(tmp_path)
    (tmp_path / "notes.txt").write_text("no record")
    with pytest.raises(ValueError, match=r"notes\.txt"):
        check_place_for_records(tmp_path / "notes.txt")
    with pytest.raises(ValueError, match="cannot be written"):
        check_place_for_records(tmp_path / "notes.txt" / "results.jsonl")


def test_a_training_signal_is_pointed_out():
    own = {"clip_score_own_12345678": {"value": 30.0}}
    assert any("--eval_clip" in line for line in record(own).warnings())
    assert record({**own, "clip_score": {"value": 25.0}}).warnings() == []
