"""Begin from a pasted `vllm serve` line, a hub id, or a use case."""

import json
import shlex

import pytest

pytest.importorskip("streamlit")

from explorer_views import button, opened
from streamlit.testing.v1 import AppTest

from app.cli.main import run
from app.explorer.cached import scenario_of
from app.explorer.inputs.begin import USE_CASES
from app.explorer.scenario_text import command_text
from perfmodel import catalog, parse_scenario

LINE = (
    "CUDA_VISIBLE_DEVICES=0,1 vllm serve Qwen/Qwen3-32B \\\n  -tp 2 --max-num-seqs=32 "
    "--kv-cache-dtype fp8_e4m3 --trust-remote-code --quantization fp8"
)
QWEN = "vllm serve Qwen/Qwen3-32B"


@pytest.mark.parametrize("engine", ["vllm-0.26", "sglang-0.5", "specroof"])
def test_what_is_pasted_has_a_draft_that_the_engine_runs(engine: str) -> None:
    at = opened(view="Check", engine=engine)
    suffix = json.dumps({"method": "suffix", "num_speculative_tokens": 4})
    line = shlex.join(["vllm", "serve", QWEN.split()[-1], "-sc", suffix])
    for pasted in ("Qwen/Qwen3-8B", "Qwen/Qwen3-32B", line):
        at.text_input(key="pasted").set_value(pasted).run()
        scenario = scenario_of(at.session_state["values"])
        assert not at.error and not at.exception and scenario.plan.speculates
        assert scenario.engine_obstacle is None, pasted
    assert scenario.plan.draft == "suffix"


def test_the_page_begins_from_what_is_pasted() -> None:
    at = opened(view="Check")
    pasted = at.text_input(key="pasted")
    pasted.set_value(LINE).run()
    values = dict(at.session_state["values"])
    assert (values["target"], values["tp"], values["kv_dtype"]) == ("qwen3-32b", 2, "fp8")
    assert values["draft"] == "none" and at.session_state["runs_on"] == "vllm"
    assert any("trust" in caption.value for caption in at.sidebar.caption)
    at.text_input(key="pasted").set_value("meta-llama/Llama-3.1-70B-Instruct").run()
    values = dict(at.session_state["values"])
    assert values["target"] == "llama-3.1-70b" and "kv_dtype" not in values
    for name, case in USE_CASES.items():
        at.selectbox(key="preset").select(name).run()
        assert case.items() <= dict(at.session_state["values"]).items() and not at.exception
    at.number_input(key="prompt_tokens").set_value(123).run()
    assert at.selectbox(key="preset").value is None  # no longer the use case
    before = dict(at.session_state["values"])
    at.selectbox(key="runs_on").select("").run()
    for wrong in (shlex.quote("../x y"), f"{QWEN} -pp 2"):
        at.text_input(key="pasted").set_value(wrong).run()
        assert len(at.error) == 1 and not at.main.code and at.session_state["runs_on"] == ""
    at.button(key="dismiss").click().run()
    assert dict(at.session_state["values"]) == before and at.main.code and not at.error


