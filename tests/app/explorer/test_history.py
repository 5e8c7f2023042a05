"""Back, undo, pins and late clicks keep the plan that the browser shows."""

import random
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("streamlit")

import streamlit as st
from explorer_views import button, go, link, page, plan, show
from streamlit.runtime.scriptrunner_utils.exceptions import StopException
from streamlit.runtime.state.safe_session_state import SafeSessionState

from app.explorer.address import MAX_LINK, PAGE
from app.explorer.state import DEFAULTS


def test_a_widget_that_is_hidden_for_a_while_keeps_its_value() -> None:
    at = page({"kv_budget": "5%"}, view="Check")
    at.selectbox(key="draft").select("none").run()
    assert plan(at).plan.draft == "none" and link(at)["kv_budget"] == "5%"
    at.selectbox(key="draft").select("self:snapkv").run()
    assert plan(at).plan.budget_text == "5%"


def test_going_back_restores_the_plan_and_the_view() -> None:
    at = page(view="Check")
    earlier, before = link(at), plan(at)
    at.number_input(key="batch").set_value(9).run()
    at.segmented_control(key="view").set_value("Why").run()
    assert link(at)["batch"] == "9" and link(at)["view"] == "Why"
    go(at, earlier)
    assert plan(at) == before and at.session_state["view"] == "Check"


def test_going_back_twice_at_once_goes_back_twice() -> None:
    """The second Back arrives with the inputs that the browser showed before the first."""
    at = page(view="Check")
    links, plans = [], []
    for batch in (9, 7, 5):
        links.append(link(at))
        plans.append(plan(at))
        at.number_input(key="batch").set_value(batch).run()
    shown = at.session_state[PAGE]
    go(at, links[2])
    show(at, links[1], shown)
    at.number_input(key="batch").set_value(5).run()
    assert plan(at) == plans[1] and link(at) == links[1]
    at.number_input(key="batch").set_value(5).run()  # now it is typed
    assert plan(at).workload.batch == 5 and link(at)["batch"] == "5"


def test_a_click_that_streamlit_joins_to_back_is_applied_to_the_inputs_of_the_link() -> None:
    """The run has the link and the click, but is not said to be of Back."""
    at = page(view="Check")
    earlier, before = link(at), plan(at)
    at.number_input(key="batch").set_value(9).run()
    show(at, earlier)
    at.number_input(key="output_tokens").set_value(77).run()
    assert plan(at).workload == replace(before.workload, output_tokens=77)
    assert link(at) == earlier | {"output_tokens": "77"}


def test_a_click_before_back_is_shown_is_applied_to_the_inputs_of_the_link() -> None:
    at = page(view="Check")
    earlier, before = link(at), plan(at)
    at.number_input(key="batch").set_value(9).run()
    shown = at.session_state[PAGE]
    go(at, earlier)
    show(at, earlier, shown)
    at.number_input(key="batch").set_value(9)  # as the browser still shows it
    at.number_input(key="output_tokens").set_value(77).run()
    assert plan(at).workload == replace(before.workload, output_tokens=77)


