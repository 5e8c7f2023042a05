"""Plans: reading, writing, validation, and conversion from scenarios."""

import json
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from tiny_models import FAMILIES, hf_config

from app.cli.commands import run as command
from app.cli.main import run
from app.cli.run_fields import NOT_EXECUTED, scenario_fields
from perfmodel import ConfigError, ScenarioInput, catalog
from perfmodel.specs import MAX_GAMMA
from runtime import (
    ALONE,
    BatchShape,
    EngineError,
    EngineSetup,
    InputError,
    Model,
    Ranks,
    RunPlan,
    TablePlan,
    build_engine,
    plan_flags,
)
from runtime.bench.plan import MOST, POLICIES
from runtime.config import DecoderConfig, config_of_shape, read_model_config
from runtime.execution.sampling import SamplingParams, sampler_for

PLAN = RunPlan(
    mode="standalone",
    model=Path("target"),
    draft=Path("draft"),
    configs={"draft": FAMILIES["llama-3.1"]},
    weight_dtype="bf16",
    kv_dtype="bfloat16",
    draft_dtype="bf16",
    acceptance=(0.9, 0.5),
    temperature=0.5,
    output=Path("rounds.jsonl"),
    compile=False,
)
SHAPE = asdict(FAMILIES["llama-2"]) | {"name": "m"}
# A speculative scenario, and for each of its fields another value.
SCENARIO: dict[str, Any] = {
    "target": "llama-2-7b-32k",
    "draft": "tinyllama-1.1b",
    "kv_budget": 256,
    "tp": 4,
    "draft_tp": 2,
}
CHANGES: dict[str, Any] = {
    "target": "llama-2-7b",
    "draft": "llama-68m",
    "draft_policy": "full",
    "kv_budget": 128,
    "gamma": 2,
    "gpu": "a100-sxm-80gb",
    "machine": "dgx-a100-80gb",
    "ring_hop_us": 5.0,
    "ring_gb_s": 10.0,
    "tp": 8,
    "draft_tp": 1,
    "batch": 3,
    "prompt_tokens": 999,
    "output_tokens": 99,
    "acceptance": 0.7,
    "acceptance_per_position": [0.9, 0.5],
    "accepted_fraction": 0.4,
    "accepted_drafts": 1.5,
    "tokens_per_round": 2.5,
    "acceptance_curve": "curves.toml",
    "weight_dtype": "int8",
    "kv_dtype": "fp8",
    "draft_dtype": "fp16",
    "draft_kv_dtype": "fp16",
    "ep": 2,
    "dp": 2,
    "prefill": "disaggregated",
    "prefix_hit_rate": 0.5,
    "engine": "magicdec",
    "host_factor": 1.6,
    "slo": "ttft<2s",
}


def test_a_written_plan_reads_back_unchanged(tmp_path: Path) -> None:
    PLAN.write(tmp_path / "plan.json")
    assert RunPlan.read(tmp_path / "plan.json") == PLAN
    assert [file.name for file in tmp_path.iterdir()] == ["plan.json"]
    assert PLAN.dtype == "bfloat16"


def test_a_written_table_plan_reads_back_unchanged(tmp_path: Path) -> None:
    plan = TablePlan(models=(Path("a"), Path("b")), tp=2, output=Path("rows.jsonl"))
    plan.write(tmp_path / "plan.json")
    assert TablePlan.read(tmp_path / "plan.json") == plan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gama": 3}, "gama"),
        ({"gamma": "3"}, "gamma should be"),
        ({"gamma": 0}, "--gamma 0 is not valid; use 1 or more"),
        ({"acceptance": [0.9, 2.0]}, "--acceptance 2.0 is not valid"),
        ({"acceptance": [float("nan")]}, "--acceptance nan is not valid"),
        ({"top_p": 5.0}, "--top-p 5.0 is not valid"),
        ({"top_p": float("nan")}, "--top-p nan is not valid"),
        ({"snapkv_pool": 4}, "--snapkv-pool 4 is even"),
        ({"seed": 10**22}, "--seed 10000000000000000000000 is not valid"),
        ({"seed": -1}, "--seed -1 is not valid; use 0 or more"),
        ({"mode": "fast"}, "use one of baseline, standalone, selfspec"),
        ({"draft_policy": "some"}, "use one of full, streamingllm, snapkv"),
        ({"draft_tp": 3, "tp": 2}, "--draft-tp 3 exceeds --tp 2"),
        ({"kv_dtype": "fp8"}, "kv_dtype 'fp8' is not supported by the engine"),
        ({"weight_dtype": "int4"}, "weight_dtype 'int4' is not supported by the engine"),
        ({"draft_dtype": "fp16"}, "the same type for weights, KV cache and draft"),
        ({"configs": {"m": SHAPE | {"kv_heads": 0}}}, "m: kv_heads=0 is not valid"),
        ({"configs": {"m": SHAPE | {"rope_theta": float("nan")}}}, "rope_theta should be a finite"),
    ],
)
def test_an_invalid_plan_is_refused_in_one_line(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(PLAN.as_dict() | change))
    with pytest.raises(InputError) as caught:
        RunPlan.read(file)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "edit, message",
    [
        (('"seed": 0', '"seed": 0, "sink": 16'), "sink is given twice"),
        (('"seed": 0,', ""), "seed is missing"),
        (('"rope_theta": 10000.0,', ""), "configs.m.rope_theta is missing"),
        (('"beta_fast": 32.0,', ""), "configs.m.rope_scaling.beta_fast is missing"),
        (('"beta_fast": 32.0', '"truncate": true'), "configs.m.rope_scaling.beta_fast is missing"),
        (('"kv_heads"', '"tied_embeddings": true, "kv_heads"'), "m.tied_embeddings is given twice"),
    ],
)
def test_a_plan_file_states_every_field_once(
    edit: tuple[str, str], message: str, tmp_path: Path
) -> None:
    plan, file = replace(PLAN, seed=0, configs={"m": FAMILIES["llama-2"]}), tmp_path / "p.json"
    text = json.dumps(plan.as_dict())
    assert text.count(edit[0]) == 1
    file.write_text(text.replace(*edit))
    with pytest.raises(InputError, match=re.escape(message)):
        RunPlan.read(file)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"mode": "baseline"}'])
