"""Recorded traces of every format are read, or refused with the line."""

import gzip
import itertools
import json
from collections import Counter
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfmodel import ConfigError, Traffic
from perfmodel.serving import recorded_acceptance
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