def test_a_click_at_any_moment_of_backs_run_is_applied_to_the_inputs_of_the_link(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Streamlit ends a run for a newer one at an access to the session's state."""
    written: list[str] = []
    end_after = ""
    write = SafeSessionState.__setitem__

    def write_and_end(state: Any, key: str, value: Any) -> None:
        write(state, key, value)
        written.append(key)
        if key == end_after:
            raise StopException

    monkeypatch.setattr(SafeSessionState, "__setitem__", write_and_end)
    at = page(view="Check")
    earlier, before = link(at), plan(at)
    moments = [key for key in dict.fromkeys(written) if key in at.session_state]
    assert {"address", "target", "batch"} < {*moments}
    for moment in [key for key in moments if key not in DEFAULTS or key in ("target", "batch")]:
        at.number_input(key="batch").set_value(9).run()
        shown = at._tree
        end_after = moment
        go(at, earlier)
        end_after = ""
        at._tree = shown  # the browser has not been sent another page
        show(at, earlier)
        at.number_input(key="output_tokens").set_value(77).run()
        assert plan(at).workload == replace(before.workload, output_tokens=77), moment
        go(at, earlier)
        assert plan(at) == before


def test_a_click_before_the_url_arrives_is_not_taken_for_going_back() -> None:
    at = page(view="Check")
    stale, shown = link(at), at.session_state[PAGE]
    at.number_input(key="batch").set_value(9).run()
    show(at, stale, shown)
    at.number_input(key="output_tokens").set_value(77).run()
    assert (plan(at).workload.batch, plan(at).workload.output_tokens) == (9, 77)
    assert link(at)["batch"] == "9"


def test_undo_takes_back_one_change_of_an_input_after_another() -> None:
    at = page(view="Check")
    plans = [plan(at)]
    for batch in (9, 7):
        at.number_input(key="batch").set_value(batch).run()
        plans.append(plan(at))
    at.segmented_control(key="view").set_value("Why").run()
    for before in (plans[1], plans[0]):
        button(at, "Undo").click().run()
        assert plan(at) == before and at.session_state["view"] == "Why"
    assert button(at, "Undo").disabled


def test_undo_takes_back_limits_choices_of_decide_and_pins() -> None:
    at = page(view="Check")
    start = link(at)
    at.number_input(key="price").set_value(2.5).run()
    at.selectbox(key="runs_on").select("vllm").run()
    at.checkbox(key="search_tp").check().run()
    button(at, "Pin").click().run()
    for key in ("pins", "search_tp", "runs_on", "price"):
        assert key in link(at)
        button(at, "Undo").click().run()
        assert key not in link(at)
    assert link(at) == start and button(at, "Undo").disabled


def test_undo_and_pins_stay_beside_an_invalid_input_and_undo_never_opens_one() -> None:
    at = page(view="Check")
    start = plan(at)
    button(at, "Pin").click().run()
    at.text_input(key="slo").set_value("x").run()
    assert len(at.error) == 1 and button(at, "Pin").disabled
    at.number_input(key="batch").set_value(9).run()
    at.text_input(key="slo").set_value("").run()
    assert not at.error and plan(at) != start
    button(at, "Undo").click().run()
    assert not at.error and plan(at) == start
    at.text_input(key="slo").set_value("x").run()
    at.button(key="open_1").click().run()  # a pin has no limits: it keeps the page's
    assert len(at.error) == 1
    button(at, "Undo").click().run()
    assert not at.error and plan(at) == start


def test_a_plan_keeps_the_acceptance_that_it_does_not_have() -> None:
    rates = "0.9, 0.7, 0.5"
    given = {"acceptance_form": "acceptance_per_position", "acceptance_per_position": rates}
    at = page({"draft": "self:snapkv", "gamma": "6", "kv_budget": "999"} | given, view="Decide")
    before = plan(at)
    said = [text.value.replace("\\", "") for text in at.main.markdown]
    plans = [text for text in said if "tokens/s/GPU" in text]
    place = next(i for i, text in enumerate(plans) if "No speculation" in text)
    at.button(key=f"use_{place}").click().run()
    assert not plan(at).plan.speculates
    at.selectbox(key="draft").select("self:snapkv").run()
    assert plan(at) == before


def test_a_pin_is_opened_under_the_limits_of_the_page() -> None:
    at = page(view="Check")
    button(at, "Pin").click().run()
    at.text_input(key="slo").set_value("tpot<99ms").run()
    at.number_input(key="batch").set_value(9).run()
    at.button(key="open_1").click().run()
    assert plan(at).workload.batch == 64 and link(at)["slo"] == "tpot<99ms"


def test_back_keeps_an_upload_that_is_too_long_for_the_link() -> None:
    at = page(view="Check")
    noise = random.Random(0).randbytes(MAX_LINK)
    at.file_uploader(key="report_files").set_value(
        [("a.log", noise[:6000].hex().encode(), "text/plain")]
    ).run()
    long = [("b.log", noise.hex().encode(), "text/plain")]
    at.file_uploader(key="report_files").set_value(long).run()
    earlier, reports = link(at), at.session_state["reports"]
    assert "reports" not in earlier
    at.number_input(key="batch").set_value(9).run()
    go(at, earlier)
    assert plan(at).workload.batch == 64 and at.session_state["reports"] == reports
    assert not at.warning


def test_an_input_that_is_set_back_at_once_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second click reaches the server before the link of the first reaches the browser."""
    sent: list[dict[str, str]] = []
    proxy = type(st.query_params)
    send = proxy.from_dict

    def from_dict(params: Any, query: dict[str, str]) -> None:
        sent.append(query)
        send(params, query)

    monkeypatch.setattr(proxy, "from_dict", from_dict)
    at = page(view="Check")
    before, stale, shown = plan(at), link(at), at.session_state[PAGE]
    at.number_input(key="batch").set_value(9).run()
    show(at, stale, shown)
    at.number_input(key="batch").set_value(before.workload.batch).run()
    go(at, sent[-1])  # what the browser shows in the end
    assert len(sent) == 2 and plan(at) == before and link(at) == stale
    go(at, stale)  # Back to an equal link sends none: it would end the way forward
    assert len(sent) == 2
