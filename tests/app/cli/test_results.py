"""The commands' tables, JSON and CSV."""

import csv
import io
import json
import math
import shlex
from pathlib import Path
from typing import Any

import pytest

from app.cli.main import run

SELF = ["--draft", "self", "--tp", "8"]


def printed(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> str:
    assert run(arguments) == code
    return capsys.readouterr().out


def test_prediction_adds_up(capsys: pytest.CaptureFixture[str]) -> None:
    p = json.loads(printed(["predict", *SELF, "--gamma", "3", "--json"], capsys))
    assert p["round_s"] == pytest.approx(3 * p["draft_step_s"] + p["verify_s"] + p["overhead_s"])
    assert p["tpot_s"] == pytest.approx(p["round_s"] / p["tokens_per_round"])
    assert p["speedup"] == pytest.approx(p["plain_tpot_s"] / p["tpot_s"])
    for name, key in (("target_step", "target_step_s"), ("verify", "verify_s")):
        assert sum(x["seconds"] for x in p["breakdown"][name].values()) == pytest.approx(p[key])
    terms = {k: v for k, v in p["memory"].items() if k not in ("total_bytes", "capacity_bytes")}
    assert sum(terms.values()) == pytest.approx(p["memory_bytes_per_gpu"])


def test_prediction_table_shows_the_json_figures(capsys: pytest.CaptureFixture[str]) -> None:
    table = printed(["predict", *SELF], capsys)
    result = json.loads(printed(["predict", *SELF, "--json"], capsys))
    assert f"{result['speedup']:.2f}x ({result['speedup_low']:.2f}-" in table
    assert f"{result['throughput_tokens_per_s']:,.0f} tokens/s" in table
    assert result["acceptance"]["origin"] in table


def test_no_alpha_breaks_even_if_all_drafts_accepted_do_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["predict", "--engine", "vllm-0.23", "--target", "llama-3.1-8b", "--gpu", "h200"]
    arguments += ["--draft", "llama-3.2-1b", "--draft-policy", "full", "--gamma", "3"]
    arguments += ["--prompt-tokens", "4000", "--batch", "16", "--acceptance", "1"]
    result = json.loads(printed([*arguments, "--json"], capsys))
    assert result["speedup"] < 1.0 and result["break_even_acceptance"] is None
    row = next(line for line in printed(arguments, capsys).splitlines() if "break even" in line)
    assert row.split()[-1] == "none"


def test_a_draft_never_pays_from_an_acceptance_of_zero(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["recommend", "--gpu", "l40s", "--target", "qwen3-8b", "--engine", "ideal"]
    arguments += ["--draft", "ngram", "--tp", "2", "--rate", "3.57", "--prompt-tokens", "23053"]
    arguments += ["--output-tokens", "43", "--prefix-hit-rate", "0.38"]
    result = json.loads(printed([*arguments, "--json"], capsys))
    assert result["unmeasured"][0]["alpha_to_break_even"] < 0.005
    text = printed(arguments, capsys)
    assert "would pay from α=0.01" in text and "0.00\n" not in text


def test_unmeasured_acceptance_is_null_not_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["predict", "--target", "llama-3.1-70b", "--draft", "llama-3.1-8b", "--tp", "8"]
    arguments += ["--batch", "8"]
    assert "unknown" in printed(arguments, capsys)
    result = json.loads(printed([*arguments, "--json"], capsys))
    assert result["speedup"] is None and result["tokens_per_round"] is None
    assert 0 < result["break_even_acceptance"] < 1


def test_infeasible_prediction_keeps_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    result = json.loads(printed(["predict", "--batch", "4096", "--json"], capsys, code=3))
    assert result["feasible"] is False and result["reason"]
    assert result["memory_bytes_per_gpu"] > result["memory"]["capacity_bytes"]


def sweep_rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_sweep_point_equals_its_prediction(capsys: pytest.CaptureFixture[str]) -> None:
    axes = ["--draft", "self:snapkv,none", "--batch", "1,8", "--gamma", "1:2", "--tp", "4,8"]
    rows = sweep_rows(printed(["sweep", *axes, "--csv", "-"], capsys))
    assert len(rows) == 2 * (2 * 2 + 2)  # without a draft, γ is no axis
    for row in rows:
        flags = [f"--{k}={row[k]}" for k in ("batch", "tp", "gamma")]
        draft, _, policy = row["draft"].partition(":")
        flags += [f"--draft={draft}"] + ([f"--draft-policy={policy}"] if policy else [])
        point = json.loads(printed(["predict", *flags, "--json"], capsys))
        for key in ("target_step_s", "verify_s", "round_s", "speedup", "memory_bytes_per_gpu"):
            assert float(row[key]) == pytest.approx(point[key], rel=1e-12)


def test_sweep_budget_defaults_belong_to_each_draft(capsys: pytest.CaptureFixture[str]) -> None:
    axes = ["--draft", "self:snapkv,self:streamingllm,self:full", "--tp", "8"]
    rows = sweep_rows(printed(["sweep", *axes, "--csv", "-"], capsys))
    assert [row["kv_budget"] for row in rows] == ["2049", "512", "0"]


def test_infeasible_sweep_points_have_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    axes = ["--draft", "self", "--prompt-tokens", "256,32000", "--kv-budget", "128,512"]
    axes += ["--batch", "1,4096", "--tp", "8"]
    rows = sweep_rows(printed(["sweep", *axes, "--csv", "-"], capsys))
    reason = {(row["prompt_tokens"], row["kv_budget"], row["batch"]): row["reason"] for row in rows}
    assert reason["256", "512", "1"].startswith("kv_budget")
    assert reason["256", "128", "1"] == reason["32000", "512", "1"] == ""
    assert reason["32000", "512", "4096"].count("memory")


def test_sweep_json_holds_the_csv_rows(capsys: pytest.CaptureFixture[str]) -> None:
    axes = ["--draft", "self,none", "--gamma", "1:2", "--tp", "3,8"]
    rows = sweep_rows(printed(["sweep", *axes, "--csv", "-"], capsys))
    result = json.loads(printed(["sweep", *axes, "--json"], capsys))
    assert result["points"] == len(rows) == len(result["rows"])
    for a, b in zip(rows, result["rows"], strict=True):
        assert a == {k: "" if v is None else str(v) for k, v in b.items()}


def test_large_sweep_prints_the_best_of_each_batch_and_prompt(
    capsys: pytest.CaptureFixture[str],
) -> None:
    axes = ["--draft", "self", "--batch", "1,64", "--gamma", "1:16", "--kv-budget", "64:4096:x2"]
    axes += ["--tp", "8"]
    table = printed(["sweep", *axes], capsys)
    rows = sweep_rows(printed(["sweep", *axes, "--csv", "-"], capsys))
    for batch in ("1", "64"):
        best = max(float(row["speedup"]) for row in rows if row["batch"] == batch)
        assert f"{best:.2f}x" in table
    assert str(len(rows)) in table


def test_recommendation_prints_the_answer_first(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(["recommend", "--scenario", "default"], capsys)
    result = json.loads(printed(["recommend", "--scenario", "default", "--json"], capsys))
    lines = text.splitlines()
    assert lines[:3] == [result["answer"], result["prefill"], result["evidence"]["sentence"]]
    assert " ".join(lines[:3]) == result["sentence"]
    assert "Prompts take" in lines[1] and "decoding alone" in lines[1]
    low, high = result["gain_interval_90"]
    assert low < result["studied"]["gain"] < high


def test_recommend_agrees_with_simulate_at_saturation(capsys: pytest.CaptureFixture[str]) -> None:
    """The command of the docs that once promised 16 times what the simulator gave."""
    flags = ["--gpu", "a100-sxm-80gb", "--batch", "64", "--output-tokens", "256", "--tp", "4"]
    result = json.loads(printed(["recommend", *flags, "--json"], capsys))
    for plan in (result["studied"], result["without_speculation"]):
        stated = [f"--{k.replace('_', '-')}={v}" for k, v in plan["scenario"].items()]
        load = ["--rate", "20", "--requests", "1500", "--output-cv", "0.3", "--json"]
        run = json.loads(printed(["simulate", *stated, *load], capsys))["runs"][-1]
        per_gpu = run["throughput_tokens_per_s"] / 4
        # A run has a start and an end, in which fewer than 64 requests run.
        assert plan["throughput_per_gpu"] == pytest.approx(per_gpu, rel=0.06)


def test_a_sweep_says_which_plans_the_engine_cannot_run(capsys: pytest.CaptureFixture[str]) -> None:
    plan = ["--target", "llama-3.1-70b", "--draft", "llama-3.1-8b", "--acceptance", "0.75"]
    plan += ["--gpu", "h200", "--tp", "8", "--prompt-tokens", "8000", "--engine", "vllm"]
    for flags in (["--gamma", "1:3"], ["--gamma", "1:3", "--top", "1"]):
        swept = " ".join(printed(["sweep", *plan, *flags], capsys).split())
        assert swept.count("cannot run this plan: its standalone drafts always read") == 1
    assert "cannot run" not in printed(["sweep", *plan, "--draft-policy", "full"], capsys)


def test_a_rate_and_a_price_size_the_deployment(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--rate", "5", "--price", "2.5", "--slo", "tpot<60ms", "--prompt-tokens", "8000"]
    flags += ["--draft", "self"]
    text = printed(["recommend", *flags], capsys)
    result = json.loads(printed(["recommend", *flags, "--json"], capsys))
    fleet = result["fleet"]
    assert (
        f"fewest GPUs for 5 requests/s: {fleet['gpus']}, as {fleet['replicas']} x TP"
        in " ".join(text.split())
    )
    assert fleet["gpus"] == fleet["replicas"] * fleet["replica"]["tp"]
    assert "largest concurrency within the limits" in text
    assert "cost per million output tokens" in text
    tokens_per_s = 5 * fleet["scenario"]["output_tokens"]
    cost = fleet["cost_per_million_tokens"]
    assert cost == pytest.approx(fleet["gpus"] * 2.5 / 3600 / tokens_per_s * 1e6)
    assert f"{cost:.3g} (without speculation" in text
    assert text.startswith(result["answer"]) and f"{fleet['gpus']} GPU" in result["answer"]
    assert "Plans at full load:" in text
    # `best`, `verdict` and `speculate` are what the first sentence says, not those of full load.
    best = result["best"]
    assert best["scenario"] == fleet["scenario"] and best["label"] == fleet["replica"]["label"]
    assert best["cost_per_million_tokens"] == pytest.approx(cost)
    assert result["speculate"] == (result["verdict"] == "speculate")
    assert result["speculate"] == ("without speculation" not in result["answer"].split(".")[0])
    assert best["scenario"]["batch"] == fleet["replica"]["concurrency"]


def test_the_verdict_at_a_rate_is_that_of_its_fleet(capsys: pytest.CaptureFixture[str]) -> None:
    """At full load EAGLE-3 clearly gains; at a low rate, one GPU is enough without it."""
    flags = ["--target", "llama-3.1-8b", "--gpu", "h200", "--engine", "vllm", "--draft", "eagle3"]
    flags += ["--prompt-tokens", "4000", "--output-tokens", "1000", "--tp", "1", "--json"]
    for rate, drafts in (("1", False), ("60", True)):
        result = json.loads(printed(["recommend", *flags, "--rate", rate], capsys))
        assert result["full_load"]["verdict"] == "speculate" and result["full_load"]["speculate"]
        assert result["speculate"] is drafts
        assert result["verdict"] == ("speculate" if drafts else "no clear gain")
        assert (result["best"]["scenario"]["draft"] == "eagle3") is drafts
    assert json.loads(printed(["recommend", *flags], capsys))["full_load"] is None


def test_recommend_respects_given_choices(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["recommend", "--draft", "self:streamingllm", "--acceptance", "0.9"]
    arguments += ["--tp", "4,8", "--kv-budget", "256,512", "--gpu", "h100-sxm", "--json"]
    arguments += ["--acceptance-budget", "512"]
    result = json.loads(printed(arguments, capsys))
    plans = [result["best"], *result["runners_up"]]
    drafts = [p["scenario"] for p in plans if p["scenario"]["draft"] != "none"]
    assert drafts and all(s["kv_budget"] in (256, 512) and s["tp"] in (4, 8) for s in drafts)
    assert {(s["draft"], s["draft_policy"]) for s in drafts} == {("self", "streamingllm")}


def test_a_scenarios_gamma_is_ignored_with_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "plan.toml"
    file.write_text('draft = "self"\ngamma = 2\ntp = 8\n')
    result = json.loads(printed(["recommend", "--scenario", str(file), "--json"], capsys))
    assert any("gamma=2" in note for note in result["notes"])


ROUND_TRIPS: dict[str, list[str]] = {
    "plain": ["--tp", "8"],
    "self": [*SELF, "--gamma", "3"],
    "snapkv at given α": [*SELF, "--draft-policy", "snapkv", "--acceptance", "0.83"],
    "per position": [*SELF, "--acceptance-per-position", "0.9,0.8,0.7"],
    "ideal engine": [*SELF, "--engine", "ideal", "--kv-dtype", "fp8"],
    "other machine": [*SELF, "--machine", "8xh100-pcie"],
    "standalone": shlex.split(
        "--target=llama-2-7b-32k --draft=tinyllama-1.1b --tp=8 --draft-tp=4 --prompt-tokens=16000 "
        "--batch=32"
    ),
    "standalone, full cache": shlex.split(
        "--target=llama-3.1-70b --draft=llama-3.1-8b --draft-policy=full --tp=8 --batch=4 "
        "--tokens-per-round=2.5"
    ),
}


@pytest.mark.parametrize("flags", ROUND_TRIPS.values(), ids=ROUND_TRIPS.keys())
def test_exported_scenario_predicts_the_same(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "exported.toml"
    assert printed(["export", "--to", "specroof", *flags, "--output", str(file)], capsys) == ""
    original = json.loads(printed(["predict", *flags, "--json"], capsys))
    again = json.loads(printed(["predict", "--scenario", str(file), "--json"], capsys))
    assert again == original


def test_models_given_by_path_are_exported_by_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_hidden_layers": 16,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
    }
    model = tmp_path / "my-draft" / "config.json"
    model.parent.mkdir()
    model.write_text(json.dumps(config))
    flags = [f"--draft={model}", "--tp=8", "--acceptance=0.7", "--gamma=2"]
    original = json.loads(printed(["predict", *flags, "--json"], capsys))
    file = tmp_path / "exported.toml"
    printed(["export", "--to", "specroof", *flags, "--output", str(file)], capsys)
    again = json.loads(printed(["predict", "--scenario", str(file), "--json"], capsys))
    assert again == original and again["scenario"]["draft"] == str(model)


def test_exported_recommendation_predicts_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "exported.toml"
    arguments = ["--to", "specroof", "--recommended", "--scenario", "default"]
    printed(["export", *arguments, "--output", str(file)], capsys)
    best = json.loads(printed(["recommend", "--scenario", "default", "--json"], capsys))["best"]
    again = json.loads(printed(["predict", "--scenario", str(file), "--json"], capsys))
    assert again["speedup"] == pytest.approx(best["decode_speedup"])
    assert again["scenario"] == best["scenario"]


def test_matrix_refuses_self_speculation_in_other_engines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = json.loads(printed(["export", "--matrix", "--json"], capsys))["choices"]
    reasons: dict[str, Any] = next(row["reasons"] for row in rows if row["draft"] == "self")
    assert [name for name, reason in reasons.items() if reason is None] == ["specroof"]
    assert "self" in printed(["export", "--matrix"], capsys)


@pytest.mark.parametrize(
    "kind, name",
    [
        ("gpus", "h100-sxm"),
        ("machines", "hgx-h100"),
        ("models", "llama-3.1-8b"),
        ("engines", "specroof"),
        ("scenarios", "default"),
        ("acceptance", "llama-3.1-8b"),
    ],
)
def test_lists_show_every_entry(kind: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    entries = json.loads(printed(["list", kind, "--json"], capsys))
    table = printed(["list", kind], capsys)
    assert name in table
    for entry in entries:
        assert str(entry.get("name", entry.get("target"))) in table
        if kind != "scenarios":
            assert entry["source"] and entry["source"] in table
        assert all(not isinstance(v, float) or math.isfinite(v) for v in entry.values())


def test_a_standalone_draft_is_searched_over_several_tp(capsys: pytest.CaptureFixture[str]) -> None:
    scenario = ["--target", "llama-3.1-8b", "--batch", "8", "--prompt-tokens", "4000"]
    search = ["--tp", "1,2", "--draft", "llama-3.2-1b:streamingllm"]
    result = json.loads(printed(["recommend", *scenario, *search, "--json"], capsys))
    assert result["best"]["scenario"]["draft"] == "llama-3.2-1b"
    assert result["best"]["scenario"]["draft_tp"] <= result["best"]["scenario"]["tp"]


def test_the_end_of_the_search_is_not_called_a_limit(capsys: pytest.CaptureFixture[str]) -> None:
    flags = shlex.split("recommend --target llama-3.1-8b --gpu h200 --tp 1 --draft eagle3")
    flags += ["--batch", "5000", "--prompt-tokens", "100", "--output-tokens", "10"]
    text = " ".join(printed(flags, capsys).split())
    assert "within the limits: at least 4,096, the most that is searched, per replica" in text
