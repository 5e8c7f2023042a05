"""Commands `specroof calibrate acceptance ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.cli.declare_calibrate import calibrate

__all__ = ["calibrate"]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON (docs/json.md).")]
Records = Annotated[list[Path], typer.Argument(metavar="RECORDS...", help="Files of records.")]


@calibrate.command("acceptance")
def measure_acceptance(
    model: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of config, tokenizer and safetensors.")
    ],
    text: Annotated[
        list[Path], typer.Option(metavar="FILE", help="A text; repeat it for several.")
    ],
    output: Annotated[
        Path, typer.Option(metavar="FILE", help="Records as JSON lines; an old file goes on.")
    ],
    draft_policy: Annotated[
        str, typer.Option(metavar="P,P", help="full, streamingllm, snapkv.")
    ] = "streamingllm,snapkv",
    kv_budget: Annotated[
        str, typer.Option(metavar="TOKENS", help="A list or range; those over a prefix are left.")
    ] = "64:4096:x4",
    prefix_tokens: Annotated[
        str, typer.Option(metavar="TOKENS", help="A list or range of prefix lengths.")
    ] = "2048",
    draft_model: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A model that drafts; else itself.", show_default=False),
    ] = None,
    windows: Annotated[
        int, typer.Option(metavar="N", min=1, help="Windows of each text and prefix.")
    ] = 16,
    gamma: Annotated[
        int, typer.Option(metavar="N", min=1, help="Draft positions of a round.")
    ] = 16,
    scored_tokens: Annotated[
        int, typer.Option(metavar="N", min=1, help="Scored tokens of a window, whole rounds.")
    ] = 128,
    temperature: Annotated[float, typer.Option(metavar="T", help="Of both models.")] = 1.0,
    sink: Annotated[str, typer.Option(metavar="N,N", help="StreamingLLM's first tokens.")] = "16",
    snapkv_window: Annotated[
        str, typer.Option(metavar="N,N", help="SnapKV's last queries.")
    ] = "32",
    snapkv_pool: Annotated[
        str, typer.Option(metavar="N,N", help="SnapKV's pooling width, odd.")
    ] = "1",
    positions: Annotated[
        str, typer.Option(metavar="absolute|relative", help="StreamingLLM's, in text or cache.")
    ] = "absolute",
    page_tokens: Annotated[
        int, typer.Option(metavar="N", min=1, help="Tokens in a page of the cache.")
    ] = 16,
    device: Annotated[str, typer.Option(metavar="cpu|cuda", help="Where.")] = "cpu",
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="DTYPE", help="float32 on a CPU, bfloat16 on a GPU.", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure how often drafts with a smaller KV budget are accepted, on real text."""
    from app.cli.commands import acceptance as command

    raise typer.Exit(
        command.run_measure(
            command.MeasureOptions(
                model=model,
                texts=text,
                output=output,
                draft_policy=draft_policy,
                kv_budget=kv_budget,
                prefix_tokens=prefix_tokens,
                draft_model=draft_model,
                windows=windows,
                gamma=gamma,
                scored_tokens=scored_tokens,
                temperature=temperature,
                sink=sink,
                snapkv_window=snapkv_window,
                snapkv_pool=snapkv_pool,
                positions=positions,
                page_tokens=page_tokens,
                device=device,
                dtype=dtype,
            ),
            as_json=as_json,
        )
    )


@calibrate.command("acceptance-report")
def acceptance_report(
    records: Records,
    counted: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="Counted speculative runs; repeat it.", show_default=False
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write a page with charts.", show_default=False),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            metavar="PERCENT",
            min=0.0,
            help="With --counted: median error allowed, else exit 4.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tables of measured acceptance: budgets, positions, correlation, predicted against counted."""
    from app.cli.commands import acceptance as command

    raise typer.Exit(
        command.run_report(
            records,
            counted or (),
            html=html,
            tolerance=tolerance,
            as_json=as_json,
        )
    )


@calibrate.command("fit-acceptance")
def fit_acceptance(
    records: Records,
    output: Annotated[
        Path, typer.Option(metavar="FILE", help="Curves for --acceptance-curve, as TOML.")
    ],
    gamma: Annotated[
        int, typer.Option(metavar="N", min=1, help="The gamma whose tokens a round are met.")
    ] = 4,
    text: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only these texts; repeat it.", show_default=False),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The target's name, if not its folder's.", show_default=False
        ),
    ] = None,
) -> None:
    """Fit curves of acceptance over KV budget and context on records."""
    from app.cli.commands import acceptance as command

    raise typer.Exit(
        command.run_fit(records, output, gamma=gamma, texts=text or None, target=target)
    )


@calibrate.command("import-acceptance")
def import_acceptance(
    report: Annotated[Path, typer.Argument(metavar="FILE", help="vLLM, SGLang or own records.")],
    gamma: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Drafts a round, for SGLang's mean.", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Turn what an engine reports into acceptance per draft position."""
    from app.cli.commands import acceptance as command

    raise typer.Exit(command.run_import(report, gamma=gamma, as_json=as_json))
