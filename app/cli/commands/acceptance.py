"""`specroof calibrate acceptance` and its kin: records, reports, curves, imports."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from app.cli.axes import parse_axis
from app.cli.engine_errors import engine_errors
from app.cli.output import atomic_text, print_json
from calibration.records import RecordSet, merged, read_acceptance
from perfmodel import ConfigError, OutsideTolerance


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureOptions:
    """What may be asked of a measurement; names are those of the flags."""

    model: Path
    texts: Sequence[Path]
    output: Path
    draft_policy: str
    kv_budget: str
    prompt_tokens: str
    draft_model: Path | None
    windows: int
    gamma: int
    scored_tokens: int
    temperature: float
    sink: str
    snapkv_window: str
    snapkv_pool: str
    positions: str
    page_tokens: int
    device: str
    dtype: str | None


def run_measure(options: MeasureOptions, *, as_json: bool) -> int:
    """Measure what the output file lacks, and print its table.

    Raises
    ------
    SpecroofError
        In one line, for models, texts and lengths that do not go together.
    """
    with engine_errors():
        _measure(options)
    return run_report([options.output], (), as_json=as_json)


def _measure(options: MeasureOptions) -> None:
    import torch

    from calibration.acceptance import (
        Job,
        Task,
        check_same_tokens,
        draft_views,
        exact_float32,
        header,
        load_model,
        read_text,
        run_jobs,
        windows_of,
    )
    from calibration.records import RecordFile
    from runtime import TextTokenizer

    views = draft_views(
        _words("draft-policy", options.draft_policy),
        _counts("kv-budget", options.kv_budget),
        sinks=_counts("sink", options.sink, least=0),
        snapkv_windows=_counts("snapkv-window", options.snapkv_window),
        snapkv_pools=_counts("snapkv-pool", options.snapkv_pool),
        positions=_words("positions", options.positions),
        page_tokens=options.page_tokens,
    )
    on_gpu = _check_device(options.device)
    task = Task(
        gamma=options.gamma,
        scored_tokens=options.scored_tokens,
        temperature=options.temperature,
        chunk_tokens=2048 if on_gpu else 512,
        read_bytes=8e9 if on_gpu else 1e9,
    )
    name = options.dtype or ("bfloat16" if on_gpu else "float32")
    if name not in ("float32", "bfloat16", "float16", "float64"):
        raise ConfigError(f"--dtype {name}: use float32, bfloat16, float16 or float64")
    dtype, device = getattr(torch, name), torch.device(options.device)
    exact_float32()
    target = load_model(options.model, dtype=dtype, device=device)
    vocab, tokenizer = target.decoder.config.vocab, TextTokenizer(options.model)
    texts = [read_text(file, tokenizer, vocab=vocab) for file in options.texts]
    if len({text.name for text in texts}) < len(texts):
        raise ConfigError("two texts have the same file name; records could not tell them apart")
    draft = None
    if options.draft_model is not None:
        check_same_tokens(options.model, options.draft_model)
        draft = load_model(options.draft_model, dtype=dtype, device=device)
        if draft.decoder.config.vocab != vocab:
            raise ConfigError(
                f"{options.draft_model} has a vocabulary of {draft.decoder.config.vocab}, but "
                f"{options.model} one of {vocab}: no shared tokens"
            )
    jobs = []
    for prefix in _counts("prompt-tokens", options.prompt_tokens):
        longest = target.decoder.config.max_context_tokens
        if task.window_tokens(prefix) > longest:
            raise ConfigError(
                f"--prompt-tokens {prefix} and {task.scored_tokens} scored tokens exceed the "
                f"{longest:,} that {target.name} was made for"
            )
        for text in texts:
            windows = windows_of(text, context_tokens=prefix, count=options.windows, task=task)
            jobs.append(Job(text, prefix, windows, views))
    with RecordFile(options.output, header(target, draft, texts, task)) as file:
        run_jobs(target, draft, jobs, task, file, say=_progress())


def run_report(
    records: Sequence[Path],
    counted: Sequence[Path],
    *,
    html: Path | None = None,
    tolerance: float | None = None,
    as_json: bool,
) -> int:
    """Print the tables of some records, and write them with charts.

    Raises
    ------
    OutsideTolerance
        If the median error of the predictions exceeds `tolerance` percent.
    """
    from calibration.acceptance import acceptance_report, report_dict, report_lines
    from calibration.records import read_runs

    with engine_errors():
        for path in counted:
            if not path.is_file():
                raise ConfigError(f"{path}: no such file")
        found = _read(records)
        report = acceptance_report(found, [run for path in counted for run in read_runs(path)])
        lines = report_lines(report)
    if html is not None:
        from app.render.acceptance_page import acceptance_html

        page = acceptance_html(report, lines)
        with atomic_text(html) as file:
            file.write(page)
    if as_json:
        print_json(report_dict(report))
    else:
        print("\n".join(lines))
    error = report.median_error(greedy=False)
    if tolerance is not None:
        if error is None:
            raise ConfigError("--tolerance needs counted runs that the records can predict")
        if 100 * error > tolerance:
            raise OutsideTolerance(
                f"median error of tokens per round {100 * error:.1f} %, above {tolerance:g} %"
            )
    return 0


def run_fit(
    records: Sequence[Path],
    output: Path,
    *,
    gamma: int,
    texts: Sequence[str] | None,
    target: str | None,
) -> int:
    """Fit and write the curves of some records; print how they meet them."""
    from calibration.acceptance import curves_text, fit_records

    command = "specroof calibrate fit-acceptance"
    with engine_errors():
        fits = fit_records(_read(records), gamma=gamma, texts=texts)
    named = [(replace(fit.curve, target=target) if target else fit.curve, fit.free) for fit in fits]
    if output.is_dir():
        for curve, free in named:
            name = f"{curve.target}--{curve.draft}--{curve.draft_policy}.toml"
            with atomic_text(output / name) as file:
                file.write(curves_text([(curve, free)], command=command))
    else:
        with atomic_text(output) as file:
            file.write(curves_text(named, command=command))
    for fit in fits:
        worst = max(abs(float(miss)) for miss in fit.residual)
        print(
            f"{fit.curve.draft_policy}: {len(fit.cells)} cells, fitted {', '.join(fit.free)}; "
            f"worst error in alpha {worst:.4f}"
        )
    return 0


def run_import(report: Path, *, gamma: int | None, as_json: bool) -> int:
    """Print a report's acceptance as the flag that states it."""
    from calibration.acceptance import import_acceptance

    found = import_acceptance(report, gamma=gamma)
    rates = ",".join(f"{rate:.4g}" for rate in found.per_position)
    if as_json:
        print_json(
            {
                "engine": found.engine,
                "rounds": found.rounds,
                "positional": found.positional,
                "per_position": list(found.per_position),
            }
        )
        return 0
    rounds = "" if found.rounds is None else f", {found.rounds:,} rounds"
    kind = "per position" if found.positional else "one i.i.d. rate: a mean alone was reported"
    print(f"{found.engine}{rounds}, {kind}")
    print(f"--acceptance-per-position {rates}" if found.positional else f"--acceptance {rates}")
    return 0


