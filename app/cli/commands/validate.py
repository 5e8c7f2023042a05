"""`specroof validate`: predicted against measured, in sample and held out."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from app.cli.engine_errors import engine_errors
from app.cli.output import atomic_text, print_json
from calibration.records import read_cases, read_steps
from calibration.validate import (
    REPEATS,
    TABLE_START,
    SampleOptions,
    by_pair,
    compare,
    comparison_dict,
    comparison_lines,
    comparison_markdown,
    expected_seconds,
    pair_lines,
    ranks_of,
    read_peers,
    readme_table,
    replace_table,
    report_lines,
    sample_cases,
    sample_rounds,
    time_cases,
    validate_published,
)
from perfmodel import ConfigError, OutsideTolerance
from runtime import InputError, launch_ranks, run_rank


def run_published(*, tolerance: float, as_json: bool) -> int:
    """Print the errors on published rows.

    Raises
    ------
    OutsideTolerance
        If the held-out mean absolute error of a phase exceeds `tolerance` percent.
    """
    report = validate_published()
    if as_json:
        print_json(report.to_dict() | {"tolerance_percent": tolerance})
    else:
        print("\n".join(report_lines(report)))
    outside = report.outside(tolerance)
    if outside:
        raise OutsideTolerance(f"held-out mean error above {tolerance:g} %: {', '.join(outside)}")
    return 0


def run_draw(output: Path, options: SampleOptions, *, rounds: bool = False) -> int:
    """Draw cases, or `rounds` for the fit of their overhead; say how long they will take.

    Raises
    ------
    ConfigError
        If nothing fits, or the file cannot be written.
    """
    cases = sample_rounds(options) if rounds else sample_cases(options)
    with atomic_text(output) as file:
        file.write(cases.text())
    seconds = expected_seconds(cases, repeats=REPEATS, gpu=options.gpu)
    pairs = len(by_pair(cases.cases))
    print(f"{output}: {len(cases.cases)} cases of {pairs} pairs of models, about {seconds:.0f} s")
    print(f"On a GPU: specroof validate run --cases {output} --out FILE.jsonl")
    return 0


def run_cases(
    cases: Path, out: Path | None, *, seconds: float, repeats: int, parts: bool, show: bool
) -> int:
    """Time the cases of a file on this GPU, or list them.

    Raises
    ------
    ConfigError
        If a file cannot be used, or torch or the GPU is missing.
    """
    file = read_cases(cases)
    if show:
        print("\n".join(pair_lines(file)))
        return 0
    if out is None:
        raise ConfigError("--out FILE says where the records go")
    ranks = ranks_of(file)
    with engine_errors():
        if ranks > 1 and "RANK" not in os.environ:
            launch_ranks([sys.executable, "-m", "app.cli.main", *sys.argv[1:]], ranks)
            return 0
        outcome: list[tuple[str, int]] = []

        def time_rank() -> None:
            command = ["specroof", *sys.argv[1:]]
            try:
                outcome.append(
                    time_cases(
                        file, out, command=command, seconds=seconds, repeats=repeats, parts=parts
                    )
                )
            except ConfigError as error:
                raise InputError(str(error)) from error

        code = run_rank(time_rank)
    if code:
        return code
    summary, failed = outcome[0]
    if os.environ.get("RANK", "0") == "0":
        print(summary)
    return 4 if failed else 0


def run_records(
    records: Path,
    *,
    engine: str,
    curves_of: str | None,
    peers: Path | None,
    markdown: Path | None,
    html: Path | None,
    readme: Path | None,
    as_json: bool,
) -> int:
    """Compare a run's records with their predictions; write the reports that were asked for.

    Raises
    ------
    ConfigError
        For records, predictions or a document that cannot be used.
    OutsideTolerance
        If an error, regret or coverage is not what is asked.
    """
    header, steps = read_steps(records)
    others = read_peers(peers) if peers else None
    comparison = compare(header, steps, engine=engine, curves_of=curves_of, peers=others)
    if markdown:
        _write(markdown, comparison_markdown(comparison))
    if html:
        from app.render.validation_page import validation_html

        _write(html, validation_html(comparison))
    if readme:
        renewed = replace_table(_read(readme), readme_table(comparison))
        if renewed is None:
            raise ConfigError(f"{readme}: has no line {TABLE_START} to put the table after")
        _write(readme, renewed)
    if as_json:
        print_json(comparison_dict(comparison))
    else:
        print("\n".join(comparison_lines(comparison)))
    if outside := comparison.outside():
        raise OutsideTolerance("; ".join(outside))
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error


def _write(path: Path, text: str) -> None:
    with atomic_text(path) as file:
        file.write(text)
