"""Invalid, huge and malicious uploads give one message; the server is local and private."""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("streamlit")

from explorer_views import CONFIG, ENTRY, button, opened, tables
from streamlit.testing.v1 import AppTest

from app.cli.commands.explore import explorer_command
from app.cli.main import run
from app.explorer.inputs.uploads import (
    MAX_UPLOAD_BYTES,
    measurement_upload,
    model_upload,
    scenario_upload,
    vllm_acceptance,
)
from app.explorer.scenario_text import command_text, toml_text
from app.explorer.show import plain
from calibration.fit import fit_rows
from calibration.records.published import magicdec_rows
from perfmodel import ConfigError, catalog, parse_scenario
from perfmodel.catalog.engines import engine_profile
from perfmodel.units import format_seconds

ROOT = Path(__file__).parents[3]
GOLDEN = (ROOT / "calibration" / "golden" / "magicdec_step_times.csv").read_bytes()
EVIL = "<script>alert(1)</script>![x](http://evil.example/x.png).toml"
COUNTERS = """
# HELP vllm:spec_decode_num_drafts_total Number of drafts.
vllm:spec_decode_num_drafts_total{engine="0",model_name="m"} 600.0
vllm:spec_decode_num_drafts_total{engine="1",model_name="m"} 400.0
vllm:spec_decode_num_draft_tokens_total{engine="0",model_name="m"} 3000.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="0"} 800.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="1"} 600.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="2"} 3e+02
"""

PER_POSITION = "acceptance_per_position"

HOSTILE_TOML = {
    "huge": b"#" * (MAX_UPLOAD_BYTES + 1),
    "binary": b"\x89PNG\r\n\x1a\n\xff",
    "pickle": b"\x80\x04\x95\x0c\x00\x00\x00\x00\x00\x00\x00\x8c\x05hello\x94.",
    "not toml": b"{]",
    "path": b"target = '/etc/passwd'\n",
    "contradiction": b"acceptance = 0.5\ntokens_per_round = 2.0\n",
}
HOSTILE_CSV = {
    "huge": b"a" * (MAX_UPLOAD_BYTES + 1),
    "empty": b"",
    "binary": b"\xff\xfe\x00",
    "nul": b"a,b\n\0,1\n",
    "no rows": GOLDEN.splitlines()[3] + b"\n",
    "unknown columns": b"a,b\n1,2\n",
    "nan": GOLDEN.splitlines()[3] + b"\n" + GOLDEN.splitlines()[4].replace(b"6.71", b"nan"),
    "infinite": GOLDEN.splitlines()[3] + b"\n" + GOLDEN.splitlines()[4].replace(b"6.71", b"inf"),
    "negative": GOLDEN.splitlines()[3] + b"\n" + GOLDEN.splitlines()[4].replace(b"6.71", b"-1"),
    "short row": GOLDEN.splitlines()[3] + b"\nT6,h100-sxm\n",
    "long row": GOLDEN.splitlines()[3] + b"\n" + GOLDEN.splitlines()[4] + b",1,2,3\n",
    "markup": GOLDEN.splitlines()[3]
    + b"\n"
    + GOLDEN.splitlines()[4].replace(b"llama-3.1-8b", b"<img src=x onerror=alert(1)>"),
    "unknown gpu": GOLDEN.splitlines()[3]
    + b"\n"
    + GOLDEN.splitlines()[4].replace(b"h100-sxm", b"h100-nope"),
    "unclosed quote": GOLDEN.splitlines()[3] + b'\n"',
}


def uploaded(key: str, name: str, data: bytes, kind: str, view: str = "Check") -> AppTest:
    at = opened(view=view)
    at.file_uploader(key=key).set_value((name, data, kind)).run()
    return at


def assert_one_message(at: AppTest) -> str:
    assert [e.message for e in at.exception] == []
    assert len(at.error) == 1
    message = at.error[0].value
    assert "\n" not in message.strip() and len(message) < 800
    assert "<script" not in message.replace("\\<", "") and "![x](" not in message
    return str(message)


HOSTILE_MODEL = (
    b"{",
    b"[]",
    b"{}",
    b'{"model_type": "llama", "hidden_size": NaN}',
    b"\xff",
    json.dumps(CONFIG).replace("{", '{"vocab_size": 99, ', 1).encode(),  # a key is repeated
    b"{" * 9999,
)


