"""Arrivals and lengths have the given moments, and recorded traces are read in all formats."""

from __future__ import annotations

import gzip
import itertools
import json
import re
from collections import Counter
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfmodel import ConfigError, Traffic
from perfmodel.serving import assumed_unit, lengths, recorded_acceptance
from perfmodel.serving.stats import Durations
from perfmodel.serving.timeline import Timeline
from perfmodel.serving.traces import FAILED, NO_ANSWER, first_rows, trace_rows

AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9955900,396,109\n"
)
AZURE_2024 = AZURE.replace("5900,374", "590+00:00,374").replace("5900,396", "590+00:00,396")
MOONCAKE = (
    '{"timestamp": 0, "input_length": 374, "output_length": 44, "hash_ids": [1]}\n'
    '{"timestamp": 4315, "input_length": 396, "output_length": 109, "hash_ids": [2]}\n'
)
BAILIAN = MOONCAKE.replace("4315", "4.315").replace('"hash_ids"', '"chat_id": 7, "hash_ids"')
BURSTGPT = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,374,44,418,Conversation log\n6,ChatGPT,80,0,80,API log\n"
    "9.315,GPT-4,396,109,505,Conversation log\n"
)
SPLITWISE = (
    "request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,token_size\n"
    "0,2,0,0.0,1,374,44\n1,2,0,4.315,1,396,109\n"
)
VIDUR = "arrived_at,num_prefill_tokens,num_decode_tokens\n0,374,44\n4.315,396,109\n"
ARRAY = "[\n" + MOONCAKE.replace("}\n{", "},\n{") + "]\n"
OWN = "arrival_s,prompt_tokens,output_tokens\n10,374,44\n14.315,396,109\n"


