"""One measured run: `python -m runtime.bench MODE ...`, alone, self-launched or under torchrun."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from runtime.bench.options import RunOptions, parse_options
from runtime.errors import EngineError, InputError
from runtime.parallel.launch import launch_ranks, run_rank


def main(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    try:
        options = parse_options(arguments, program="python -m runtime.bench")
        if options.tp > 1 and "RANK" not in os.environ:
            launch_ranks([sys.executable, "-m", "runtime.bench", *arguments], options.tp)
            return 0
    except EngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    return run_rank(lambda: run_bench(options, list(arguments)))


def run_bench(options: RunOptions, arguments: list[str]) -> None:
    """One rank's part of a run; rank 0 prints.

    Raises
    ------
    EngineError
        For bad input, a full cache, or, with `--check`, tokens that differ from plain decoding.
    """
    import torch

    from runtime.bench.provenance import provenance
    from runtime.parallel.groups import connect

    torch.set_num_threads(options.threads)
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    with (
        connect(tp=options.tp, draft_tp=options.draft_ranks, device=device) as ranks,
        ExitStack() as stack,
    ):
        log = None
        if ranks.is_root and options.output is not None:
            log = stack.enter_context(_open(options.output))
        facts = {"options": _plain(options), "provenance": provenance(arguments)}
        _write(log, facts)
        report = _Run(options, ranks).report(log)
        _write(log, {"summary": report})
        if ranks.is_root:
            _print(options, {**facts, **report})


class _Run:
    """One rank's run, from models to report."""

    def __init__(self, options: RunOptions, ranks: Any) -> None:
        from runtime.config import read_config
        from runtime.engine.build import Model
        from runtime.model.prompts import TextTokenizer, random_prompts, read_prompts

        self.options, self.ranks = options, ranks
        seeds = (options.seed, options.seed + 1)
        self.models = [
            Model(
                config=read_config(path), seed=seed, folder=None if options.random_weights else path
            )
            for path, seed in zip((options.model, options.draft), seeds, strict=True)
            if path is not None
        ]
        self.config = self.models[0].config
        lengths = {"batch": options.batch, "prefix_tokens": options.prefix_tokens}
        self.tokenizer = None
        if options.input is not None or options.print_output:
            self.tokenizer = TextTokenizer(options.model)
        if options.input is None or self.tokenizer is None:
            self.prompts = random_prompts(**lengths, vocab=self.config.vocab, seed=options.seed)
        else:
            self.prompts = read_prompts(options.input, **lengths, tokenizer=self.tokenizer)

    def report(self, log: TextIO | None) -> dict[str, Any]:
        """Generate, and check against plain decoding where asked."""
        plan = self.options.plan
        result, memory = self._generate(plan, lambda record: _write(log, {"round": asdict(record)}))
        report = {**result.summary(), "memory_bytes": memory, "verification": self.achieved}
        report["sequences"] = [asdict(sequence) for sequence in result.sequences]
        if self.tokenizer is not None:
            report["texts"] = [self.tokenizer.decode(s.generated) for s in result.sequences]
        if self.options.check:
            from dataclasses import replace

            plain, _ = self._generate(replace(plan, draft="none", gamma=0), lambda record: None)
            same = plain.sequences == result.sequences
            report["check"] = {"same_tokens": same, "plain_decode_s": plain.decode_s}
            if not same:
                raise EngineError("--check: the tokens differ from plain greedy decoding")
        return report

    def _generate(self, plan: Any, on_round: Callable[[Any], None]) -> tuple[Any, dict[str, int]]:
        from runtime.bench.fake_prefill import pretend_prefilled
        from runtime.bench.utilization import peak_memory, verification_rates
        from runtime.engine.build import BatchShape, build_engine

        new = [self.options.gen_tokens] * len(self.prompts)
        eos = frozenset() if self.options.ignore_eos else frozenset(self.config.eos_tokens)
        batch = BatchShape([len(prompt) for prompt in self.prompts], new)
        engine = build_engine(self._setup(plan), self.ranks, batch, eos)
        if self.options.skip_prefill:
            pretend_prefilled(engine, self.prompts, new)
            result = engine.run_to_end(ttft_s=0.0, on_round=on_round)
        else:
            show = self.ranks.is_root and sys.stderr.isatty()
            progress = _show_progress if show else _hide_progress
            result = engine.generate(self.prompts, new, progress=progress, on_round=on_round)
        memory = {"weights": engine.target.weights.bytes, "kv_cache": engine.cache.bytes}
        memory.update(peak_memory(self.ranks.device))
        self.achieved = verification_rates(
            self.config,
            result,
            weight_bytes=engine.target.weights.read_bytes,
            kv_token_bytes=engine.cache.token_bytes,
            tp=self.options.tp,
        )
        return result, memory

    def _setup(self, plan: Any) -> Any:
        import torch

        from runtime.engine.build import EngineSetup
        from runtime.execution.sampling import SamplingParams

        options, on_gpu = self.options, self.ranks.device.type == "cuda"
        return EngineSetup(
            target=self.models[0],
            draft=self.models[1] if len(self.models) > 1 else None,
            plan=plan,
            sampling=SamplingParams(
                temperature=options.temperature,
                top_k=options.top_k,
                top_p=options.top_p,
                seed=options.seed,
            ),
            rates=options.acceptance,
            dtype=getattr(torch, options.dtype or ("bfloat16" if on_gpu else "float32")),
            device=self.ranks.device,
            graphs=options.compile,
            page_tokens=options.page_tokens,
            cache_pages=options.cache_pages,
            chunk_tokens=options.chunk_tokens or (8192 if on_gpu else 512),
            snapkv_window=options.snapkv_window,
            snapkv_pool=options.snapkv_pool,
        )