def test_a_hostile_upload_is_one_message_without_an_old_answer() -> None:
    at = opened(view="Check")
    assert at.code and not at.error
    for uploader, suffix, files in (
        ("scenario_file", ".toml", HOSTILE_TOML.values()),
        ("model_file", ".json", HOSTILE_MODEL),
        ("measurements", ".csv", HOSTILE_CSV.values()),
    ):
        for data in files:
            name = EVIL.replace(".toml", suffix)
            at.file_uploader(key=uploader).set_value((name, data, "text/plain")).run()
            assert_one_message(at)
            answer = at.main.code if suffix != ".csv" else at.get("plotly_chart")
            assert not answer, data[:80]
            if suffix == ".csv":
                continue
            at.run()
            assert_one_message(at)  # still
            at.button(key="dismiss").click().run()
            assert not at.error and at.main.code


def test_markdown_in_user_text_is_escaped() -> None:
    shown = plain("![x](http://evil.example) <b>$x$ :smile: [a](b) `c`")
    for char in "![]()<>$:`":
        assert f"\\{char}" in shown
    at = opened(view="Frontier", slo="![x](http://evil.example/x.png)<script>")
    assert "\\!\\[x\\]\\(" in assert_one_message(at)


def test_a_scenario_upload_sets_every_widget() -> None:
    text = b'target = "llama-2-7b-32k"\ngpu = "h100-sxm"\ntp = 4\ndraft = "tinyllama-1.1b"\n'
    at = uploaded("scenario_file", "a.toml", text + b"gamma = 2\nacceptance = 0.7\n", "x/toml")
    assert not at.exception and not at.error
    values = dict(at.session_state["values"])
    assert values["machine"] == catalog.default_machine("h100-sxm").name
    assert (values["target"], values["draft"], values["tp"]) == (
        "llama-2-7b-32k",
        "tinyllama-1.1b",
        4,
    )
    assert (values["gamma"], values["acceptance"]) == (2, 0.7)


def test_an_uploaded_model_is_the_target(tmp_path: Path) -> None:
    data = json.dumps(CONFIG).encode()
    at = uploaded("model_file", "mine.json", data, "application/json")
    assert not at.exception and not at.error
    path = dict(at.session_state["values"])["target"]
    assert catalog.model(path).name == "mine"
    escaped = model_upload("../../../etc/x.json", data, tmp_path)
    assert Path(escaped).is_relative_to(tmp_path)


def test_no_path_of_the_session_is_shown_and_a_saved_scenario_is_opened_again() -> None:
    at = uploaded("model_file", "mine.json", json.dumps(CONFIG).encode(), "", view="Decide")
    values = at.session_state["values"]
    at.button(key="use_0").click().run()
    button(at, "Pin").click().run()
    at.number_input(key="batch").set_value(9).run()
    shown = [e.value for kind in (at.code, at.caption, at.markdown) for e in kind]
    shown += [str(table.value) for table in at.table]
    folder = at.session_state["folder"].name
    assert not any(folder in text for text in shown)
    assert any("vllm serve /path/to/mine " in text for text in shown)
    assert any("--target /path/to/mine/config.json " in text for text in shown)
    saved = toml_text(values).replace(str(Path(dict(values)["target"]).parents[1]), "/path/to")
    at.file_uploader(key="scenario_file").set_value(("s.toml", saved.encode(), "")).run()
    assert not at.error and at.session_state["values"] == values


def test_the_golden_table_is_a_measurement_upload() -> None:
    rows = measurement_upload("golden.csv", GOLDEN)
    assert len(rows) == len(magicdec_rows()) == 42
    for row, golden in zip(rows, magicdec_rows(), strict=True):
        for key in ("target_step_s", "verify_s", "draft_step_s", "speedup", "tp", "kv_budget"):
            assert getattr(row, key) == pytest.approx(getattr(golden, key))


def test_predict_columns_with_milliseconds_are_a_measurement_upload() -> None:
    text = (
        "gpu,target,draft,draft-policy,kv-budget,gamma,tp,batch,prompt_tokens,target_step_ms,"
        "verify_ms,draft_step_ms,engine\n"
        "h200,llama-3.1-8b,self,streamingllm,512,3,1,32,16384,20.4,21.1,6.1,specroof\n"
    )
    at = uploaded("measurements", "mine.csv", text.encode(), "text/csv", "Check")
    assert not at.exception and not at.error and len(at.get("plotly_chart")) == 2
    (row,) = measurement_upload("mine.csv", text.encode())
    assert row.draft_step_s == pytest.approx(6.1e-3)


