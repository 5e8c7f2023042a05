"""Map and Frontier: a chosen cell, the drafts of the engine, and other machines."""

import numpy as np
import pytest

pytest.importorskip("streamlit")

from explorer_views import assert_fine, button, opened, said

from app.explorer.cached import scenario_of
from app.explorer.figures import GAIN, SPEEDUP, of_plan
from app.explorer.state import PRESETS, stated_values, widget_state
from app.explorer.views.frontier import machine_curves, own_curves, point_curve
from perfmodel import find_plan, speculation
from perfmodel.specs import parse_slo


@pytest.mark.parametrize(
    ("engine", "runs_on", "self_drafts"),
    [("vllm-0.26", "", False), ("specroof", "", True), ("specroof", "vllm", False)],
)
def test_the_fastest_draft_map_has_only_drafts_that_the_engine_runs(
    engine: str, runs_on: str, self_drafts: bool
) -> None:
    at = opened(view="Map", map_kind="winner", engine=engine, runs_on=runs_on)
    assert_fine(at, 1)
    names = at.get("plotly_chart")[0].proto.spec
    assert ("Self-speculation" in names) == self_drafts and "EAGLE-3" in names


def test_the_map_says_what_the_plan_gains_with_prompts() -> None:
    at = opened(view="Map")
    values = at.session_state["values"]
    whole = speculation.service(scenario_of(values))
    (said_once,) = (c.value.replace("\\", "") for c in at.caption if "at the star" in c.value)
    assert f"gains {of_plan(values, 'throughput')[GAIN]} at the star" in said_once
    assert f"{float(whole.prefill_share):.0%} of the GPU time" in said_once
    at.selectbox(key="prefill").select("disaggregated").run()
    assert any("on other GPUs" in c.value for c in at.caption)


def test_a_clicked_cell_is_used_with_its_draft() -> None:
    at = opened(view="Map", map_kind="winner", engine="specroof")
    name = "Self-speculation, SnapKV 2049"
    at.session_state["map_cell"] = (61, 4351, 2, name)
    at.run()
    panel = next(text for text in said(at) if f"- {SPEEDUP}: " in text)
    button(at, "Use, and see why").click().run()
    assert not at.exception and at.session_state["view"] == "Why"
    chosen = dict(at.session_state["values"])
    assert (chosen["draft_policy"], chosen["batch"], chosen["gamma"]) == ("snapkv", 61, 2)
    assert chosen["prompt_tokens"] == 4351
    shown = next(m.value for m in at.metric if m.label == SPEEDUP)
    assert shown in panel
    button(at, "Undo").click().run()
    assert dict(at.session_state["values"])["batch"] == 64


def test_a_cell_is_chosen_without_a_pointer() -> None:
    for kind in ("speedup", "winner"):
        at = opened(view="Map", map_kind=kind)
        at.selectbox(key="cell_batch").select(8).run()
        batch, prompt, gamma, _ = at.session_state["map_cell"]
        assert batch == 8 and abs(prompt - 32_000) < 2_000  # the nearest to the workload's prompt
        at.selectbox(key="cell_prompt").select_index(0).run()
        batch, prompt, gamma, _ = at.session_state["map_cell"]
        assert (batch, prompt) == (8, 1000)
        button(at, "Use on this page").click().run()
        values = dict(at.session_state["values"])
        assert not at.exception and (values["batch"], values["prompt_tokens"]) == (8, 1000)
        assert values.get("gamma", 0) == gamma


@pytest.mark.parametrize("kind", ["speedup", "winner"])
def test_a_cell_that_does_not_fit_says_so_and_shows_no_other_figures(kind: str) -> None:
    at = opened(view="Map", map_kind=kind)
    for key, index in (("cell_batch", 0), ("cell_prompt", 0), ("cell_batch", -1)):
        box = at.selectbox(key=key)
        box.select_index(index % len(box.options)).run()
    at.selectbox(key="cell_prompt").select_index(len(at.selectbox(key="cell_prompt").options) - 1)
    at.run()
    panel = [text for text in said(at) if "Does not fit" in text]
    assert not at.exception and len(panel) == 1
    assert not any(f"- {SPEEDUP}: " in text for text in said(at))


def test_the_star_of_the_frontier_is_the_recommended_service() -> None:
    values = {"target": "llama-3.1-8b", "gpu": "h100-sxm", "tp": 4, "batch": 32}
    answer = find_plan(values | {"draft": "self:snapkv", "slo": "ttft<9s"})
    best = answer.best
    curve = point_curve(best.scenario, parse_slo("ttft<9s"))
    assert curve is not None and bool(curve.meets[0])
    assert curve.tpot_s[0] == pytest.approx(best.tpot_s)
    assert curve.per_gpu[0] == pytest.approx(best.throughput_per_gpu)
    stated = stated_values(widget_state(values | {"draft": "self"}))
    beside = machine_curves(stated, "hgx-h200")
    assert [c.speculates for c in beside] == [False, True] and len(set(beside[0].tp)) > 1
    assert_fine(
        opened(view="Frontier", frontier_machines=["hgx-h200"], price=2.0, slo="ttft<9s"), 1
    )


def test_a_draft_has_as_many_ranks_on_another_machine() -> None:
    stated = stated_values(widget_state(PRESETS["llama-2-7b-32k-tinyllama"]))
    slo, here = parse_slo(""), str(dict(stated)["machine"])
    fastest = [
        max(float(np.max(curve.user_speed)) for curve in curves if curve.speculates)
        for curves in (own_curves(stated, slo), machine_curves(stated, here))
    ]
    assert fastest[0] == pytest.approx(fastest[1])
