"""Frontier, traffic: the figures of `specroof simulate`, for random requests and for a trace."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("streamlit")

from explorer_views import opened, tables
from streamlit.testing.v1 import AppTest

from app.cli.main import run
from app.render.simulation_tables import run_rows

TRACE = Path(__file__).parents[1] / "cli" / "traffic.csv"
OPENED = {"view": "Frontier", "frontier_part": "traffic", "requests": "200"}


def page(query: dict[str, str]) -> AppTest:
    at = opened(query)
    assert not at.exception and not at.error
    return at


def table(at: AppTest) -> list[tuple[str, ...]]:
    frame = next(f for f in tables(at) if "no speculation" in f.columns)
    return [tuple(row) for row in frame.to_numpy()]


def printed(at: AppTest, capsys: pytest.CaptureFixture[str], trace: str = "") -> Any:
    """The result of the command that the page shows."""
    command = next(c.value for c in at.main.code if "simulate" in c.value)
    words = [trace if word == "mine.csv" else word for word in shlex.split(command)]
    assert run([*words[1:], "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_traffic_shows_what_simulate_prints(capsys: pytest.CaptureFixture[str]) -> None:
    limits = {"slo": "ttft<4s; tpot<100ms", "output_cv": "0.5", "arrivals": "bursty"}
    at = page(OPENED | limits | {"schedule": "true", "rate": "0.9"})
    result = printed(at, capsys)
    assert table(at) == run_rows(result) and len(result["runs"]) == 3
    shown = {metric.label: metric.value for metric in at.metric}
    for played in result["runs"]:
        assert shown[f"Goodput, {played['label']}"] == f"{played['goodput_rps']:.3g}/s"


def test_a_trace_is_simulated_and_kept_in_the_link(capsys: pytest.CaptureFixture[str]) -> None:
    at = page(OPENED)
    drawn = table(at)
    assert drawn == run_rows(printed(at, capsys))
    at.file_uploader(key="trace_file").set_value(("mine.csv", TRACE.read_bytes(), "")).run()
    assert not at.exception and not at.error
    assert table(at) == run_rows(printed(at, capsys, str(TRACE))) != drawn
    query = {k: v if isinstance(v, str) else v[0] for k, v in at.query_params.items()}
    again = page(query)
    assert table(again) == table(at) and not again.warning
    again.button(key="remove_trace").click().run()
    assert table(again) == drawn
    bad = ("mine.csv", b"prompt_tokens,output_tokens\n5,0\n", "")
    at.file_uploader(key="trace_file").set_value(bad).run()
    assert len(at.error) == 1 and "line 2" in at.error[0].value and not at.metric
    assert "/tmp" not in at.error[0].value


@pytest.mark.parametrize(
    "key, value", [("rate", -1.0), ("requests", 0), ("requests", 2.5), ("output_cv", 99.0)]
)
def test_an_invalid_input_is_one_message_without_an_old_answer(key: str, value: float) -> None:
    at = page(OPENED | {"requests": "2"})
    at.number_input(key=key).set_value(value).run()
    assert len(at.error) == 1 and not at.exception and not at.metric


def test_an_unknown_acceptance_shows_plain_decoding() -> None:
    at = page(OPENED | {"requests": "5", "draft": "llama-3.2-1b:full"})
    assert at.metric and len(table(at)[0]) == 2 and any("unknown" in i.value for i in at.info)
