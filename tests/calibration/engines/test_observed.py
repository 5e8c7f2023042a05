"""Times and acceptance are read from what engines report."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
from engine_samples import HEADER, a_plan, records_of

from calibration.engines import observe, version_note
from calibration.engines.reading import read_engine_records
from calibration.records.jsonl import write_records
from perfmodel import ConfigError, parse_scenario
from perfmodel.scenario import Scenario
from perfmodel.speculation.diagnosis import Measured, diagnose

RECORDS = Path(__file__).parents[3] / "calibration" / "measured"

LINE = (
    "INFO [loggers.py:259] Engine 000: Avg prompt throughput: {prompt} tokens/s, Avg generation "
    "throughput: {rate} tokens/s, Running: {running} reqs, Waiting: 0 reqs, GPU KV cache usage: 5%"
)
SPEC = (
    "INFO [metrics.py:101] SpecDecoding metrics: Mean acceptance length: 2.50, Accepted "
    "throughput: 1.00 tokens/s, Drafted throughput: 2.00 tokens/s, Accepted: 150 tokens, Drafted: "
    "300 tokens, Per-position acceptance rate: 0.700, 0.500, 0.300, Avg Draft acceptance rate: 50%"
)
SGLANG = (
    "[2026-11-01 10:00:00] Decode batch. #running-req: 8, #token: 33000, token usage: 0.10, "
    "accept len: 2.50, accept rate: 0.50, cuda graph: True, gen throughput (token/s): 1000.0, "
    "#queue-req: 0"
)


def ran(**values: object) -> Scenario:
    stated = {"draft": "llama-3.2-1b", "draft_policy": "full", "gamma": 3, "gpu": "h200"}
    if values.get("draft") == "none":
        del stated["draft_policy"]
    return parse_scenario(stated | {"batch": 8, "prompt_tokens": 4096} | values).scenario()


def read(tmp_path: Path, *texts: str, **values: object) -> Measured:
    paths = []
    for number, text in enumerate(texts):
        paths.append(tmp_path / f"report-{number}")
        paths[-1].write_text(text)
    return observe(paths, ran(**values))


def page(engine: str, total: float, count: int, drafts: int | None) -> str:
    lines = [f'{engine}:inter_token_latency_seconds_sum{{model_name="m"}} {total}']
    lines += [f'{engine}:inter_token_latency_seconds_count{{model_name="m"}} {count}']
    if drafts is not None and engine == "vllm":
        counts = {"num_drafts": drafts, "num_draft_tokens": 3 * drafts}
        counts |= {"num_accepted_tokens": 1.5 * drafts}
        lines += [f'vllm:spec_decode_{k}_total{{model_name="m"}} {v}' for k, v in counts.items()]
        lines += [
            f"vllm:spec_decode_num_accepted_tokens_per_pos_total"
            f'{{model_name="m",position="{i}"}} {share * drafts}'
            for i, share in enumerate((0.7, 0.5, 0.3))
        ]
    elif drafts is not None:
        lines += ['sglang:spec_accept_length{model_name="m"} 2.5']
    return "\n".join(lines) + "\n"


def test_a_round_follows_from_the_throughput_in_vllms_log(tmp_path: Path) -> None:
    ramp = LINE.format(prompt="900.0", rate="100.0", running=8)
    other = LINE.format(prompt="0.0", rate="900.0", running=7)
    steady = LINE.format(prompt="0.0", rate="1000.0", running=8)
    measured = read(tmp_path, "\n".join([ramp, other, steady, SPEC]))
    assert measured.rounds_s == {3: pytest.approx(8 * 2.5 / 1000.0)}
    assert measured.engine == "vllm" and measured.acceptance is not None
    assert measured.acceptance.per_position == pytest.approx((0.7, 5 / 7, 0.6))
    plain = read(tmp_path, steady)
    assert plain.plain_s == pytest.approx(8e-3) and not plain.rounds_s
    with pytest.raises(ConfigError, match="give --batch one of 7, 8"):
        read(tmp_path, "\n".join([other, steady]), batch=9)


def test_sglangs_log_gives_throughput_and_accept_length(tmp_path: Path) -> None:
    measured = read(tmp_path, SGLANG)
    assert measured.engine == "sglang"
    assert measured.rounds_s[3] == pytest.approx(8 * 2.5 / 1000.0, rel=1e-6)
    plain = read(tmp_path, SGLANG.replace("accept len: 2.50, accept rate: 0.50, ", ""))
    assert plain.plain_s == pytest.approx(8e-3)
    cut_off = f"{SGLANG.partition(' cuda graph')[0].replace('req: 8', 'req: 9')} {SGLANG}"
    assert read(tmp_path, cut_off).rounds_s == measured.rounds_s


def test_two_scrapes_are_subtracted(tmp_path: Path) -> None:
    measured = read(tmp_path, page("vllm", 5.0, 50, 50), page("vllm", 15.0, 550, 550))
    assert measured.rounds_s == {3: pytest.approx(10.0 / 500)}  # one latency per round
    assert read(tmp_path, page("vllm", 5.0, 500, None)).plain_s == pytest.approx(0.01)
    both = read(tmp_path, page("vllm", 5.0, 500, None), page("vllm", 15.0, 550, 550))
    assert both.plain_s == pytest.approx(0.01) and 3 in both.rounds_s
    sglang = read(tmp_path, page("sglang", 5.0, 500, 1))
    assert sglang.rounds_s == {3: pytest.approx(0.01 * 2.5, rel=1e-6)}  # one latency per token


def test_a_benchmark_gives_the_time_per_token(tmp_path: Path) -> None:
    result = {"mean_tpot_ms": 10.0, "spec_decode_num_drafts": 1000}
    result |= {"spec_decode_draft_tokens": 3000, "spec_decode_accepted_tokens": 1500}
    result |= {"spec_decode_per_position_acceptance_rates": [0.7, 0.5, 0.3]}
    measured = read(tmp_path, json.dumps(result))
    assert measured.rounds_s == {3: pytest.approx(0.025)}
    assert read(tmp_path, json.dumps({"mean_tpot_ms": 10.0})).plain_s == pytest.approx(0.01)
    with pytest.raises(ConfigError, match="give --batch 16"):
        read(tmp_path, json.dumps(result | {"max_concurrency": 16}))


def test_records_of_the_same_workload_are_used(tmp_path: Path) -> None:
    plan = a_plan()
    path = tmp_path / "records.jsonl"
    records, _ = records_of(plan)
    write_records(path, HEADER, [*records.starts, *records.points])
    setup = next(s for s in plan.setups if s.method == "draft")
    point = plan.of(setup)[0]
    scenario = {"target": setup.target, "draft": setup.draft, "gamma": setup.gamma}
    work = {"batch": point.batch, "prompt_tokens": point.prompt_tokens}
    measured = observe([path], ran(**scenario, **work))
    assert setup.gamma in measured.rounds_s and measured.plain_s is not None
    assert (measured.engine, measured.version) == ("vllm", "0.26.0")
    assert measured.graph_tokens == 512
    with pytest.raises(ConfigError, match="no record has this target"):
        observe([path], ran(batch=999))


@pytest.mark.parametrize(
    "version, factor, fault",
    [
        ("0.26", 1.0, ""),
        ("0.23.0", 1.0, r"records\.jsonl: .* version 0\.23\.0 and 0\.26\.0"),
        ("0.26.0", 2.0, r"records\.jsonl: a plain step takes .* in another report"),
    ],
)
def test_records_must_agree_with_a_log(
    version: str, factor: float, fault: str, tmp_path: Path
) -> None:
    plan, path, log = a_plan(), tmp_path / "records.jsonl", tmp_path / "server.log"
    records, _ = records_of(plan)
    write_records(path, HEADER, [*records.starts, *records.points])
    record = next(r for r in records.points if r.point.setup.method == "plain")
    target, tp, batch, tokens = record.point.workload
    rate = f"{batch / (factor * record.seconds):.6f}"
    line = LINE.format(prompt="0.0", rate=rate, running=batch)
    log.write_text(f"vLLM API server version {version}\n{line}\n")
    scenario = ran(target=target, tp=tp, batch=batch, prompt_tokens=tokens)
    with pytest.raises(ConfigError, match=fault) if fault else nullcontext():
        both = observe([path, log], scenario)
        assert both.plain_s == record.seconds and both.version == "0.26.0"


def test_no_record_of_the_project_is_refused() -> None:
    """With more drafts, rounds may grow less than predicted, or shrink within their spread."""
    path = RECORDS / "engine-vllm-0.26-h200-exported-graphs.jsonl"
    points = [record.point for record in read_engine_records([path]).points]
    heads = [point for point in points if point.setup.method == "eagle3"]
    assert {(28, 2672), (56, 2560), (124, 1104)} <= {(p.batch, p.prompt_tokens) for p in heads}
    for point in heads:
        setup, work = point.setup, {"batch": point.batch, "prompt_tokens": point.prompt_tokens}
        stated = {"draft": "eagle3", "draft_policy": "full", "gamma": setup.gamma, "tp": setup.tp}
        scenario = ran(**stated, **work, engine="vllm-0.26", acceptance=0.8)
        term = diagnose(scenario, observe([path], scenario)).terms["round_s"]
        assert term.measured is not None and not term.derived


def test_records_with_exported_graphs_are_not_said_to_miss_a_graph() -> None:
    """EAGLE-3 with γ 4 and 9 sequences: 14.5 ms with default graphs, 8.2 with exported ones."""
    default, exported = (
        RECORDS / f"engine-vllm-0.26-h200{n}.jsonl" for n in ("", "-exported-graphs")
    )
    stated = {"draft": "eagle3", "draft_policy": "full", "gamma": 4, "engine": "vllm-0.26"}
    scenario = ran(**stated, batch=9, prompt_tokens=1424)
    rounds = {}
    for paths in ((default,), (exported,), (default, exported), (exported, default)):
        measured = observe(paths, scenario)
        rounds[paths] = measured.rounds_s[4]
        assert measured.exported_graphs == (exported in paths)
        assert ("in pieces" in diagnose(scenario, measured).sentence) == (exported not in paths)
    assert rounds[default,] > 1.5 * rounds[exported,] == 1.5 * rounds[default, exported]
    assert rounds[default, exported] == rounds[exported, default]


@pytest.mark.parametrize(
    ("sizes", "mode", "captured"),
    [
        ("1, 2, 45, 50", "FULL_AND_PIECEWISE: (2, 1)", True),
        ("1, 2, 45, 50", "PIECEWISE: 1", False),
        ("1, 2, 40, 48", "FULL_AND_PIECEWISE: (2, 1)", False),
        ("", "NONE: 0", False),
    ],
)
def test_a_log_states_whether_a_graph_holds_the_round(
    sizes: str, mode: str, captured: bool, tmp_path: Path
) -> None:
    """9 sequences with γ 4 have 45 tokens."""
    config = f"'cudagraph_mode': <CUDAGraphMode.{mode}>, 'cudagraph_capture_sizes': [{sizes}]"
    start = f"INFO Initializing a V1 LLM engine (v0.26.0) with config: compilation_config={config}"
    spec = SPEC.replace("0.300,", "0.300, 0.000,").replace("300 tokens", "400 tokens")
    spec = spec.replace("50%", "37.5%")
    log = tmp_path / "a.log"
    log.write_text(f"{start}\n{LINE.format(prompt='0.0', rate='1600.0', running=9)}\n{spec}\n")
    stated = {"draft": "eagle3", "draft_policy": None, "gamma": 4, "engine": "vllm-0.26"}
    scenario = ran(**stated, batch=9, prompt_tokens=1424)
    measured = observe([log], scenario)
    assert measured.exported_graphs == captured
    sentence = diagnose(scenario, measured).sentence
    assert ("in pieces" in sentence) == (not captured) and "eagerly" not in sentence


@pytest.mark.parametrize("together", [True, False])
def test_logs_of_two_versions_are_refused(together: bool, tmp_path: Path) -> None:
    steady = LINE.format(prompt="0.0", rate="1000.0", running=8)
    logs = [f"vLLM API server version {v}\n{steady}\n" for v in ("0.23.0", "0.26.0")]
    with pytest.raises(ConfigError, match=r"0\.23\.0 and 0\.26\.0; give reports of one"):
        read(tmp_path, *(["".join(logs)] if together else logs), draft="none", gamma=0)
    again = logs[0].replace("0.23.0", "0.23")
    restarted = read(tmp_path, logs[0] + again, draft="none", gamma=0)
    assert restarted.version == "0.23.0" and restarted.plain_s == pytest.approx(8e-3)


@pytest.mark.parametrize("order", [1, -1])
def test_reports_of_two_engines_are_refused(order: int, tmp_path: Path) -> None:
    steady = LINE.format(prompt="0.0", rate="1000.0", running=8)
    log, counters = (
        f"vLLM API server version 0.26.0\n{steady}\n{SPEC}",
        page("vllm", 5.0, 500, None),
    )
    plain = SGLANG.replace("accept len: 2.50, accept rate: 0.50, ", "")
    for pair in ([plain, log], [plain, counters], [page("sglang", 5.0, 500, None), counters]):
        with pytest.raises(ConfigError, match=r"sglang( and vllm)?; give reports of one"):
            read(tmp_path, *pair[::order])
        with pytest.raises(ConfigError, match="what ran is vllm and sglang"):
            read(tmp_path, "\n".join(pair[::order]))
    benchmark = json.dumps({"mean_tpot_ms": 20.0})  # by whatever client
    assert read(tmp_path, *[SGLANG, benchmark][::order]).engine == "sglang"
    assert read(tmp_path, benchmark).engine == "vllm"


@pytest.mark.parametrize("order", [1, -1])
def test_reports_of_two_acceptances_are_refused(order: int, tmp_path: Path) -> None:
    """They are not pooled: their rounds may be of different prompts."""
    other = SPEC.replace("0.700, 0.500, 0.300", "0.700, 0.600, 0.500")
    texts = [
        SPEC,
        other.replace("2.50", "2.80")
        .replace("Accepted: 150", "Accepted: 180")
        .replace("50%", "60%"),
    ][::order]
    with pytest.raises(ConfigError, match=r"a round has 2\.[58]0 tokens, but in another report 2"):
        read(tmp_path, *texts)
    assert read(tmp_path, SPEC, SPEC).acceptance == read(tmp_path, SPEC).acceptance


@pytest.mark.parametrize(
    ("version", "runs_on", "profile", "said"),
    [
        ("0.23.0", "vllm-0.26", "kernels", "vllm 0.23.0, but vLLM 0.26 is stated"),
        ("0.23.0", "vllm", "kernels", "vllm 0.23.0, but vLLM 0.26 is stated"),
        ("0.26.1", "sglang", "kernels", "vllm 0.26.1, but SGLang"),
        ("0.26.1", "vllm-0.26", "kernels", ""),
        ("0.26.1", "vllm", "vllm-0.26", ""),
        ("0.23.0", "", "kernels", ""),
        ("0.26.0", "", "vllm-0.23", "vllm 0.26.0, but vLLM 0.23 is predicted"),
        ("0.26.0", "vllm-0.26", "vllm-0.23", "vllm 0.26.0, but vLLM 0.23 is predicted"),
        ("0.23.0", "", "vllm-0.26", "vllm 0.23.0, but vLLM 0.26 is predicted"),
        ("0.23.0", "vllm-0.26", "vllm-0.26", "vllm 0.23.0, but vLLM 0.26 is stated"),
    ],
)
def test_a_version_that_the_log_does_not_name_is_noted(
    version: str, runs_on: str, profile: str, said: str, tmp_path: Path
) -> None:
    steady = LINE.format(prompt="0.0", rate="1000.0", running=8)
    log = f"vLLM API server version {version}\n{steady}\n"
    note = version_note(read(tmp_path, log, draft="none", gamma=0), runs_on, profile)
    assert said in note if said else note == ""


def test_a_report_without_figures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither times nor acceptance found"):
        read(tmp_path, "all is well\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        observe([tmp_path / "missing"], ran())


def test_latencies_of_two_models_are_not_mixed(tmp_path: Path) -> None:
    both = page("vllm", 10.0, 1000, None)
    both += both.replace('"m"', '"other"')
    with pytest.raises(ConfigError, match="several models, m, other"):
        read(tmp_path, both, draft="none", gamma=0)


def test_scrapes_around_a_restart_are_refused(tmp_path: Path) -> None:
    before, after = page("vllm", 10.0, 1000, None), page("vllm", 1.0, 90, None)
    with pytest.raises(ConfigError, match="restart"):
        read(tmp_path, before, after, draft="none", gamma=0)
    with pytest.raises(ConfigError, match=r"counter is -5\.0; none can be negative"):
        read(tmp_path, page("vllm", -5.0, 100, None))


@pytest.mark.parametrize("value", ["1" + "0" * 400, "1e400", "NaN", "-3", "true", "[" * 10**5])
def test_a_benchmark_without_a_usable_time_is_refused(value: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither times nor acceptance"):
        read(tmp_path, f'{{"mean_tpot_ms": {value}}}', draft="none", gamma=0)


def test_times_that_no_step_takes_are_refused(tmp_path: Path) -> None:
    huge = "9" * 400
    for text in (
        page("vllm", 1e300, 1, None),
        f"vllm:inter_token_latency_seconds_sum {huge}\nvllm:inter_token_latency_seconds_count 3\n",
        LINE.format(prompt="0.0", rate=huge, running=8),
    ):
        with pytest.raises(ConfigError, match="report-0: a plain step of"):
            read(tmp_path, text, draft="none", gamma=0)
    for seconds in ("0.008", "1e-9"):  # given as milliseconds
        with pytest.raises(ConfigError, match=r"report-0: a plain step of .* is impossible"):
            read(tmp_path, f'{{"mean_tpot_ms": {seconds}}}', draft="none", gamma=0)
    with pytest.raises(ConfigError, match="neither times nor acceptance"):
        read(tmp_path, LINE.format(prompt="0.0", rate="9.0", running=huge), draft="none", gamma=0)
