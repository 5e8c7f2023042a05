"""Acceptance files continue after a kill, and files of other measurements are refused."""

import gzip
from dataclasses import replace
from pathlib import Path

import pytest
from acceptance_samples import HEADER, record, view

from calibration.records.acceptance import RecordFile, RecordSet, Renewal, merged, read_acceptance
from calibration.records.counted import read_runs
from calibration.records.jsonl import RecordError, write_records

FIRST = record(view("snapkv", 64), alpha=0.8)
SECOND = record(view("snapkv", 64), alpha=0.7, index=1)


def write(path: Path, *found: object, header: dict[str, object] | None = None) -> None:
    with RecordFile(path, header or HEADER) as file:
        for one in found:
            file.append(one)  # type: ignore[arg-type]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write(tmp_path / "r.jsonl", FIRST, SECOND)
    assert read_acceptance(tmp_path / "r.jsonl").records == (FIRST, SECOND)
    packed = tmp_path / "r.jsonl.gz"
    packed.write_bytes(gzip.compress((tmp_path / "r.jsonl").read_bytes()))
    assert read_acceptance(packed).records == (FIRST, SECOND)


def test_a_killed_run_loses_its_last_line_and_continues(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    write(path, FIRST, SECOND)
    path.write_bytes(path.read_bytes()[:-40])
    assert read_acceptance(path).records == (FIRST,)
    with RecordFile(path, HEADER) as file:
        assert file.done == {(FIRST.window, FIRST.view)}
        file.append(SECOND)
    assert read_acceptance(path).records == (FIRST, SECOND)


def test_a_later_run_may_differ_in_time_and_command_only(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    write(path, FIRST)
    write(path, SECOND, header={**HEADER, "time": "later", "command": ["x"]})
    with pytest.raises(RecordError, match=r"measured with temperature 1\.0, but this run has 0\.5"):
        write(path, header={**HEADER, "temperature": 0.5})
    assert len(read_acceptance(path).records) == 2


@pytest.mark.parametrize(
    "rounds",
    [Renewal(4, 10.0, 1e-320, 3.0), Renewal(4, 10.0, 51.0, 3.0), Renewal(4, 10.0, 30.0, 6.0)],
)
def test_rounds_with_an_impossible_number_of_tokens_are_refused(
    tmp_path: Path, rounds: Renewal
) -> None:
    write(tmp_path / "r.jsonl", replace(FIRST, renewal=(rounds,)))
    with pytest.raises(RecordError, match=r"line 2: renewal of gamma=4: .* a round yields 1 to 5"):
        read_acceptance(tmp_path / "r.jsonl")


@pytest.mark.parametrize("content", [b"", b"hello\n", b'{"a": 1}\n', b"[1]\n", b"\xff\xfe\n"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(content)
    with pytest.raises(RecordError):
        read_acceptance(path)
    if content:
        with pytest.raises(RecordError):
            write(path)
        assert path.read_bytes() == content


def test_files_of_one_model_merge_and_others_do_not() -> None:
    one, two = RecordSet(HEADER, (FIRST,)), RecordSet({**HEADER, "texts": {"u": 1}}, (SECOND,))
    assert merged([one, two, one]).records == (FIRST, SECOND)
    with pytest.raises(RecordError, match="model is m and n"):
        merged([one, RecordSet({**HEADER, "model": "n"}, (SECOND,))])


def test_older_files_with_prefix_tokens_are_read(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    write(path, FIRST)
    text = path.read_text()
    assert '"context_tokens":' in text
    path.write_text(text.replace('"context_tokens":', '"prefix_tokens":'))
    assert read_acceptance(path).records == (FIRST,)


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ('"model":"m",', "", "line 1.*model"),
        ('"draft":"self"', '"draft":7', "line 1.*draft"),
        ('"scored_tokens":32', '"scored_tokens":1e999', "line 1"),
        ('"temperature":1.0', '"temperature":"hot"', "line 1.*temperature"),
        ('"policy":"snapkv"', '"policy":"snap"', "line 2.*policy"),
        ('"positions":"absolute"', '"positions":"other"', "line 2.*positions"),
    ],
)
def test_a_file_without_a_fact_that_is_used_is_refused(
    tmp_path: Path, old: str, new: str, place: str
) -> None:
    path = tmp_path / "r.jsonl"
    write(path, FIRST)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(RecordError, match=place):
        read_acceptance(path)


@pytest.mark.parametrize("accepted", [(), ((),), ((3,), ()), ((-1,),), ((5,),), ((10**400,),)])
def test_counts_of_no_round_or_above_gamma_are_refused(
    tmp_path: Path, accepted: tuple[tuple[int, ...], ...]
) -> None:
    run = {
        "text": "t", "context_tokens": 64, "windows": [0], "view": {"policy": "full"}, "gamma": 4,
        "temperature": 0.0, "seed": 1, "accepted": [[2, 4]],
    }  # fmt: skip
    path = tmp_path / "c.jsonl"
    write_records(path, {}, [{"counted": run}])
    assert read_runs(path)[0].tokens_per_round == 4.0
    write_records(path, {}, [{"counted": {**run, "accepted": accepted}}])
    with pytest.raises(RecordError, match="line 2: counted"):
        read_runs(path)
