"""`specroof simulate` and `recommend --traffic` from the command line."""

import csv
import json
import re
import shlex
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from app.charts.simulation import ROWS, timeline
from app.cli.main import run
from app.cli.recorded_requests import for_traffic

SPECULATING = ["--draft", "self", "--tp", "8", "--acceptance", "0.85"]
TRAFFIC = ["--traffic", str(Path(__file__).parent / "traffic.csv")]


def result_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert run([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_same_seed_prints_the_same_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["simulate", *SPECULATING, "--rate", "3", "--requests", "50", "--schedule"]
    texts = []
    for seed in ("4", "4", "5"):
        assert run([*arguments, "--json", "--seed", seed]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]


def test_equal_lengths_at_a_fixed_batch_match_the_closed_form(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Within 5 %: caches grow here, and the closed form is at the prompt length."""
    result = result_of(capsys, "simulate", *SPECULATING, "--gamma", "3", "--batch", "128")
    assert result["gains"][0]["tpot"] == pytest.approx(result["closed_form_speedup"], rel=0.05)


def test_all_requests_of_a_trace_are_simulated(capsys: pytest.CaptureFixture[str]) -> None:
    result = result_of(capsys, "simulate", *SPECULATING, *TRAFFIC, "--schedule")
    assert [r["label"] for r in result["runs"]] == ["no speculation", "gamma 4", "schedule"]
    for played in result["runs"]:
        assert (played["requests"], played["output_tokens"]) == (3, 620)


def test_without_flags_one_short_line_says_what_is_needed_and_what_to_try(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["simulate"]) == 3
    line = capsys.readouterr().err
    flags = re.findall(r"try `(.*)`$", line.strip())[0].split()
    assert len(line) < 200 and line.count("\n") == 1
    assert len(re.findall(r"[\d.]+ [GM]B", line)) == 6  # needed, available and four terms
    assert run(["simulate", *flags, "--requests", "2"]) == 0


@pytest.mark.parametrize(
    ("command", "drawn"),
    [
        (["simulate"], True),
        (["simulate", "--rate", "2"], False),
        (["simulate", "--arrivals", "at-once"], False),
        (["recommend", "--draft-policy", "streamingllm", "--kv-budget", "64"], True),
    ],
)
def test_arrivals_that_a_trace_does_not_have_are_said_to_be_drawn(
    command: list[str], drawn: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in ("", '"arrival_s": 0, '):
        path = tmp_path / "trace.jsonl"
        path.write_text(f'{{{text}"prompt_tokens": 90, "output_tokens": 9}}\n')
        if text and {"--rate", "--arrivals"} & {*command}:
            continue  # --rate and --arrivals contradict recorded arrivals
        notes = result_of(capsys, *command, *SPECULATING, "--traffic", str(path))["notes"]
        assert any("no arrival times" in note for note in notes) == (drawn and not text)


def test_the_requests_are_described_and_the_prefixes_that_they_share_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trace.jsonl"
    line = '{{"timestamp": {}, "input_length": {}, "output_length": 100, "hash_ids": {}}}\n'
    path.write_text(line.format(0, 1024, [1, 2]) + line.format(2000, 3072, [1, 2, 3, 4, 5, 6]))
    result = result_of(capsys, "simulate", *SPECULATING, "--traffic", str(path))
    work = result["workload"]
    assert (work["requests"], work["rate_rps"], work["prompt_tokens"]["mean"]) == (2, 0.5, 2048)
    assert work["prefix_hit_share"] == 1024 / 4096 and work["output_tokens"]["p99"] == 100
    assert run(["simulate", *SPECULATING, "--traffic", str(path)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "2 requests at 0.5/s; prompts of 2,048 tokens on average (p50 2,048" in text
    assert "25% of the prompt tokens are in the prefix cache" in text


@pytest.mark.parametrize("arrival", ["0", "1e-320"])
def test_requests_that_arrive_together_have_no_rate(
    arrival: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(f"arrival_s,prompt_tokens,output_tokens\n0,100,3\n{arrival},200,2\n")
    result = result_of(capsys, "simulate", *SPECULATING, "--traffic", str(path))
    assert result["workload"]["rate_rps"] is None


def test_requests_that_are_left_out_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "burst.csv"
    path.write_text("Timestamp,Request tokens,Response tokens\n0,9,5\n1,9,0\n2,9,5\n3,9,0\n")
    note = "left out of the trace: 2 with 0 response tokens"
    result = result_of(capsys, "simulate", *SPECULATING, "--traffic", str(path))
    assert result["workload"]["requests"] == 2 and note in result["notes"]
    few = shlex.split(
        "--batch 1 --tp 8 --draft self --kv-budget 512 --prompt-tokens 1024 --engine ideal"
    )
    result = result_of(capsys, "recommend", *few, "--traffic", str(path))
    assert note in result["notes"]


def test_a_recommendation_for_traffic_is_for_its_mean_lengths_unless_they_are_stated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n0,100,30\n1,301,50\n2,500,41\n")
    plan = ["recommend", "--target", "llama-3.1-8b", "--tp", "1", "--draft", "eagle3"]
    plan += ["--engine", "vllm", "--gpu", "h200", "--traffic", str(path)]
    for flags, means in (
        ([], (300, 40)),
        (["--output-tokens", "64"], (300, 64)),
        (["--prompt-tokens", "500", "--output-tokens", "64"], (500, 64)),
        (["--requests", "2"], (200, 40)),
    ):
        result = result_of(capsys, *plan, *flags)
        used = result["best"]["scenario"]
        assert (used["prompt_tokens"], used["output_tokens"]) == means
        assert any(str(path) in note for note in result["notes"]) == (len(flags) < 4)


def test_a_trace_that_meets_limits_at_its_own_rate_is_not_refused_for_a_saturated_service(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prompts of 16 blocks, of which the first 12 are shared; one request in two seconds."""
    path = tmp_path / "trace.jsonl"
    rows = [
        {
            "timestamp": 2000 * i,
            "input_length": 16 * 512,
            "output_length": 60,
            "hash_ids": [*range(12), *range(100 + 4 * i, 104 + 4 * i)],
        }
        for i in range(20)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    plan = ["--target", "llama-3.1-8b", "--tp", "1", "--draft", "eagle3", "--engine", "vllm"]
    plan += ["--gpu", "h100-sxm", "--batch", "32", "--traffic", str(path)]
    simulated = result_of(capsys, "simulate", *plan, "--slo", "tpot<12ms", "--gamma", "3")
    assert simulated["workload"]["prefix_hit_share"] == pytest.approx(0.75 * 19 / 20)
    loose, tight = (
        result_of(capsys, "recommend", *plan, "--slo", f"tpot<{ms}ms") for ms in (1000, 12)
    )
    for result in (loose, tight):
        hits = result["best"]["scenario"]["prefix_hit_rate"]
        assert hits == pytest.approx(simulated["workload"]["prefix_hit_share"], abs=1e-4)
        assert result["traffic"]["meets_limits"]
    assert loose["traffic"]["saturated_miss"] is None
    assert "no plan meets the limits" in tight["traffic"]["saturated_miss"]
    assert tight["best"]["tpot_s"] > 0.012 > simulated["runs"][0]["tpot"]["p99_s"]
    assert tight["verdict"] == tight["traffic"]["verdict"]
    assert run(["recommend", *plan, "--slo", "tpot<0.5ms"]) == 3
    assert run(["recommend", *plan, "--prefix-hit-rate", "0.5"]) == 2


def test_a_trace_at_a_rate_is_played_at_the_share_of_one_replica(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Mean latencies grow with the share, and arrival times of the trace contradict a rate."""
    timed, drawn = tmp_path / "timed.csv", tmp_path / "drawn.csv"
    timed.write_text("arrival_s,prompt_tokens,output_tokens\n0,3000,200\n1,3000,200\n")
    drawn.write_text("prompt_tokens,output_tokens\n" + 10 * "2000,100\n4000,300\n")
    plan = ["--target", "llama-3.1-8b", "--tp", "1", "--draft", "eagle3", "--engine", "vllm"]
    plan += ["--gpu", "h200", "--traffic"]
    latencies = []
    for rate in (2.0, 12.0):
        result = result_of(capsys, "recommend", *plan, str(drawn), "--rate", str(rate))
        gpus = result["fleet"]["gpus"]
        assert any(f"drawn at {rate / gpus:.3g}/s, the share" in note for note in result["notes"])
        latencies.append((rate / gpus, result["traffic"]["runs"][0]["latency"]["mean_s"]))
    assert latencies == sorted(latencies) and latencies[0] < latencies[-1]
    assert run(["recommend", *plan, str(timed), "--rate", "4"]) == 2
    assert "already has arrival times; remove --rate" in capsys.readouterr().err


def test_a_fleet_for_a_trace_meets_the_limits_in_its_own_simulation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Requests of unequal lengths need more GPUs than as many of the mean length."""
    path = tmp_path / "trace.csv"
    rows = [f"{500 + 97 * (i * i % 101)},{20 + 7 * (i * 37 % 61)}" for i in range(200)]
    path.write_text("\n".join(["prompt_tokens,output_tokens", *rows]))
    plan = ["--target", "llama-3.1-8b", "--draft", "eagle3", "--gpu", "h200", "--tp", "1"]
    plan += ["--rate", "33", "--price", "2", "--slo", "ttft<3s; tpot<25ms"]
    lengths = ["--prompt-tokens", "5294", "--output-tokens", "229"]
    equal = result_of(capsys, "recommend", *plan, *lengths)
    played = result_of(capsys, "recommend", *plan, "--traffic", str(path), *lengths)
    assert played["fleet"]["gpus"] > equal["fleet"]["gpus"]
    assert played["traffic"]["meets_limits"] and played["verdict"] == "speculate"
    for answer in (equal, played):
        cost = answer["fleet"]["cost_per_million_tokens"]
        assert answer["best"]["cost_per_million_tokens"] == pytest.approx(cost)
    gpus = equal["fleet"]["gpus"]
    rate = ["--slo", "ttft<3s; tpot<25ms", "--traffic", str(path), "--rate", str(33 / gpus)]
    used = equal["fleet"]["scenario"]
    fixed = ["--gamma", str(used["gamma"]), "--batch", str(used["batch"]), *plan[:8], *lengths]
    short = result_of(capsys, "simulate", *fixed, *rate)["runs"][1]["good_share"]
    assert short < 0.99 and f"{short:.1%} with the {gpus} x TP 1" in played["answer"]
    assert run(["recommend", *plan[:-1], "ttft<3s; tpot<3.1ms", "--traffic", str(path)]) == 3


def test_beside_a_plain_fleet_the_limits_are_those_of_the_fleet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The traffic's other keys are those of the draft on one replica, which may miss them."""
    path = tmp_path / "trace.csv"
    path.write_text("prompt_tokens,output_tokens\n" + 40 * "5000,229\n")
    missing = lambda *given: for_traffic(*given) | {"meets_limits": False}  # noqa: E731
    monkeypatch.setattr("app.cli.commands.recommend.for_traffic", missing)
    plan = ["--target", "llama-3.1-8b", "--draft", "eagle3", "--gpu", "h200", "--tp", "1"]
    plan += ["--acceptance", "0.2", "--slo", "tpot<20ms", "--traffic", str(path)]
    fleet = result_of(capsys, "recommend", *plan, "--rate", "30")
    assert not fleet["speculate"] and fleet["fleet"]["scenario"]["draft"] == "none"
    assert fleet["traffic"]["meets_limits"] is True
    batch = result_of(capsys, "recommend", *plan, "--batch", "8")
    assert batch["traffic"]["meets_limits"] is False


def test_a_batch_that_leaves_no_room_for_prompts_is_played_with_fewer_sequences(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """32 sequences at γ 8 would fill a pass of 256 tokens."""
    path, engine = tmp_path / "trace.csv", tmp_path / "small.toml"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n" + 9 * "0,300,40\n")
    shipped = resources.files("perfmodel") / "catalog" / "engines" / "magicdec.toml"
    named = shipped.read_text(encoding="utf-8").replace('"magicdec"', '"small"')
    engine.write_text(f"prefill_chunk_tokens = 256\n{named}", encoding="utf-8")
    plan = ["--target", "llama-3.2-1b", "--tp", "1", "--draft", "eagle3", "--gpu", "h200"]
    plan += ["--engine", str(engine), "--batch", "32", "--traffic", str(path)]
    result = result_of(capsys, "recommend", *plan)
    assert result["traffic"]["runs"][8]["requests"] == 9


def test_the_closed_form_is_that_of_the_simulated_requests(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Prompts of a tenth of the scenario's length, and a small token budget, at saturation."""
    flags = [*SPECULATING, "--batch", "16", "--prompt-tokens", "3200", "--rate", "1000"]
    flags += ["--output-cv", "0.4", "--requests", "1500", "--token-budget", "1024"]
    result = result_of(capsys, "simulate", *flags, "--prefix-hit-rate", "0.5")
    assert result["workload"]["prefix_hit_share"] == 0.5
    for played, rate in zip(result["runs"], result["saturated_rps"], strict=True):
        assert played["requests_per_s"] == pytest.approx(rate, rel=0.05)
    plain, fast = result["saturated_rps"]
    assert result["closed_form_speedup"] == pytest.approx(fast / plain)


def test_padding_costs_what_compaction_saves(capsys: pytest.CaptureFixture[str]) -> None:
    spans = [
        result_of(capsys, "simulate", *SPECULATING, "--output-cv", "1", "--finished", how)
        for how in ("compaction", "padding")
    ]
    assert spans[0]["runs"][1]["makespan_s"] < spans[1]["runs"][1]["makespan_s"]


def test_timeline_as_csv_and_chart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.csv"
    result = result_of(capsys, "simulate", *SPECULATING, *TRAFFIC, "--csv", str(path))
    rows = list(csv.DictReader(path.open()))
    assert len(rows) == sum(len(r["timeline"]) for r in result["runs"])
    plain, drafted = rows[0], rows[-1]
    assert plain["acceptance_origin"] == "none" and plain["extrapolated"] in ("", "T_T")
    assert drafted["acceptance_origin"] == "given"
    assert drafted["extrapolated"].split() == result["evidence"]["extrapolated"]
    figure = timeline(result)
    assert len(figure.data) == len(ROWS) * len(result["runs"])
    assert list(figure.data[0].y) == [r["batch"] for r in result["runs"][0]["timeline"]]


def test_an_acceptance_recording_replaces_alpha(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "accepted.txt"
    path.write_text("4\n" * 20)
    always = ["--gamma", "4", "--acceptance-trace", str(path)]
    result = result_of(capsys, "simulate", *SPECULATING, *always, "--output-tokens", "250")
    assert result["runs"][1]["rounds"] == 50


def test_both_commands_say_whether_a_limit_on_ttft_counts_prompts_of_other_gpus(
    capsys: pytest.CaptureFixture[str],
) -> None:
    work = ["--target", "llama-3.1-8b", "--gpu", "h200", "--tp", "1", "--batch", "8"]
    work += ["--prompt-tokens", "8000", "--slo", "ttft<2s", "--draft", "eagle3"]
    for prefill, is_noted in (("shared", False), ("disaggregated", True)):
        given = [*work, "--prefill", prefill]
        advice = result_of(capsys, "recommend", *given)
        played = result_of(
            capsys, "simulate", *given, "--gamma", "2", "--rate", "0.1", "--requests", "5"
        )
        for result, other in ((advice, "`simulate`"), (played, "`recommend`")):
            assert any(other in note for note in result["notes"]) == is_noted
        waits = played["runs"][0]["ttft"]["mean_s"] < 0.1 * advice["best"]["ttft_s"]
        assert waits == is_noted


def test_recommend_for_traffic_names_the_best_run(capsys: pytest.CaptureFixture[str]) -> None:
    result = result_of(capsys, "recommend", "--scenario", "default", "--tp", "8", *TRAFFIC)
    choice = result["traffic"]
    *_, scheduled = runs = choice["runs"]
    least = min(run["latency"]["mean_s"] for run in runs[1:-1])
    best = next(run for run in runs[1:-1] if run["latency"]["mean_s"] <= 1.01 * least)
    lead = best["latency"]["mean_s"] - scheduled["latency"]["mean_s"]
    if lead > best["latency"]["standard_error_s"]:
        best = scheduled
    low = result["gain_interval_90"][0] / result["studied"]["gain"]
    gain = choice["runs"][0]["latency"]["mean_s"] / best["latency"]["mean_s"]
    assert choice["best"] == (best["label"] if gain * low > 1.0 else "no speculation")
    assert choice["best"] in choice["sentence"]