@pytest.mark.parametrize(
    "name, text",
    [
        ("a.csv", AZURE),
        ("b.csv", AZURE_2024),
        ("m.jsonl", MOONCAKE),
        ("m.json", ARRAY),
        ("m.json", ARRAY.replace("\n", "")),
        ("m", MOONCAKE),
        ("m.jsonl", BAILIAN),
        ("burst.csv", BURSTGPT),
        ("s.csv", SPLITWISE),
        ("v.csv", VIDUR),
        ("o.csv", OWN),
        ("o.csv", OWN.replace(",", ";")),
        ("o.tsv", OWN.replace(",", "\t")),
        ("o.csv", "\ufeff" + OWN.replace("\n", "\r\n")),
    ],
)
def test_every_trace_format_gives_the_same_requests(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    (first, second) = trace_rows(path)
    assert first[:3] == (0.0, 374, 44)
    assert second[:3] == (pytest.approx(4.315, abs=2e-6), 396, 109)
    (chunk,) = Traffic(requests=None, path=str(path)).chunks(0)
    assert chunk.prompt_tokens.tolist() == [374, 396]


def test_sharegpt_conversations_are_counted_in_characters_and_arrivals_drawn(
    tmp_path: Path,
) -> None:
    path = tmp_path / "s.jsonl"
    turns = '[{"from": "human", "value": "12345678"}, {"from": "gpt", "value": "1234"}]'
    path.write_text(f'{{"id": "x", "conversations": {turns}}}\n' * 3)
    (chunk,) = Traffic(requests=None, path=str(path), rate=2.0).chunks(0)
    assert chunk.prompt_tokens.tolist() == [2, 2, 2] and chunk.output_tokens.tolist() == [1, 1, 1]
    assert np.all(np.diff(chunk.arrival_s) > 0)


def turns(*texts: str, start: str = "human") -> str:
    """A ShareGPT conversation in which the speakers take turns."""
    speakers = ["human", "gpt"] if start == "human" else ["gpt", "human"]
    said = [{"from": speakers[i % 2], "value": text} for i, text in enumerate(texts)]
    return json.dumps({"id": "x", "conversations": said})


@pytest.mark.parametrize("array", [False, True])
def test_the_first_question_with_an_answer_counts(tmp_path: Path, array: bool) -> None:
    rows = [
        turns("12345678", "1234"),
        turns(),
        turns("a question without an answer"),
        turns("an answer that no one asked for", "12345678", "1234", start="gpt"),
        json.dumps({"conversations": [{"from": "system", "value": "be kind"}]}),
    ]
    path = tmp_path / "s.json"
    path.write_text("[\n" + ",\n".join(rows) + "\n]" if array else "\n".join(rows))
    skipped: Counter[str] = Counter()
    assert [row[:3] for row in trace_rows(path, skipped)] == [(None, 2, 1)] * 2
    assert skipped == {NO_ANSWER: 3}


def test_system_turns_before_the_question_are_part_of_the_prompt(tmp_path: Path) -> None:
    said = json.loads(turns("12345678", "1234", "5678", "9"))
    said["conversations"].insert(0, {"from": "system", "value": "s" * 400})
    said["conversations"].insert(3, {"from": "system", "value": "later"})
    path = tmp_path / "s.json"
    path.write_text(json.dumps([said]))
    assert [row[:3] for row in trace_rows(path)] == [(None, 102, 1)]


def test_requests_that_failed_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "burst.csv"
    path.write_text(BURSTGPT + "11,ChatGPT,5,0,5,API log\n12,ChatGPT,5.0,7,12,API log\n")
    skipped: Counter[str] = Counter()
    (chunk,) = Traffic(requests=None, path=str(path)).chunks(0, skipped)
    assert chunk.prompt_tokens.tolist() == [374, 396, 5] and skipped == {FAILED: 2}
    path.write_text("\n".join(BURSTGPT.splitlines()[::2]))
    with pytest.raises(ConfigError, match=r"no requests; left out: 1 with 0 response"):
        list(Traffic(requests=None, path=str(path)).chunks(0))


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


def test_a_compressed_trace_is_read(tmp_path: Path) -> None:
    path = tmp_path / "o.csv.gz"
    path.write_bytes(gzip.compress(OWN.encode()))
    assert [row[1:3] for row in trace_rows(path)] == [(374, 44), (396, 109)]
    path.write_bytes(gzip.compress(OWN.encode())[:-20])
    with pytest.raises(ConfigError):
        list(trace_rows(path))


@pytest.mark.parametrize("text, block", [(MOONCAKE, 512), (BAILIAN, 16), (ARRAY, 512)])
def test_the_blocks_of_prompts_are_read(tmp_path: Path, text: str, block: int) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(text)
    assert [(row.blocks, row.block_tokens) for row in trace_rows(path)] == [
        ((1,), block), ((2,), block)
    ]  # fmt: skip
    (chunk,) = Traffic(requests=None, path=str(path)).chunks(0)
    assert chunk.blocks == ((1,), (2,)) and chunk.block_tokens == block
    with pytest.raises(ConfigError, match="remove prefix_hit_rate"):
        next(Traffic(requests=None, path=str(path), prefix_hit_rate=0.5).chunks(0))
    lengths_only = tmp_path / "o.csv"
    lengths_only.write_text(OWN)
    (chunk,) = Traffic(requests=None, path=str(lengths_only), prefix_hit_rate=0.5).chunks(0)
    assert chunk.blocks is None


@pytest.mark.parametrize(
    "text",
    [
        MOONCAKE.replace("[1]", "[1, 3]"),  # a prompt of 374 tokens has one block
        MOONCAKE.replace("[1]", '["a"]'),
        MOONCAKE.replace("[1]", "[true]"),
        MOONCAKE.replace("[1]", "{}"),
        "timestamp,input_length,output_length,hash_ids\n0,374,44,x",
        "timestamp,input_length,output_length,hash_ids\n0,374,44," + "[" * 100_000,
        '{"timestamp": 30.5, "input_length": 1, "output_length": 1}',
        '{"timestamp": 30.5, "input_length": 1, "output_length": 1, "hash_ids": [1]}',
        "TIMESTAMP,ContextTokens,GeneratedTokens\n12,1,1",
        "arrival_s,prompt_tokens,output_tokens\n0,1_0,1",
        "arrival_s,prompt_tokens,output_tokens\n0,\uff18,1",
        "arrival_s,prompt_tokens,output_tokens\n0,1e9,1",
        "arrival_s,prompt_tokens,output_tokens\n0,1.000,1",  # 1 or 1,000
        "arrival_s;prompt_tokens;output_tokens\n0;1;32.000",
        "arrival_s;prompt_tokens;output_tokens\n0;1.234.567;1",
        '{"arrival_s": 0, "prompt_tokens": "128.000", "output_tokens": 1}',
        "arrival_s,arrival_s,prompt_tokens,output_tokens\n0,0,1,1",
        '{"arrival_s": 0, "prompt_tokens": true, "output_tokens": 1}',
        '{"arrival_s": 0, "prompt_tokens": [1], "output_tokens": 1}',
        '{"arrival_s": 0, "prompt_tokens": NaN, "output_tokens": 1}',
        '{"conversations": "hello"}',
        '{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": 3}]}',
        '[{"arrival_s": 0, "prompt_tokens": 1, "output_tokens": 1}, 3]',
        '[{"arrival_s": 0, "prompt_tokens": 1, "output_tokens": 1}',
        '[{"arrival_s": 0, "prompt_tokens": 1, "output_tokens": 1}]\n[{"arrival_s": 1}]',
        "arrival_s,prompt_tokens,input_length,output_tokens\n0,600,900,44",
        "arrival_s,Timestamp,prompt_tokens,output_tokens\n0,99,600,44",
        "Timestamp,Request tokens,Response tokens,Total tokens\n0,600,44,9999",
        AZURE_2024 + AZURE.splitlines()[-1].replace(":50", ":59"),
        "[" * 100_000,
        "x" * 200_000 + ",y\n1,2",
    ],
)
def test_what_cannot_be_understood_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "trace"
    path.write_text(text + "\n")
    with pytest.raises(ConfigError) as error:
        list(trace_rows(path))
    assert len(str(error.value)) - len(str(path)) < 200


@given(st.text() | st.recursive(st.none() | st.floats() | st.text(), st.lists).map(json.dumps))
def test_any_text_is_a_trace_or_refused(text: str) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "trace"
        path.write_text(text, encoding="utf-8", errors="replace")
        with suppress(ConfigError):
            list(trace_rows(path))


@pytest.mark.parametrize(
    "text, says",
    [
        ("arrival_s,prompt_tokens,output_tokens\n0,1,1\n0,x,1\n", "line 3: .*x"),
        (MOONCAKE.replace("396", "7322"), "line 2: hash_ids has 1 .* has 15 blocks of 512"),
        (MOONCAKE.replace("[2]", "[2, 3]"), "line 2: hash_ids has 2 .* has 1 blocks of 512"),
        ("arrival_s,prompt_tokens,output_tokens\n5,1,1\n4,1,1\n", "line 3 is earlier"),
        ("arrival_s,prompt_tokens\n0,1\n", "no column output_tokens"),
        ("arrival_s,prompt_tokens,output_tokens\n0,0,1\n", "at least 1"),
        ("arrival_s,prompt_tokens,output_tokens\n0,1\n", "2 cells, .* 3"),
        ("arrival_s,prompt_tokens,output_tokens\nnan,1,1\n", "line 2: .*nan"),
        ("arrival_s,prompt_tokens,output_tokens\n", "no requests"),
        ("arrival_s,prompt_tokens,output_tokens\n-5,1,1\n", "line 2: .*negative"),
        ("arrival_us,prompt_tokens,output_tokens\n0,1,1\n", "line 2: .*unit of .*arrival_us"),
        ("arrival_ms,prompt_tokens,output_tokens\n-1,1,1\n", "line 2: .*negative"),
        ("arrival_s,arrival_ms,prompt_tokens,output_tokens\n0,0,1,1\n", "line 2: .*two columns"),
        ("arrived_at_us,prompt_tokens,output_tokens\n0,1,1\n", "line 2: .*arrived_at_us"),
        ("start_time,prompt_tokens,output_tokens\n0,1,1\n", "line 2: .*start_time"),
    ],
)
def test_an_invalid_trace_is_refused_with_the_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says):
        list(Traffic(requests=None, path=str(path)).chunks(0))