def test_a_refit_shows_before_and_after_and_is_used_on_the_page(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = GOLDEN.splitlines(keepends=True)
    h100 = b"".join([lines[3], *(line for line in lines[4:] if b",h100-sxm," in line)])
    at = uploaded("measurements", "golden.csv", h100, "text/csv", "Check")
    assert not at.exception and not at.error
    summary = next(f for f in tables(at) if "mean absolute" in f.columns)
    assert set(summary["prediction"]) == {"as shipped", "engine refitted to these rows"}
    at.selectbox(key="machine").select("hgx-h100").run()
    next(b for b in at.button if b.label.startswith("Use the refitted engine")).click().run()
    at.segmented_control(key="view").set_value("Why").run()
    assert not at.exception and at.session_state["engine"] == "refitted"
    values = at.session_state["values"]
    assert run([*shlex.split(command_text(values))[1:], "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    rows = measurement_upload("golden.csv", h100)
    fit = fit_rows(rows)
    profile = parse_scenario(dict(values)).scenario().engine
    for name, value in fit.values.items():
        assert getattr(profile, name) == pytest.approx(value, rel=1e-4), name
    shipped = engine_profile(rows[0].engine, catalog.gpu("h100-sxm"))
    assert (profile.measured_on, profile.speedup_error) == ("h100-sxm", shipped.speedup_error)
    shown = next(metric.value for metric in at.metric if metric.label == "T_V")
    assert shown == format_seconds(printed["verify_s"])
    again = opened({**at.query_params, "view": "Decide"})
    assert not again.exception and not again.warning
    again.button(key="use_1").click().run()
    assert not again.exception and again.session_state["engine"] == "refitted"


def test_vllm_counters_become_conditional_acceptance() -> None:
    assert vllm_acceptance(COUNTERS) == pytest.approx((0.8, 0.75, 0.5))
    at = opened(view="Check", acceptance_form=PER_POSITION)
    at.text_area(key="counters").set_value(COUNTERS).run()
    button(at, "Import").click().run()
    assert not at.exception
    assert at.session_state["acceptance_per_position"] == "0.8, 0.75, 0.5"


def test_scenario_upload_names_the_file_not_the_server_path() -> None:
    with pytest.raises(ConfigError) as error:
        scenario_upload("mine.toml", b"{]")
    assert "mine.toml" in str(error.value) and "/tmp" not in str(error.value)


def test_the_server_is_local_sends_no_statistics_and_limits_uploads() -> None:
    command = explorer_command(port=8501, browser=True)
    assert command[:4] == [sys.executable, "-m", "app.explorer.serve", "run"]
    for flag in (
        "--server.address=localhost",
        "--browser.gatherUsageStats=false",
        "--server.maxUploadSize=1",
        "--client.showErrorDetails=none",
    ):
        assert flag in command


FIRST_VERDICT = """
import sys
from app.explorer.serve import streamlit_command
streamlit_command()
from streamlit.testing.v1 import AppTest
from app.explorer.views import decide
show, loaded = decide.verdict, []
def verdict(*words, **look):
    late = {"plotly", "pandas", "scipy", "rich", "markdown_it"}
    loaded.append(late & {name.partition(".")[0] for name in sys.modules})
    show(*words, **look)
decide.verdict = verdict
at = AppTest.from_file("app/explorer/main.py", default_timeout=300).run()
assert not at.exception and loaded == [set()], (at.exception, loaded)
at.segmented_control(key="view").set_value("Map").run()
assert not at.exception and '"#000' in at.get("plotly_chart")[0].proto.spec
"""


@pytest.mark.slow
def test_the_first_verdict_loads_no_library_of_charts_or_tables_and_charts_are_themed() -> None:
    subprocess.run([sys.executable, "-c", FIRST_VERDICT], cwd=ROOT, check=True, timeout=300)


@pytest.mark.slow
def test_the_server_ends_with_the_reader_of_its_output() -> None:
    """As in `specroof explore | head`; it used to ignore SIGTERM and Ctrl-C from then on."""
    command = explorer_command(port=8593, browser=False)
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert server.stdout is not None
    assert server.stdout.readline()
    server.stdout.close()
    assert server.wait(timeout=300) == 141


def test_explore_becomes_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[Any] = []
    monkeypatch.setattr("os.execv", lambda path, command: became.append(command))
    assert run(["explore", "--port", "9000", "--no-browser"]) == 0
    assert became and "--server.port=9000" in became[0] and "--server.headless=true" in became[0]


def test_explore_without_streamlit_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run(["explore"]) == 2
    assert "specroof[explorer]" in capsys.readouterr().err


def test_no_file_of_the_app_hides_a_package_and_nothing_unpickles() -> None:
    names = {path.stem for path in Path(ENTRY).parent.iterdir()}  # Streamlit's first on the path
    packages = {"perfmodel", "runtime", "calibration", "app", "streamlit", "plotly", "pandas"}
    assert not names & {*packages, *sys.stdlib_module_names, "pages"}
    for path in (ROOT / "app").rglob("*.py"):
        assert "pickle" not in path.read_text(encoding="utf-8").replace("unpickled", "")