# ---- parts ------------------------------------------------------------------------------------


def _read(records: Sequence[Path]) -> RecordSet:
    return merged(read_acceptance(path) for path in records)


def _words(name: str, text: str) -> list[str]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    known = {
        "positions": ("absolute", "relative"),
        "draft-policy": ("full", "streamingllm", "snapkv"),
    }
    if not words or set(words) - set(known[name]):
        raise ConfigError(f"--{name} {text!r}: use some of {', '.join(known[name])}")
    return words


def _counts(name: str, text: str, *, least: int = 1) -> list[int]:
    wrong = ConfigError(f"--{name} {text!r}: use whole numbers of at least {least}")
    try:
        counts = [int(value) for value in parse_axis(f"--{name}", text)]
    except ValueError as error:
        raise wrong from error
    if min(counts) < least:
        raise wrong
    return counts


def _check_device(device: str) -> bool:
    """Whether it is a GPU, which then must be there."""
    import torch

    if device not in ("cpu", "cuda"):
        raise ConfigError(f"--device {device}: use cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no GPU here; use --device cpu")
    return device == "cuda"


def _progress() -> Callable[[str], None]:
    """One line on a terminal that is written over, nothing elsewhere."""
    if not sys.stderr.isatty():
        return lambda line: None
    return lambda line: print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
