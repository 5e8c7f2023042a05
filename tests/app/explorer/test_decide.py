"""Decide: the answer of recommend, its limits and alternatives, and what it exports."""

import json
import subprocess

import pytest

pytest.importorskip("streamlit")

from explorer_views import button, opened, said, tables, texts

from app.cli.main import run
from app.explorer.figures import GAIN, RATE, SPEEDUP
from app.explorer.state import stated_values
from perfmodel import parse_scenario
from perfmodel.reports import ENGINES
from perfmodel.specs import profile_version


@pytest.mark.parametrize("runs_on", ["", "vllm"])
def test_decide_shows_the_answer_of_recommend(
    runs_on: str, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = 4000 if runs_on else 32_000  # the acceptance of EAGLE-3 is known for short prompts
    flags = ["--price", "2.5", "--prefill", "disaggregated", "--prompt-tokens", str(prompt)]
    flags += ["--runs-on", runs_on] if runs_on else []
    flags += ["--engine", "specroof", "--json"]
    assert run(["recommend", "--scenario", "default", *flags]) == 0
    answer = json.loads(capsys.readouterr().out)
    inputs = {"price": 2.5, "prefill": "disaggregated", "runs_on": runs_on}
    at = opened(engine="specroof", prompt_tokens=prompt, **inputs)
    words = at.success[0].value.partition("\n")[2].replace("\\", "").split()
    assert answer["sentence"].split() == words
    shown = {metric.label: metric.value for metric in at.metric}
    best = answer["best"]
    assert shown["Cost per M tokens"] == f"{best['cost_per_million_tokens']:.3g}"
    assert shown[RATE] == f"{best['throughput_per_gpu']:,.0f}"
    plans = [text for text in said(at) if "tokens/s/GPU" in text]
    assert len(plans) == 1 + len(answer["runners_up"]) + bool(answer["engine_gap"])
    low, high = answer["gain_interval_90"]
    assert plans[0].startswith(f"**Recommended: {best['label']}, TP 8**")
    assert f"gain {best['gain']:.2f}x ({low:.2f}-{high:.2f})" in plans[0]
    assert any("badge" in text and "vLLM 0.26" in text for text in said(at))


def test_the_start_names_an_engine_that_users_have_and_a_plan_that_it_runs() -> None:
    scenario = parse_scenario(dict(stated_values({}))).scenario()
    assert profile_version(scenario.engine.name) is not None and scenario.engine_obstacle is None
    at = opened(view="Check")
    assert any(f"engine {scenario.engine.name} (" in text for text in said(at))


def test_a_limit_that_no_plan_meets_is_named_without_a_chart_of_memory() -> None:
    at = opened(slo="tpot<1us")
    assert "the closest is" in at.warning[0].value and not at.get("plotly_chart")
    assert "No plan meets the limits" in at.warning[0].value
    at = opened(batch=100_000)
    assert "the closest is" in at.warning[0].value and len(at.get("plotly_chart")) == 1
    at.button(key="use_batch").click().run()
    assert not at.warning and at.metric and 0 < at.session_state["batch"] < 100_000


def test_plain_decoding_is_an_answer() -> None:
    at = opened(engine="specroof", batch=1, prompt_tokens=1000, drafts=["self:streamingllm"])
    assert not at.error and "decode plainly" in at.info[0].value and at.metric


def test_the_binding_limit_and_what_it_excludes_are_shown() -> None:
    at = opened(engine="specroof", slo="tpot<100ms", search_tp=True)
    assert "binding limit: tpot; without it, " in texts(at).replace("\\", "")
    assert any("TPOT" in text and "≤" in text for text in said(at))


@pytest.mark.parametrize(("limit", "colour"), [("60ms", "orange"), ("200ms", "green")])
def test_a_limit_within_the_error_is_not_shown_as_met(limit: str, colour: str) -> None:
    plan = {"draft": "eagle3:full", "gamma": 3, "price": 3.5, "slo": f"tpot<{limit}"}
    work = {"batch": 24, "prompt_tokens": 12_000, "output_tokens": 500, "engine": "sglang-0.5"}
    at = opened(target="qwen3-32b", machine="hgx-h200", tp=2, **work, **plan)
    (chip,) = (text for text in said(at) if "badge[TPOT" in text)
    near = "the plan may miss it" in at.get("success" if at.success else "info")[0].value
    assert f":{colour}-badge" in chip and near == (colour == "orange")


def test_a_rival_is_used_in_every_view_and_pinned_beside_others() -> None:
    at = opened(engine="specroof", draft="self:streamingllm")
    plans = [text for text in said(at) if "tokens/s/GPU" in text]
    rival = next(i for i, text in enumerate(plans) if "SnapKV" in text)
    assert not at.button(key=f"use_{rival}").disabled
    button(at, "Pin").click().run()
    at.button(key=f"use_{rival}").click().run()
    assert at.session_state["draft"] == "self:snapkv" and not at.exception
    assert at.button(key=f"use_{rival}").disabled
    button(at, "Pin").click().run()
    (table,) = [f.set_index("") for f in tables(at) if "pin 1" in f.columns]
    assert [*table.columns] == ["pin 1", "pin 2"] and SPEEDUP in table.index
    at.button(key="unpin_2").click().run()
    at.button(key="open_1").click().run()
    assert at.session_state["draft"] == "self:streamingllm" and not at.exception
    at.button(key="unpin_1").click().run()
    assert at.session_state["pins"] == []


def test_a_gain_beside_the_figures_of_another_plan_names_its_plan() -> None:
    at = opened(engine="specroof", batch=1, prompt_tokens=1000, drafts=["self:streamingllm"])
    labels = [metric.label for metric in at.metric]
    assert "decode plainly" in at.info[0].value and GAIN not in labels
    assert any(label.startswith(f"{GAIN}, of Self") for label in labels)
    speculates = opened(engine="specroof", prefill="disaggregated")
    assert speculates.success and GAIN in [metric.label for metric in speculates.metric]


def test_decide_exports_a_standalone_draft_to_every_engine_as_shell_commands() -> None:
    plan = {"draft": "llama-3.2-1b:full", "draft_tp": 8, "acceptance_form": "acceptance"}
    at = opened(export_plan="page", **plan)
    for engine in ENGINES:
        at.segmented_control(key="deploy_engine").set_value(engine).run()
        assert not at.exception and at.main.code
        for block in at.main.code:
            if block.language == "bash":
                subprocess.run(["bash", "-n", "-c", block.value], check=True)
        assert ("Benchmark" in texts(at)) == (engine != "specroof")


@pytest.mark.parametrize(
    ("target", "draft", "checkpoint"),
    [
        ("llama-3.1-8b", "eagle3", "lmsys/SGLang-EAGLE3-Llama-3.1-8B-Instruct-SpecForge"),
        ("deepseek-v3", "mtp", "deepseek-ai/DeepSeek-V3"),
    ],
)
def test_decide_exports_the_head_whose_acceptance_it_uses(
    target: str, draft: str, checkpoint: str
) -> None:
    at = opened(view="Check", target=target, machine="hgx-b200", draft=f"{draft}:full", batch=8)
    at.session_state["export_plan"] = "page"
    at.selectbox(key="engine").select("sglang-0.5").run()
    at.segmented_control(key="view").set_value("Decide").run()
    assert at.session_state["deploy_engine"] == "sglang" and not at.error
    codes = [code.value for code in at.main.code]
    assert any("sglang.launch_server" in code and checkpoint in code for code in codes)


@pytest.mark.parametrize("target", ["gemma-3-27b", "mixtral-8x7b"])
def test_a_plan_that_an_engine_cannot_run_with_any_checkpoint_asks_for_none(target: str) -> None:
    plan = {"target": target, "machine": "hgx-h200", "draft": "eagle3:full", "acceptance": 0.8}
    at = opened(export_plan="page", engine="vllm-0.26", acceptance_form="acceptance", **plan)
    keys = {widget.key for widget in (*at.main.text_input, *at.main.toggle)}
    assert not at.exception and not keys & {"draft_checkpoint", "by_batch"}
    assert any("cannot run this plan" in info.value for info in at.info)


def test_an_engine_that_runs_a_plan_but_is_not_exported_to_is_not_said_to_refuse_it() -> None:
    work = {"machine": "hgx-h200", "tp": 1, "batch": 8, "prompt_tokens": 2000}
    at = opened(engine="vllm-0.7", draft="none", **work)
    assert not at.exception and any("green-badge[vLLM 0.7 runs it]" in text for text in said(at))
    told = [info.value.replace("\\", "") for info in at.info]
    assert any(text.startswith("vLLM 0.7 runs this plan; no command is written") for text in told)
    at = opened(engine="vllm-0.7", draft="eagle3:full", export_plan="page", **work)
    told = [info.value.replace("\\", "") for info in at.info]
    assert any(t.startswith("vLLM 0.7 cannot run this plan: it has no built-in") for t in told)


def test_a_checkpoint_that_cannot_be_exported_is_one_message() -> None:
    own = {"draft": "eagle3:full", "draft_checkpoint_of": "llama-3.1-8b:eagle3"}
    at = opened(export_plan="page", draft_checkpoint="\u202eabc", **own)
    assert len(at.error) == 1 and not at.exception
    at.text_input(key="draft_checkpoint").set_value("me/head").run()
    assert not at.error and any("me/head" in code.value for code in at.main.code)