def test_a_gpu_is_described_by_a_form_and_kept_in_the_link(
    capsys: pytest.CaptureFixture[str],
) -> None:
    at = opened(view="Why", gpu_form=True)
    name, bandwidth = at.text_input(key="gpu_name"), at.number_input(key="gpu_hbm_bandwidth")
    sms = at.number_input(key="gpu_sm_count")
    bandwidth.set_value(1e30)
    _use_gpu(at)
    assert "hbm_bandwidth=1e+30 TB/s" in at.error[0].value.replace("\\", "")
    for wrong in (name.set_value("h200"), sms.set_value(0), bandwidth.set_value(-1.0)):
        _use_gpu(at)
        assert len(at.error) == 1 and not at.exception and not at.metric, wrong
        assert at.session_state["machine"] == "dgx-a100-80gb"
        at.text_input(key="gpu_name").set_value("mine")
        at.number_input(key="gpu_sm_count").set_value(120)
    at.number_input(key="gpu_hbm_bandwidth").set_value(3.5)
    _use_gpu(at)
    assert not at.error and not at.exception
    values = dict(at.session_state["values"])
    machine = parse_scenario(values).scenario().machine
    assert (machine.name, machine.gpu.hbm_bandwidth) == ("8xmine", 3.5e12)
    assert run([*shlex.split(command_text(tuple(values.items())))[1:], "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    again = opened(at.query_params)
    assert not again.warning and not again.error
    assert [m.value for m in again.metric] == [m.value for m in at.metric]
    assert f"{printed['speedup']:.2f}x" in [m.value for m in again.metric]
    assert parse_scenario(dict(again.session_state["values"])).scenario().machine == machine


def test_a_tp_that_too_few_gpus_replaced_returns_with_more_of_them() -> None:
    at = opened(view="Check", gpu_form=True)
    assert at.session_state["tp"] == 8
    for gpus, tp, chosen in ((3, 2, 0), (4, 4, 0), (8, 8, 0), (3, 2, 1), (8, 1, 0)):
        at.number_input(key="gpu_gpus_per_node").set_value(gpus)
        _use_gpu(at)
        assert not at.exception and not at.error and at.session_state["tp"] == tp
        if chosen:
            at.selectbox(key="tp").select(chosen).run()


def _use_gpu(at: AppTest) -> None:
    button(at, "Use this GPU").click().run()


@pytest.mark.parametrize("pasted", ["Qwen/Qwen3-32B-FP8", "RedHatAI/Qwen3-32B-quantized.w4a16"])
def test_a_quantised_checkpoint_is_exported_until_the_types_are_others(pasted: str) -> None:
    at = opened()
    at.text_input(key="pasted").set_value(f"vllm serve {pasted} -tp 4 --max-num-seqs 8").run()
    assert not at.exception and at.session_state["target_checkpoint"] == pasted
    assert any(f"vllm serve {pasted} " in code.value for code in at.code)
    at.selectbox(key="weight_dtype").select("bf16").run()
    assert not at.exception and not any(f"serve {pasted} " in code.value for code in at.code)
    assert any("vllm serve Qwen/Qwen3-32B " in code.value for code in at.code)


def test_a_head_is_exported_only_with_its_target_and_its_method() -> None:
    at = opened(export_plan="page", machine="hgx-h200")
    spec = {"method": "eagle3", "model": "me/head-a", "num_speculative_tokens": 3}
    line = f"{shlex.join(['--speculative-config', json.dumps(spec)])} --max-num-seqs 8"
    at.text_input(key="pasted").set_value(
        f"vllm serve meta-llama/Llama-3.1-8B-Instruct {line}"
    ).run()

    def commands() -> str:
        return " ".join(code.value for code in at.main.code)

    assert not at.exception and "me/head-a" in commands()
    for key, other in (("draft", "dflash:full"), ("target", "qwen3-8b"), ("pasted", QWEN[11:])):
        (at.text_input if key == "pasted" else at.selectbox)(key=key).set_value(other).run()
        assert not at.exception and "me/head-a" not in commands(), key
    at.text_input(key="pasted").set_value("meta-llama/Llama-3.1-8B-Instruct").run()
    at.selectbox(key="draft").set_value("eagle3:full").run()
    assert "me/head-a" in commands()
    at.selectbox(key="draft").set_value("dflash:full").run()
    at.text_input(key="other_checkpoint").set_value("me/head-b").run()
    assert not at.exception and "me/head-b" in commands()
    assert at.session_state["draft_checkpoint"] == "me/head-b"


@pytest.mark.parametrize("target", ["llama-3.1-8b", "qwen3-32b"])
def test_a_pasted_id_keeps_the_draft_or_takes_one_of_known_acceptance(target: str) -> None:
    at = opened(view="Check", gamma=4)
    before = scenario_of(at.session_state["values"])
    for draft in (before.plan.draft, "ngram"):  # the latter has no known acceptance
        at.session_state["draft"] = f"{draft}:full"
        at.run()
        at.text_input(key="pasted").set_value(catalog.model(target).hub_id).run()
        after = scenario_of(at.session_state["values"])
        assert not at.exception and after.target.name == target
        assert after.acceptance is not None or after.curve is not None
        assert draft == "ngram" or after.plan == before.plan