def test_a_file_that_is_not_a_plan_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(InputError, match=r"is not a valid plan: .*--write-plan") as caught:
        RunPlan.read(tmp_path / "plan.json")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no such file"):
        RunPlan.read(tmp_path / "absent.json")


def test_the_largest_seed_of_a_plan_seeds_every_stream() -> None:
    seed = MOST["seed"]
    device = torch.device("cpu")
    assert isinstance(seed, int) and replace(PLAN, seed=seed).seed == seed
    sampled = sampler_for(SamplingParams(temperature=1.0, seed=seed), None, device)
    assert len(sampled.streams) == 2


# Limits and defaults that runtime and perfmodel share, although neither imports the other.


def test_plans_have_the_default_budgets_and_the_largest_gamma_of_predictions() -> None:
    predicted = ScenarioInput(draft="self", prompt_tokens=4000)
    for policy in ("streamingllm", "snapkv"):
        plan = RunPlan(
            mode="selfspec", model=Path("m"), draft_policy=policy, prompt_tokens=4000
        ).draft_plan
        expected = predicted.model_copy(update={"draft_policy": policy}).plan()
        assert plan.kv_budget_tokens == expected.kv_budget_tokens
        assert plan.sink_tokens == expected.sink_tokens
    assert MOST["gamma"] == MAX_GAMMA


@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy != "full"])
def test_predictions_note_a_budget_exactly_where_the_engine_refuses_it(policy: str) -> None:
    plan = RunPlan(mode="selfspec", model=Path("m"))
    shape = DecoderConfig(name="tiny", layers=1, hidden=16, query_heads=2, kv_heads=1, head_dim=8,
                          ffn_hidden=16, vocab=16, max_context_tokens=512)  # fmt: skip
    for budget in range(1, 101):
        setup = EngineSetup(
            target=Model(config=shape),
            draft=None,
            plan=replace(plan, draft_policy=policy, kv_budget=budget).draft_plan,
            page_tokens=plan.page_tokens,
            snapkv_window=plan.snapkv_window,
            snapkv_pool=plan.snapkv_pool,
        )
        try:
            build_engine(setup, Ranks(ALONE, ALONE), BatchShape([100], [1]))
            refused = False
        except InputError as error:
            refused = True
            assert f"kv_budget={budget} is too small" in str(error)
        for stated in (budget, f"{budget}%"):  # of 100 tokens
            scenario = ScenarioInput(
                draft="self", draft_policy=policy, kv_budget=stated, prompt_tokens=100
            ).scenario()
            assert any("but the runtime needs" in note for note in scenario.notes) == refused


