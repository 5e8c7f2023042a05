"""`specroof calibrate engine`: measure a serving engine, fit its profile, and validate it."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.options import AsJson, field_flags
from app.cli.output import print_json, progress, write_files

if TYPE_CHECKING:
    from calibration.engines import EngineRecords, Plan, PlanOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """The flags of a measurement."""

    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File of records to write or continue.")
    ] = None
    gpu: Annotated[
        str, typer.Option(metavar="NAME", help="GPU from the catalog (default: this machine's).")
    ] = ""
    target: Annotated[str, typer.Option(metavar="MODELS", help="Targets, separated by commas.")] = (
        "llama-3.1-8b"
    )
    method: Annotated[
        str, typer.Option(metavar="NAMES", help="Draft methods, separated by commas.")
    ] = "draft,eagle3,ngram"
    gamma: Annotated[str, typer.Option(metavar="N,..", help="Drafts per round to choose from.")] = (
        "1,2,3,4,5"
    )
    draft: Annotated[
        str, typer.Option(metavar="MODEL", help="Draft model (default: the smallest that matches).")
    ] = ""
    tp: Annotated[int, typer.Option(metavar="N", min=1, help="GPUs that share the target.")] = 1
    batch: Annotated[str, typer.Option(metavar="LOW:HIGH", help="Range of batch sizes.")] = "1:128"
    context: Annotated[str, typer.Option(metavar="LOW:HIGH", help="Range of prompt tokens.")] = (
        "1024:65536"
    )
    minutes: Annotated[
        float, typer.Option(metavar="MIN", min=0.0, help="Duration of the plan.")
    ] = 15.0
    stop_after: Annotated[
        float | None,
        typer.Option(metavar="MIN", min=0.0, help="Time limit of this run (default: --minutes)."),
    ] = None
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the plan.")] = 0
    exported_graphs: Annotated[
        bool,
        typer.Option(
            "--exported-graphs", help="Capture the CUDA graphs that `export` lists (offline vLLM)."
        ),
    ] = False
    hold_back: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of workloads used only for validation.")
    ] = 0.3
    python: Annotated[
        str, typer.Option(metavar="PATH", help="Python that has the engine (default: this one).")
    ] = ""
    url: Annotated[
        str, typer.Option(metavar="URL", help="Running server to measure; it needs /metrics.")
    ] = ""
    engine: Annotated[str, typer.Option(metavar="NAME", help="Name of the engine, with --url.")] = (
        "vllm"
    )
    engine_version: Annotated[
        str,
        typer.Option(metavar="VERSION", help="Engine version, if the server does not report it."),
    ] = ""
    import_report: Annotated[
        list[Path] | None,
        typer.Option(
            "--import",
            metavar="FILE",
            help="Report of `trtllm-bench --streaming --report_json` for one --method and --gamma; "
            "repeatable.",
            show_default=False,
        ),
    ] = None
    show: Annotated[
        bool, typer.Option("--list", help="Print the plan and its duration; needs no GPU.")
    ] = False


@field_flags
def calibrate_engine(
    records: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RECORDS", help="Existing records to fit.", show_default=False),
    ] = None,
    *,
    options: EngineOptions,
    check: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="Records used only for validation; repeatable.", show_default=False
        ),
    ] = None,
    output: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Folder in which to write engines/NAME-VERSION.toml."),
    ] = Path(),
    as_json: AsJson = False,
) -> None:
    """Measure a serving engine on this machine's GPUs, fit its profile, and validate it.

    Without --out, existing records are fitted. With --import, reports are only added to --out.
    """
    from calibration.engines import read_engine_records
    from perfmodel import ConfigError

    if options.show and as_json:
        raise ConfigError("--list prints a plan as text; leave out --json")
    if options.show:
        print("\n".join(_plan(options, options.gpu or "h200").lines()))
        return
    if options.import_report:
        _import(options, options.import_report)
        return
    paths = list(records or ())
    if options.out is not None:
        import scipy.optimize  # noqa: F401
        import tomlkit  # noqa: F401  (of the fit: missing packages are known before 15 minutes)

        for line in _measure(options, options.out):
            print(line, file=sys.stderr)
        paths.append(options.out)
    if not paths:
        raise ConfigError("nothing to fit; give --out FILE to measure, or files of records")
    data = read_engine_records(paths, check=check or ())
    for line in data.notes:
        print(f"note: {line}", file=sys.stderr)
    _fit(data, output, as_json=as_json)


def _fit(data: EngineRecords, output: Path, *, as_json: bool) -> None:
    """Fit a profile, write it, and print its errors."""
    from calibration.engines import (
        engine_report,
        fit_profile,
        profile_text,
        report_dict,
        report_lines,
        shared_host_note,
    )
    from perfmodel import OutsideTolerance

    fit = fit_profile(data)
    report = engine_report(data, fit)
    name = f"engines/{report.name}.toml"
    present = output / name
    shipped = present.read_text(encoding="utf-8") if present.is_file() else None
    written = write_files({name: profile_text(report, shipped)}, output)
    if as_json:
        print_json(report_dict(report) | {"written": [str(path) for path in written]})
    else:
        print("\n".join([*report_lines(report), *(f"wrote {path}" for path in written)]))
    for line in filter(None, (report.note, shared_host_note(data, fit.profile))):
        print(f"note: {line}", file=sys.stderr)
    if report.outside:
        raise OutsideTolerance("; ".join(report.outside))


def _import(options: EngineOptions, reports: Sequence[Path]) -> None:
    """Append the points of benchmark reports to a file of records."""
    from calibration.engines import Setup, import_reports
    from perfmodel import ConfigError

    if options.out is None or len(_words(options.method)) != 1:
        raise ConfigError(
            "--import needs --out FILE, and the one --method of the reports; add them"
        )
    method, gammas = options.method, _numbers("gamma", options.gamma, ",")
    if method != "plain" and len(gammas) != 1:
        raise ConfigError("--import needs the one --gamma of the reports; add it")
    setup = Setup(
        target=options.target,
        method=method,
        gamma=0 if method == "plain" else gammas[0],
        draft=options.draft if method == "draft" else "",
        tp=options.tp,
    )
    import_reports(reports, setup, options.out, gpu=options.gpu)
    print(f"{len(reports)} points of {setup.label} added to {options.out}")


def _measure(options: EngineOptions, out: Path) -> list[str]:
    """Run the plan into a file of records; return lines on failed and remaining points."""
    from calibration.engines import (
        Server,
        ServerAdapter,
        catalog_gpu,
        check_model,
        check_names,
        engine_facts,
        run_plan,
        start,
    )
    from perfmodel import ConfigError
    from runtime.bench.provenance import source_commit

    header: dict[str, Any]
    if options.url:
        server = Server(options.url)
        version = options.engine_version or server.version()
        if not version or not options.gpu:
            raise ConfigError(
                "--url needs --gpu, and --engine-version if the server does not report it; add them"
            )
        name = "sglang" if server.sglang_info() else options.engine
        header = {"engine": name, "version": version, "gpu": options.gpu}
        check_names(header, options.url)

        def begin(setup: Any, points: Any) -> Any:
            for line in check_model(server.url, server.model_names(), setup.target):
                print(f"note: {line}", file=sys.stderr)
            return ServerAdapter(server, setup, points, gpu=options.gpu)

    else:
        python = options.python or sys.executable
        header = engine_facts(python)
        if "gpu" not in header:
            raise ConfigError(
                "nvidia-smi finds no GPU; use a machine with one, or measure a server with --url"
            )

        def begin(setup: Any, points: Any) -> Any:
            return start(python, setup, points, out.with_suffix(".work"))

    gpu = options.gpu or catalog_gpu(header["gpu"])
    if not gpu:
        raise ConfigError(
            f"GPU {header['gpu']!r} is not in the catalog; give a similar one with --gpu"
        )
    plan = _plan(options, gpu)
    header |= {
        "gpu_name": gpu,
        "command": ["specroof", *sys.argv[1:]],
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": source_commit(),
        "seed": options.seed,
    }
    with progress("starting", len(plan.points)) as bar:

        def show(done: int, label: str) -> None:
            if bar is not None:
                bar(done, label=label)

        spend = options.minutes if options.stop_after is None else options.stop_after
        deadline = time.monotonic() + 60.0 * spend
        return run_plan(plan, out, header, begin, show=show, deadline=deadline)


def _plan(options: EngineOptions, gpu: str) -> Plan:
    from calibration.engines import plan_run

    plan = plan_run(_plan_options(options, gpu))
    for line in plan.left_out:
        print(f"note: {line}", file=sys.stderr)
    return plan


def _plan_options(options: EngineOptions, gpu: str) -> PlanOptions:
    from calibration.engines import PlanOptions

    return PlanOptions(
        gpu=gpu,
        targets=tuple(_words(options.target)),
        methods=tuple(_words(options.method)),
        gammas=tuple(_numbers("gamma", options.gamma, ",")),
        draft=options.draft,
        tp=options.tp,
        minutes=options.minutes,
        seed=options.seed,
        hold_back=options.hold_back,
        batch=_range("batch", options.batch),
        context=_range("context", options.context),
        served=bool(options.url),
        exported_graphs=options.exported_graphs,
    )


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _range(name: str, text: str) -> tuple[int, int]:
    values = _numbers(name, text, ":")
    if len(values) not in (1, 2):
        raise _bad(name, text, "a number, or LOW:HIGH")
    return values[0], values[-1]


def _numbers(name: str, text: str, between: str) -> list[int]:
    try:
        return [int(part) for part in text.split(between)]
    except ValueError:
        raise _bad(name, text, f"whole numbers separated by {between!r}") from None


def _bad(name: str, text: str, wanted: str) -> Exception:
    from perfmodel import ConfigError

    return ConfigError(f"--{name} {text!r} is not valid; give {wanted}")