def _show_progress(done: int, total: int) -> None:
    end = "\n" if done == total else "\r"
    print(f"prefill: {done:,} of {total:,} tokens", file=sys.stderr, end=end, flush=True)


def _hide_progress(done: int, total: int) -> None:
    """Not a terminal, or not rank 0."""


def _open(path: Path) -> TextIO:
    try:
        return path.open("w", encoding="utf-8", buffering=1)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error


def _write(log: TextIO | None, value: dict[str, Any]) -> None:
    """One line, on disk before the next round begins."""
    if log is not None:
        log.write(json.dumps(value, allow_nan=False) + "\n")
        log.flush()


def _plain(options: RunOptions) -> dict[str, Any]:
    fields = asdict(options)
    return {k: str(v) if isinstance(v, Path) else v for k, v in fields.items()}


def _print(options: RunOptions, report: dict[str, Any]) -> None:
    if options.json:
        print(json.dumps(report, allow_nan=False))
        return
    rows = {
        "generated tokens": f"{report['generated_tokens']:,}",
        "rounds": f"{report['rounds']:,}",
        "TTFT": f"{report['ttft_s']:.3f} s",
        "TPOT": f"{1e3 * (report['tpot_s'] or 0):.2f} ms",
        "tokens/s": f"{report['tokens_per_s'] or 0:.1f}",
        "tokens per round": f"{report['tokens_per_round'] or 0:.3f}",
        "acceptance per position": " ".join(
            "-" if rate is None else f"{rate:.3f}" for rate in report["acceptance_per_position"]
        ),
    }
    rows |= {
        f"{name} (mean of {time['count']})": f"{1e3 * time['mean']:.2f} ms"
        for name, time in report["phase_s"].items()
    }
    if report["verification"]:
        rows["verification reads"] = f"{report['verification']['bytes_per_s'] / 1e12:.2f} TB/s"
        rows["verification computes"] = (
            f"{report['verification']['flops_per_s'] / 1e12:.1f} TFLOP/s"
        )
    if "peak_allocated" in report["memory_bytes"]:
        rows["peak memory"] = f"{report['memory_bytes']['peak_allocated'] / 1e9:.2f} GB"
    if "check" in report:
        rows["same tokens as plain decoding"] = "yes"
        rows["plain decoding"] = f"{report['check']['plain_decode_s']:.3f} s"
        rows["speculative decoding"] = f"{report['decode_s']:.3f} s"
    for name, value in rows.items():
        print(f"{name:<32}{value}")
    if options.print_output:
        for text in report["texts"]:
            print(f"\n{text}")
