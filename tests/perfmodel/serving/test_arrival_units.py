"""The unit of a trace's arrivals is read, said where it is assumed, or asked for."""

import json
import re
from pathlib import Path

import pytest

from perfmodel import ConfigError
from perfmodel.serving import assumed_unit
from perfmodel.serving.traces import trace_rows

OWN = "arrival_s,prompt_tokens,output_tokens\n10,374,44\n14.315,396,109\n"


def stamped(name: str, *stamps: object) -> str:
    """Requests with these arrivals and blocks."""
    rows = ({name: stamp, "input_length": 1, "output_length": 1, "hash_ids": [1]}
            for stamp in stamps)  # fmt: skip
    return "\n".join(map(json.dumps, rows))


@pytest.mark.parametrize(
    "stamps",
    [
        (0, 30, 61),
        (0.0, 30.0, 61.0),
        ("0.0", "3000.0"),
        (1_760_000_000, 1_760_000_030),
        (0, 0, 45),
        tuple(range(200)),
    ],
)
def test_seconds_are_not_read_as_milliseconds(tmp_path: Path, stamps: tuple[object, ...]) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(stamped("timestamp", *stamps))
    with pytest.raises(ConfigError, match="arrival_s if it is in seconds, or to arrival_ms"):
        next(trace_rows(path))
    for name, unit in (("arrival_s", 1.0), ("arrival_ms", 1e-3)):
        path.write_text(stamped(name, *stamps))
        first, *_, last = trace_rows(path)
        span = unit * (float(str(stamps[-1])) - float(str(stamps[0])))
        assert (first.arrival_s, last.arrival_s) == (0.0, pytest.approx(span))


@pytest.mark.parametrize(
    "stamps",
    [(27482, 30535, 30535), (0, 0, 0), (5,), (0, 0, 3000, 3052), tuple(range(0, 40_000, 150)),
     (1_760_000_000_000, 1_760_000_000_900)],
)  # fmt: skip
def test_milliseconds_of_mooncake_are_read(tmp_path: Path, stamps: tuple[int, ...]) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(stamped("timestamp", *stamps))
    arrivals = [row.arrival_s for row in trace_rows(path)]
    assert arrivals == pytest.approx([1e-3 * (stamp - stamps[0]) for stamp in stamps])


UNKNOWN = (
    "ts", "time", "created_at", "createdAt", "time_ms", "Date", "start_time", "sent_at", "offset_s",
    "submitted_at", "begin_time", "issue_time_ms", "second", "arrival_us", "arrival_min",
)  # fmt: skip


@pytest.mark.parametrize("name", UNKNOWN)
@pytest.mark.parametrize("date", ["2026-11-16 18:15:{:02}", "2026-11-16T18:15:{:02}.000Z"])
def test_dates_in_any_column_of_arrivals_are_read(tmp_path: Path, name: str, date: str) -> None:
    path = tmp_path / "o.csv"
    rows = [f"{date.format(second)},100,3" for second in (1, 5, 31)]
    path.write_text("\n".join([f"{name},prompt_tokens,output_tokens", *rows]))
    assert [row.arrival_s for row in trace_rows(path)] == pytest.approx([0.0, 4.0, 30.0])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("delay,prompt_tokens,output_tokens\n5,1,1\n", "'delay' has times between requests"),
        ("gap_ms,prompt_tokens,output_tokens\n5,1,1\n", "times between"),
        ("inter_arrival_s,prompt_tokens,output_tokens\n5,1,1\n", "times between"),
        ("created_at,prompt_tokens,output_tokens\n2026-05-01,1,1\n", "unit of column"),
        ("created_at,prompt_tokens,output_tokens\n05/01/2026 10:00:00,1,1\n", "or a date"),
        ("time,prompt_tokens,output_tokens\n10:00:00,1,1\n", "not a number of seconds or a date"),
        ("created_at,sent_at,prompt_tokens,output_tokens\n2026-05-01 01:00:00,2026-05-01 01:00:01,"
         "1,1\n", "created_at and sent_at both have dates"),
        ("arrived_at,num_prefill_tokens,num_decode_tokens\n0,1,1\n30000,1,1\n", "in 30,000 s"),
        ('{"chat_id": 1, "timestamp": 61114, "input_length": 1, "output_length": 1}\n'
         '{"chat_id": 2, "timestamp": 91114, "input_length": 1, "output_length": 1}\n',
         "as seconds, timestamp gives one request in 30,000 s"),
        ('{"arrival_s": 0, "prompt_tokens": 1, "output_tokens": 1}\n'
         '{"prompt_tokens": 1, "output_tokens": 1}\n', "some requests have an arrival"),
        ('{"time": 1, "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": '
         '"b"}]}\n', "unit of column 'time'"),
    ],
)  # fmt: skip
def test_arrivals_that_are_not_clear_are_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "o.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says):
        list(trace_rows(path))


@pytest.mark.parametrize("name", UNKNOWN)
def test_arrivals_of_an_unknown_unit_are_not_replaced_by_drawn_ones(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / "o.csv"
    path.write_text(OWN.replace("arrival_s", name))
    with pytest.raises(ConfigError, match=f"unit of column '{name}' is unknown; rename it"):
        next(trace_rows(path))


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        (stamped("timestamp", 0, 60, 125, 300), "timestamp in .* is read as ms; if it is in s"),
        (stamped("timestamp", 0, 60).replace("hash_ids", "chat_id"), "is read as s; .* arrival_ms"),
        ("Timestamp,Request tokens,Response tokens\n5,9,9\n", "Timestamp in .* is read as s;"),
        ("arrival_s,prompt_tokens,output_tokens\n5,9,9\n", "^$"),
        ("arrival_ms,prompt_tokens,output_tokens\n5,9,9\n", "^$"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,9,9\n", "^$"),
        ("prompt_tokens,output_tokens\n9,9\n", "^$"),
    ],
)
def test_the_unit_of_arrivals_is_said_unless_the_column_says_it(
    tmp_path: Path, text: str, unit: str
) -> None:
    path = tmp_path / "trace"
    path.write_text(text)
    assert re.search(unit, assumed_unit(path))
