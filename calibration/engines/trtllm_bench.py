"""Read reports of `trtllm-bench ... --streaming --report_json FILE` as points of an engine.

Keys are taken from the source of TensorRT-LLM 1.x (`bench/dataclasses/reporting.py`) and were not
checked against a run. The report must be of one batch size, so the benchmark must keep its
concurrency. A round takes the time per output token times the mean acceptance length.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from calibration.engines.reading import catalog_gpu
from calibration.engines.records import Point, PointRecord, Setup
from calibration.engines.run import SAME_RUN
from calibration.records.jsonl import RecordLog, read_text
from perfmodel import ConfigError
from perfmodel.errors import shown
from perfmodel.input_file import distinct

CONSTANT = 0.1  # relative distance of the mean concurrency from a whole number of requests
LARGEST = 1e12  # of any figure; a larger one is damaged
LENGTHS = ("acceptance_length_percentiles", "acceptance_percentiles")


def read_report(path: Path, setup: Setup) -> tuple[dict[str, Any], PointRecord]:
    """The header and the record of a report.

    Raises `ConfigError` if the file is not such a report, lacks a figure, or contradicts `setup`.
    """
    try:
        report = json.loads(read_text(path), object_pairs_hook=distinct)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON ({error}); give the file of --report_json") from None
    tp = int(_figure(report, path, "world_info", "tp_size"))
    if tp != setup.tp:
        raise ConfigError(f"{path}: tp_size {tp} differs from --tp {setup.tp}; change --tp")
    prompt = _figure(report, path, "request_info", "avg_input_length")
    output = _figure(report, path, "request_info", "avg_output_length")
    tokens = _tokens_per_round(report, path, setup)
    seconds = 1e-3 * _figure(report, path, "streaming_metrics", "avg_tpot_ms") * tokens
    record = PointRecord(
        point=Point(setup=setup, batch=_batch(report, path), prompt_tokens=round(prompt)),
        seconds=seconds,
        all_seconds=(seconds,),
        rounds=max(1.0, (output - 1.0) / tokens),
        context_tokens=prompt + output / 2.0,
        tokens_per_round=tokens,
    )
    return _header(report, path), record


def import_reports(paths: Sequence[Path], setup: Setup, out: Path, *, gpu: str = "") -> None:
    """Append the points of reports to a file of records.

    Raises `ConfigError` as `read_report` does, and `RecordError` if `out` has records of another
    version or GPU, or cannot be written.

    Parameters
    ----------
    gpu : str
        Catalog name of the GPU; needed if the catalog does not know the one in the report.
    """
    for header, record in [read_report(path, setup) for path in paths]:
        with RecordLog(out, header | ({"gpu_name": gpu} if gpu else {}), same=SAME_RUN) as log:
            log.append(record)


def _header(report: Mapping[str, Any], path: Path) -> dict[str, Any]:
    engine, machine = (_section(report, path, name) for name in ("engine", "machine"))
    version, gpu = engine.get("version"), machine.get("name", "")
    if not isinstance(version, str) or not version:
        raise ConfigError(f"{path}: the report does not state engine.version")
    if not isinstance(gpu, str):
        raise ConfigError(f"{path}: machine.name is {shown(gpu)} instead of the name of a GPU")
    header: dict[str, Any] = {"engine": "tensorrt-llm", "version": version, "gpu": gpu}
    return header | ({"gpu_name": catalog_gpu(gpu)} if catalog_gpu(gpu) else {})


def _batch(report: Mapping[str, Any], path: Path) -> int:
    """The number of concurrent requests."""
    mean = _figure(report, path, "request_info", "avg_num_concurrent_requests")
    batch = max(1, round(mean))
    if abs(mean - batch) > CONSTANT * batch:
        raise ConfigError(
            f"{path}: {mean:.2f} concurrent requests on average, so the batch varied; run the "
            f"benchmark with --concurrency and a multiple of it as the number of requests"
        )
    return batch


def _tokens_per_round(report: Mapping[str, Any], path: Path, setup: Setup) -> float:
    """The mean acceptance length, which includes the target's token; 1 for plain decoding."""
    if "decoding_stats" not in report:
        if setup.gamma:
            raise ConfigError(f"{path}: the report has no drafts; use --method plain")
        return 1.0
    if not setup.gamma:
        raise ConfigError(f"{path}: the report has drafts; state their --method and --gamma")
    stats = _section(report, path, "decoding_stats")
    name = next((one for one in LENGTHS if one in stats), LENGTHS[0])
    length = _figure(stats, path, name, "average")
    if not 1.0 <= length <= setup.gamma + 1:
        raise ConfigError(
            f"{path}: an acceptance length of {length:.2f} is not possible with --gamma "
            f"{setup.gamma}; state the draft tokens per round of the run"
        )
    return length


def _section(report: Any, path: Path, name: str) -> Mapping[str, Any]:
    section = report.get(name) if isinstance(report, dict) else None
    if not isinstance(section, dict):
        raise ConfigError(
            f"{path}: the report has no {name!r}; give the file of `trtllm-bench --streaming "
            f"--report_json`"
        )
    return section


def _figure(report: Any, path: Path, section: str, name: str) -> float:
    value = _section(report, path, section).get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < LARGEST:
        raise ConfigError(
            f"{path}: {section}.{name} is {shown(value)} instead of a positive number"
        )
    return float(value)
