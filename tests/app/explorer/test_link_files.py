"""A link holds uploaded and pasted files, or says which it leaves out."""

import json
import random
from dataclasses import replace

import pytest

pytest.importorskip("streamlit")

import streamlit as st
from explorer_views import CONFIG, button, link, page, plan
from streamlit.testing.v1 import AppTest

from app.explorer.address import MAX_LINK
from app.explorer.inputs.uploads import NEEDED
from app.explorer.packing import pack, unpack
from app.explorer.state import FORMER_DEFAULTS, UPLOADED
from perfmodel import ModelSpec


def model(at: AppTest) -> ModelSpec:
    """The target without its path, which lies in a folder of the session."""
    return replace(plan(at).target, source="")


def uploaded_page(view: str) -> AppTest:
    at = page({"drafts": "self:streamingllm"}, view=view)
    file = ("mine.json", json.dumps(CONFIG).encode(), "application/json")
    at.file_uploader(key="model_file").set_value(file).run()
    assert not at.exception and at.session_state["target"] == UPLOADED
    return at


def test_the_link_contains_an_uploaded_model() -> None:
    at = uploaded_page("Check")
    assert plan(at).target.name == "mine" and len(link(at)["model_config"]) < 500
    again = page(link(at))
    assert model(again) == model(at) and not again.warning


def test_the_plan_of_an_uploaded_model_is_taken_and_pinned() -> None:
    at = uploaded_page("Decide")
    at.selectbox(key="acceptance_form").select("acceptance").run()
    at.button(key="use_0").click().run()
    assert not at.exception and plan(at).target.name == "mine"
    button(at, "Pin").click().run()
    pinned, uploaded = plan(at).plan, model(at)
    at.selectbox(key="target").select("llama-2-7b").run()
    again = page(link(at))
    again.button(key="open_1").click().run()
    assert not again.exception and model(again) == uploaded
    assert plan(again).plan == pinned


def test_a_link_that_leaves_something_out_says_so() -> None:
    noise = random.Random(0).randbytes(2 * MAX_LINK).hex()
    at = page(view="Check")
    file = ("big.json", json.dumps(CONFIG | {"_name_or_path": noise}).encode(), "application/json")
    at.file_uploader(key="model_file").set_value(file).run()
    assert plan(at).target.name == "big" and "model_config" not in link(at)
    assert any("link is partial" in caption.value for caption in at.caption)
    assert plan(page(link(at))).target.name == "big"  # a reload, by the same server
    st.cache_resource.clear()
    assert "uploaded" in page(link(at)).warning[0].value


def test_what_is_uploaded_and_pasted_in_check_is_in_the_link() -> None:
    at = page({"plain_ms": "20", "round_ms": "4:60"}, view="Check")
    at.text_area(key="report").set_value("not a report").run()
    csv = ",".join(NEEDED) + "\nh200,llama-3.1-8b,self,3,1,32,16384,18.3,21.1,20.4\n"
    at.file_uploader(key="measurements").set_value(("a.csv", csv.encode(), "text/csv")).run()
    assert len(at.error) == 1 and len(at.get("plotly_chart")) == 2
    again = page(link(at))
    assert [e.value for e in again.error] == [e.value for e in at.error]
    assert len(again.get("plotly_chart")) == 2 and not again.warning
    again.text_area(key="report").set_value("").run()
    again.button(key="remove_step_times").click().run()
    assert not again.error and not again.get("plotly_chart")
    assert set(link(again)) == {"view", "plain_ms", "round_ms", *FORMER_DEFAULTS}


def test_the_reader_of_a_partial_link_is_told_what_to_add() -> None:
    at = page(view="Check")
    noise = random.Random(0).randbytes(MAX_LINK).hex()
    files = [("a.log", noise.encode(), "text/plain")]
    at.file_uploader(key="report_files").set_value(files).run()
    assert any("leaves out the uploaded reports" in caption.value for caption in at.caption)
    assert link(at)["left_out"].startswith("reports:")
    assert not page(link(at)).warning
    st.cache_resource.clear()
    (warning,) = page(link(at)).warning
    assert "the uploaded reports" in warning.value


def test_a_packed_text_is_bounded() -> None:
    assert unpack(pack("α 0.8")) == "α 0.8"
    with pytest.raises(ValueError, match="too large"):
        unpack(pack("0" * 50_000_000))