def test_a_missing_trace_and_an_invalid_acceptance_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        list(trace_rows(tmp_path / "none.csv"))
    path = tmp_path / "a.txt"
    path.write_text("3\n-1\n")
    with pytest.raises(ConfigError, match="line 2"):
        recorded_acceptance(path)
    path.write_text("3\n0\n")
    assert recorded_acceptance(path) == (3, 0)


@pytest.mark.parametrize("kind", ["poisson", "bursty", "regular"])
def test_the_mean_rate_is_as_given(kind: str) -> None:
    traffic = Traffic(requests=100_000, rate=50.0, arrivals=kind, burst_s=2.0)
    times = np.concatenate([chunk.arrival_s for chunk in traffic.chunks(3)])
    assert times.size == 100_000 and np.all(np.diff(times) >= 0)
    assert times.size / times[-1] == pytest.approx(50.0, rel=0.06)
    counts = np.bincount(times.astype(int))[:-1]
    dispersion = counts.var() / counts.mean()
    expected = {"poisson": (0.9, 1.1), "bursty": (10.0, 60.0), "regular": (0.0, 0.1)}[kind]
    assert expected[0] <= dispersion <= expected[1]


def test_lengths_have_their_mean_and_spread() -> None:
    drawn = lengths(np.random.default_rng(0), 500, 1.5, 200_000)
    assert drawn.mean() == pytest.approx(500, rel=0.02)
    assert drawn.std() / drawn.mean() == pytest.approx(1.5, rel=0.1)
    assert set(lengths(np.random.default_rng(0), 500, 0.0, 9)) == {500}


