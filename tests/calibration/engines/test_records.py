"""Files of engine records: reading returns what was written; mixed engines are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from engine_samples import HEADER, a_plan, records_of

from calibration.engines.fitting.groups import grouped
from calibration.engines.reading import read_engine_records
from calibration.engines.records import EngineRecords, FailedPoint, PointRecord
from calibration.engines.undisturbed import repeat_seconds
from calibration.records.jsonl import RecordError, write_records
from perfmodel import catalog
from perfmodel.catalog.engines import engine_profile


@pytest.fixture(scope="module")
def known() -> EngineRecords:
    return records_of(a_plan(minutes=12.0))[0]


def written(path: Path, known: EngineRecords, **header: Any) -> Path:
    failed = FailedPoint(point=known.points[0].point, reason="out of memory")
    write_records(path, HEADER | header, [*known.starts, failed, *known.points])
    return path


def test_records_are_read_as_they_were_written(known: EngineRecords, tmp_path: Path) -> None:
    read = read_engine_records([written(tmp_path / "a.jsonl", known)])
    assert (read.points, read.starts) == (known.points, known.starts)
    assert (read.engine, read.version, read.gpu, read.name) == (
        "vllm",
        "0.26.0",
        "h200",
        "vllm-0.26",
    )
    assert read.failed[0].reason == "out of memory"
    assert read.facts("plain")["async_scheduling"] is True and read.facts("mtp") == {}


def test_the_repeats_of_a_point_that_was_timed_several_times_are_pooled(
    known: EngineRecords, tmp_path: Path
) -> None:
    """The median of all different repeats, in one file or in several, as of one record."""
    first = replace(known.points[0], all_seconds=(1.0, 1.0, 1.4), seconds=1.0)
    again = replace(first, all_seconds=(1.2, 1.4, 1.6), seconds=1.4)
    one, two = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    write_records(one, HEADER, [first, *known.points[1:], again])
    write_records(two, HEADER, [again])
    for paths, seconds in (([one], 1.3), ([one, two], 1.3), ([two, one], 1.3), ([two], 1.4)):
        read = read_engine_records(paths)
        point = next(r for r in read.points if r.point.id == first.point.id)
        assert point.seconds == pytest.approx(seconds) and not read.notes
        assert len(read.points) == (1 if paths == [two] else len(known.points))


def test_records_that_contradict_each_other_are_noted(known: EngineRecords, tmp_path: Path) -> None:
    """All repeats of one are longer than all of the other."""
    first = replace(known.points[0], all_seconds=(0.010, 0.011), seconds=0.0105)
    again = replace(first, all_seconds=(0.014, 0.015), seconds=0.0145)
    write_records(tmp_path / "a.jsonl", HEADER, [first, *known.points[1:], again])
    (note,) = read_engine_records([tmp_path / "a.jsonl"]).notes
    assert note.startswith(first.point.id) and "10.5 to 14.5 ms" in note


def windowed(record: PointRecord, *windows: tuple[float, ...]) -> PointRecord:
    """The record with windows of its repeats, and the times that follow from them."""
    kept, disturbed = repeat_seconds(windows)
    times = {"seconds": median(kept), "all_seconds": kept, "disturbed": disturbed}
    return replace(record, **times, windows_s=windows)  # type: ignore[arg-type]


def test_the_windows_of_a_point_that_was_timed_several_times_are_pooled(
    known: EngineRecords, tmp_path: Path
) -> None:
    """A record that was disturbed throughout does not count beside one that was not."""
    slow = windowed(known.points[0], (0.018, 0.02), (0.019, 0.019))
    fast = windowed(known.points[0], (0.010, 0.011), (0.018, 0.011))
    assert (slow.disturbed_share, fast.disturbed_share) == (0.0, 0.25)
    one, two = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    write_records(one, HEADER, [slow, *known.points[1:]])
    write_records(two, HEADER, [fast])
    assert read_engine_records([one]).points[0] == slow
    for paths in ([one, two], [two, one], [one, two, two]):
        read = read_engine_records(paths)
        point = next(r for r in read.points if r.point.id == slow.point.id)
        assert (
            point.all_seconds == pytest.approx((0.0105, 0.011)) and point.disturbed_share == 5 / 8
        )
        assert point.seconds == pytest.approx(0.01075)
        assert point.disturbed == pytest.approx((0.019, 0.019))
        (note,) = read.notes
        assert "10.8 to 19 ms" in note and "the median of all undisturbed repeats" in note


def test_records_without_windows_are_left_out_beside_one_with_windows(
    known: EngineRecords, tmp_path: Path
) -> None:
    old = replace(known.points[0], all_seconds=(0.02, 0.02), seconds=0.02)
    new = windowed(known.points[0], (0.010, 0.011), (0.018, 0.011))
    for name, rows in (("a", [old, new]), ("b", [new, old])):
        write_records(tmp_path / f"{name}.jsonl", HEADER, rows)
        read = read_engine_records([tmp_path / f"{name}.jsonl"])
        assert read.points == (new,)
        (note,) = read.notes
        assert note.startswith(new.point.id) and "those without are left out" in note


@pytest.mark.parametrize(
    "changes",
    [
        {"all_seconds": (0.0105, 0.0105), "seconds": 0.0105},
        {"all_seconds": (0.0105,), "seconds": 0.0105},
        {"disturbed": (0.018,)},
    ],
)
def test_times_that_do_not_follow_from_their_windows_are_refused(
    known: EngineRecords, tmp_path: Path, changes: dict[str, Any]
) -> None:
    record = windowed(known.points[0], (0.010, 0.011), (0.018, 0.011))
    write_records(tmp_path / "a.jsonl", HEADER, [record, replace(record, **changes)])
    with pytest.raises(RecordError, match=r"line 3: all_seconds and disturbed are not the means"):
        read_engine_records([tmp_path / "a.jsonl"])


@pytest.mark.parametrize("rounds", [1e-9, 1.0, 17.0, 16.01, 160.0, 1e9])
def test_rounds_that_are_not_those_of_the_windows_are_refused(
    known: EngineRecords, tmp_path: Path, rounds: float
) -> None:
    """A sequence that has grown by 32 tokens on average has grown by at most 64, one per round."""
    plain = next(r for r in known.points if r.point.setup.gamma == 0)
    assert plain.context_tokens == plain.point.prompt_tokens + 32
    record = replace(windowed(plain, (0.010, 0.011), (0.018, 0.011)), rounds=16.0)
    write_records(tmp_path / "a.jsonl", HEADER, [record, replace(record, rounds=rounds)])
    with pytest.raises(RecordError, match=r"line 3: rounds=.* windows_s, which has a mean of 2 "):
        read_engine_records([tmp_path / "a.jsonl"])


def test_each_fitted_point_whose_repeats_never_agree_is_noted(
    known: EngineRecords, tmp_path: Path
) -> None:
    """They differ by more than a factor of 1.5, or one is not positive; others are not noted."""
    every = {(0.01, 0.01, 0.0149): "", (0.01, 0.01, 0.0151): "10 to 15.1 ms"}
    every |= {(0.01, 0.02, 0.04, 0.09, 0.02, -0.01): "-10 to 90 ms"}
    rows = [
        replace(record, all_seconds=seconds, seconds=median(seconds))
        for record, seconds in zip(known.fitted, every, strict=False)
    ]
    held = replace(known.held_back[0], all_seconds=(0.01, 0.02, 0.03), seconds=0.02)
    write_records(tmp_path / "a.jsonl", HEADER, [*rows, held])
    notes = read_engine_records([tmp_path / "a.jsonl"] * 2).notes
    assert len(notes) == 2
    for note, row, ends in zip(notes, rows[1:], list(every.values())[1:], strict=True):
        assert note.startswith(f"{row.point.id} is fitted with less weight, ") and ends in note
        assert note.endswith(
            "time it again with the same flags and another --out, and fit both files"
        )
    profile = engine_profile("kernels", catalog.gpu(known.gpu))
    first, *others = (grouped([row], known.gpu)[0].errors(profile).item() for row in rows)
    assert min(others) > first  # the weight is that of its inverse


def test_a_file_given_twice_changes_nothing(known: EngineRecords, tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", known)
    assert read_engine_records([path, path]).points == known.points


def test_windows_to_check_count_if_no_fitted_file_has_loops(
    known: EngineRecords, tmp_path: Path
) -> None:
    """And a point of several files is of the host of the file whose windows count."""
    quiet = replace(windowed(known.points[0], (0.010, 0.011)), loop_s=(1e-3, 1e-3), rounds=16.0)
    fit, check = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    write_records(fit, HEADER, known.points[1:])
    write_records(check, HEADER, [quiet])
    read = read_engine_records([fit], check=[check])
    assert read.points[-1].windows_s == quiet.windows_s and not read.notes
    write_records(fit, HEADER, known.points)
    for paths, host in (([check, fit], 0), ([fit, check], 1)):
        assert read_engine_records(paths).hosts[quiet.point.id] == host


def test_a_point_that_one_file_holds_back_is_held_back(
    known: EngineRecords, tmp_path: Path
) -> None:
    """In either order of the files, with a note."""
    fitted = known.fitted[0]
    other = replace(fitted, point=replace(fitted.point, held_back=True), prefill_s=1.0)
    one, two = written(tmp_path / "a.jsonl", known), tmp_path / "b.jsonl"
    write_records(two, HEADER, [other])
    for paths in ([one, two], [two, one]):
        read = read_engine_records(paths)
        assert {r.point.id for r in read.held_back} == {
            *(r.point.id for r in known.held_back),
            fitted.point.id,
        }
        (note,) = read.notes
        assert note.startswith(fitted.point.id) and "held back in all" in note


def test_points_to_check_are_held_back_unless_they_are_fitted(
    known: EngineRecords, tmp_path: Path
) -> None:
    fit, check = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    new, *rest = known.fitted
    write_records(fit, HEADER, [*rest, *known.held_back])
    write_records(check, HEADER, [new, rest[0], known.held_back[0]])
    both = read_engine_records([fit], check=[check])
    assert both.fitted == rest
    assert {r.point.id for r in both.held_back} == {
        new.point.id,
        *(r.point.id for r in known.held_back),
    }
    (note,) = both.notes
    assert note.startswith(f"{rest[0].point.id} is fitted") and "left out" in note
    with pytest.raises(RecordError, match="no timed point"):
        read_engine_records([], check=[check])


@pytest.mark.parametrize(
    "header, message",
    [
        ({"version": "0.27.0"}, "'0.27.0' differs from '0.26.0'"),
        ({"gpu": "NVIDIA L40S"}, "fit each of them separately"),
        ({"engine": ""}, "does not state 'engine'"),
        ({"engine": "../../evil"}, "line 1: engine '../../evil' is not a plain name"),
        ({"version": "1/2"}, "version '1/2' is not a plain name"),
        ({"version": 26}, "version 26 is not a plain name"),
    ],
)
def test_files_of_several_engines_are_refused(
    known: EngineRecords, tmp_path: Path, header: dict[str, str], message: str
) -> None:
    paths = [written(tmp_path / "a.jsonl", known), written(tmp_path / "b.jsonl", known, **header)]
    with pytest.raises(RecordError, match=message):
        read_engine_records(paths)


def test_files_that_were_appended_are_read_as_several(known: EngineRecords, tmp_path: Path) -> None:
    first, *texts = (
        written(tmp_path / "a.jsonl", known, **header).read_text()
        for header in ({}, {"time": "later"}, {"version": "0.23.0"}, {"gpu": "NVIDIA L40S"})
    )
    both = tmp_path / "both.jsonl"
    both.write_text(first + texts[0])
    assert read_engine_records([both]).points == known.points
    for text in texts[1:]:
        both.write_text(first + text)
        line = 1 + len(first.splitlines())
        with pytest.raises(RecordError, match=rf"both\.jsonl, line {line}: .* fit each of them"):
            read_engine_records([both])


@pytest.mark.parametrize(
    "more, message",
    [
        ({"all_seconds": ()}, "all_seconds="),
        ({"all_seconds": (-1.0, 5.0), "seconds": 2.0}, "not positive for the most part"),
        ({"all_seconds": (-0.01,) * 3}, "not positive for the most part"),
        ({"all_seconds": (0.01,) * 3, "seconds": 1.0}, "is not the median 0.01 of all_seconds"),
        ({"windows_s": ((),)}, "windows_s"),
        ({"context_tokens": 1.0}, "context_tokens=1 is less than the prompt"),
        ({"tokens_per_round": 99.0}, "tokens_per_round=99 is not from 1 to gamma"),
        ({"batch": 10**9}, "batch=1000000000 is not valid"),
    ],
)
def test_a_record_that_contradicts_itself_is_refused_with_its_line(
    known: EngineRecords, tmp_path: Path, more: dict[str, Any], message: str
) -> None:
    record = known.points[0]
    if "batch" in more:
        wrong = replace(record, point=replace(record.point, **more))
    else:
        wrong = replace(record, **more)
    write_records(tmp_path / "a.jsonl", HEADER, [record, wrong])
    with pytest.raises(RecordError, match=r"a\.jsonl, line 3: .*" + message):
        read_engine_records([tmp_path / "a.jsonl"])


def test_one_disturbed_repeat_is_accepted(known: EngineRecords, tmp_path: Path) -> None:
    """A repeat is the difference of two runs, and can be negative; the median remains valid."""
    record = replace(known.points[0], all_seconds=(-0.01, 0.02, 0.03), seconds=0.02)
    write_records(tmp_path / "a.jsonl", HEADER, [record])
    assert read_engine_records([tmp_path / "a.jsonl"]).points == (record,)


def test_an_unknown_line_is_refused_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_records(path, HEADER, [{"op": "gemm", "seconds": 1.0}])
    with pytest.raises(RecordError, match=r"a\.jsonl, line 2: unknown operation 'gemm'"):
        read_engine_records([path])


def test_a_file_without_a_timed_point_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_records(path, HEADER, [])
    with pytest.raises(RecordError, match="no timed point"):
        read_engine_records([path])


def test_a_device_that_contradicts_the_name_of_the_gpu_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for name, refused in (("h200", False), ("b200", True), ("my-gpu.toml", False)):
        write_records(path, HEADER | {"gpu": "NVIDIA H200", "gpu_name": name}, [])
        with pytest.raises(RecordError) as error:
            read_engine_records([path])
        assert ("line 1 was measured on 'NVIDIA H200', not on b200" in str(error.value)) == refused