@pytest.mark.parametrize(
    "line",
    ["ep = 2", "kv_budget = 64000", 'gpu = "h1000"', 'machine = "dgx"', 'engine = "none"',
     'slo = "ttft<fast"', 'acceptance_curve = "absent.toml"', "ring_hop_us = 5.0"],
)  # fmt: skip
@pytest.mark.parametrize("mode", ["baseline", "selfspec"])
def test_run_refuses_the_scenarios_that_predict_refuses(
    mode: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s.toml").write_text(f'target = "llama-68m"\ndraft = "self"\n{line}\n')
    words = ["--scenario", str(tmp_path / "s.toml")]
    assert run(["predict", *words]) == 2
    refusal = capsys.readouterr().err
    plan = ["--random-weights", "--write-plan", str(tmp_path / "plan.json")]
    assert run(["run", mode, *words, *plan]) == 2
    assert capsys.readouterr().err == refusal and refusal.count("\n") == 1
    assert not (tmp_path / "plan.json").exists()


def outcome(values: dict[str, Any]) -> dict[str, Any] | str:
    """The plan of a scenario, or the error message."""
    try:
        fields = scenario_fields("standalone", ScenarioInput(**values), "scenario")
        return RunPlan(mode="standalone", **fields).as_dict()
    except (ConfigError, EngineError) as error:
        return str(error)


@pytest.mark.parametrize("name", ScenarioInput.model_fields)
def test_a_scenario_field_reaches_the_plan_or_is_not_executed(name: str) -> None:
    plan = outcome(SCENARIO)
    assert isinstance(plan, dict)
    changed = outcome(SCENARIO | {name: CHANGES[name]})
    assert (changed == plan) == (name in NOT_EXECUTED)


@pytest.mark.parametrize(
    ("stated", "weights", "kv"), [({}, "fp16", "fp16"), ({"weight_dtype": "bf16"}, "bf16", "bf16")]
)
def test_a_scenario_runs_a_float16_checkpoint_in_the_type_that_is_predicted(
    stated: dict[str, Any], weights: str, kv: str, tmp_path: Path
) -> None:
    config = catalog.model_config("llama-68m") | {"torch_dtype": "float16"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    values = ScenarioInput(target=str(tmp_path), draft="self", **stated)
    fields = scenario_fields("selfspec", values, "scenario")
    assert (fields["weight_dtype"], fields["kv_dtype"]) == (weights, kv)
    assert fields["draft_dtype"] == weights
    scenario = values.scenario()
    assert (scenario.weight_dtype, scenario.kv_dtype) == (weights, kv)


@pytest.mark.parametrize("words", [[], ["a.json", "b.json"]])
def test_anything_but_one_plan_is_refused_in_one_line(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "runtime.bench", *words], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "python -m runtime.bench PLAN.json" in done.stderr


def test_dtypes_of_a_scenario_reach_the_plan() -> None:
    plan = outcome(SCENARIO | {"weight_dtype": "fp16", "kv_dtype": "fp16"})
    assert isinstance(plan, dict)
    assert [plan[f"{part}_dtype"] for part in ("weight", "kv", "draft")] == ["fp16"] * 3


@pytest.mark.parametrize("dtype", ["int8", "fp8", "int4"])
@pytest.mark.parametrize("field", ["weight_dtype", "kv_dtype"])
def test_a_dtype_that_cannot_run_is_refused_before_any_rank_starts(
    field: str,
    dtype: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("runtime.launch_ranks", lambda *_: pytest.fail("a rank started"))
    scenario = tmp_path / "scenario.toml"
    scenario.write_text(f'target = "llama-68m"\ntp = 2\n{field} = "{dtype}"\n')
    words = ["run", "baseline", "--scenario", str(scenario), "--random-weights"]
    assert run(words) == 2
    _, err = capsys.readouterr()
    assert f"{field} '{dtype}'" in err and "--dtype bf16" in err and err.count("\n") == 1
    file = tmp_path / "plan.json"
    assert run([*words, "--dtype", "bf16", "--write-plan", str(file)]) == 0
    assert RunPlan.read(file).dtype == "bfloat16"


def test_write_plan_writes_the_plan_that_would_run(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    words = "run selfspec --scenario default --model llama-68m --random-weights --tp 2 --gamma 3"
    (tmp_path / "self.toml").write_text('target = "llama-68m"\ndraft = "self"\nbatch = 2\n')
    words = words.replace("default", str(tmp_path / "self.toml"))
    assert run([*words.split(), "--write-plan", str(file)]) == 0
    flags = {"model": Path("llama-68m"), "random_weights": True, "tp": 2, "gamma": 3}
    plan = command.make_plan("selfspec", flags, str(tmp_path / "self.toml"))
    assert replace(RunPlan.read(file), command=()) == replace(plan, command=())
    assert plan.batch == 2
    assert plan.configs == {"llama-68m": config_of_shape(catalog.model("llama-68m"))}
    given = command.make_plan("selfspec", flags | {"output": "rounds.jsonl"})
    assert given.output == Path("rounds.jsonl")  # some versions of typer leave it as text


@pytest.mark.parametrize("name", FAMILIES)
def test_ranks_take_the_config_of_a_folder_from_the_plan(name: str, tmp_path: Path) -> None:
    folder, file = tmp_path / name, tmp_path / "plan.json"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(hf_config(FAMILIES[name])))
    words = ["run", "baseline", "--model", str(folder), "--write-plan", str(file)]
    assert run(words) == 0
    (folder / "config.json").unlink()
    plan = RunPlan.read(file)
    assert read_model_config(plan.model, plan.configs) == FAMILIES[name]


@pytest.mark.parametrize("mode", ["baseline", "standalone", "selfspec"])
def test_every_field_with_an_option_is_a_flag(
    mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["run", mode, "--help"]) == 0
    text = capsys.readouterr().out
    for name, (hint, _) in plan_flags().items():
        flag = (get_args(hint)[1].param_decls or [f"--{name.replace('_', '-')}"])[0]
        assert flag in text