def test_eos_shortens_outputs_with_the_given_probability() -> None:
    (chunk,) = Traffic(requests=8000, output_tokens=10_000, eos=0.01).chunks(0)
    assert chunk.output_tokens.mean() == pytest.approx(100, rel=0.05)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.999, 1.0])
def test_a_quantile_is_the_shortest_duration_that_its_share_does_not_exceed(share: float) -> None:
    values = np.random.default_rng(0).lognormal(-3, 2, 1000)
    quantile = Durations(values).quantile_s(share)
    assert quantile in values
    assert np.mean(values <= quantile) >= share > np.mean(values < quantile)


def test_the_standard_error_is_the_spread_of_means() -> None:
    rng = np.random.default_rng(0)
    runs = [Durations(rng.exponential(2.0, 400)) for _ in range(2000)]
    means = np.array([run.mean_s for run in runs])
    assert means.std() == pytest.approx(runs[0].standard_error_s, rel=0.1)


def test_statistics_of_no_durations_are_nan() -> None:
    empty = Durations(np.zeros(0))
    assert empty.count == 0
    for value in (empty.mean_s, empty.standard_error_s, empty.most_s, empty.quantile_s(0.5)):
        assert np.isnan(value)


def test_a_timeline_keeps_its_size_and_its_sums() -> None:
    timeline, clock, rng = Timeline(spans=16, span_s=0.5), 0.0, np.random.default_rng(0)
    spent = 0.0
    for seconds in rng.exponential(3.0, 500):
        timeline.add(clock, float(seconds), 4, 0.5, 2, 10.0)
        spent += float(seconds)
        clock += 1.5 * float(seconds)
    rows = timeline.rows(clock)
    assert len(rows) <= 16
    assert sum(row["busy_share"] for row in rows) * timeline.span_s == pytest.approx(spent)
    assert sum(row["tokens_per_s"] for row in rows) * timeline.span_s == pytest.approx(5000)
    assert {round(row["batch"], 9) for row in rows} == {4.0}


def test_the_first_requests_are_those_of_the_file_also_after_it_changed(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("Timestamp,Request tokens,Response tokens\n0,5,0\n1,9,2\n2,7,0\n3,8,4\n")
    for requests in (1, 2, 2, 3, 200_000):
        counted, kept = Counter[str](), Counter[str]()
        read = list(itertools.islice(trace_rows(path, counted), requests))
        assert list(first_rows(path, requests, kept)) == read
        assert kept == counted
    path.write_text("prompt_tokens,output_tokens\n5,6\n")
    assert [row[:3] for row in first_rows(path, 2)] == [(None, 5, 6)]
    path.unlink()
    with pytest.raises(ConfigError, match=r"t\.csv"):
        first_rows(path, 2)
