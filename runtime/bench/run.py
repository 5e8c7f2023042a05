"""Run the engine on a plan and report times, memory and acceptance.

`specroof run MODE ... --write-plan PLAN.json` writes a plan; `python -m runtime.bench PLAN.json`
starts its ranks and runs it, and so does torchrun with `-m runtime.bench PLAN.json`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from runtime.bench.plan import DraftPlan, RunPlan
from runtime.bench.progress import show_status
from runtime.config import read_model_config
from runtime.errors import EngineError, InputError, os_reason
from runtime.parallel.launch import launch_ranks, run_rank
from runtime.parallel.processes import EXEMPT
from runtime.parallel.watchdog import HERE

if TYPE_CHECKING:  # importing torch takes seconds, and the launcher does not need it
    from runtime.config import DecoderConfig
    from runtime.engine.build import EngineSetup
    from runtime.engine.engine import Engine
    from runtime.engine.results import GenerationResult, RoundRecord
    from runtime.parallel.groups import Ranks


def run_file(plan: Path) -> int:
    """Run a plan, as one rank or as the launcher of all ranks; return the exit code."""
    if "RANK" in os.environ:
        return run_rank(lambda: run(RunPlan.read(plan)))
    try:
        ranks = RunPlan.read(plan).tp
        if ranks > 1:
            launch_ranks([sys.executable, "-m", "runtime.bench.run", str(plan)], ranks)
            return 0
    except EngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    return run_rank(lambda: run(RunPlan.read(plan)))


def run(plan: RunPlan) -> None:
    """Run one rank; rank 0 prints the report.

    Raises
    ------
    EngineError
        If input is invalid, memory is too small, or, with `--check`, tokens differ from plain
        decoding.
    """
    import torch

    from runtime.bench.provenance import provenance
    from runtime.parallel.groups import connect

    torch.set_num_threads(plan.threads)
    device = plan.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    with (
        connect(tp=plan.tp, draft_tp=plan.draft_ranks, device=device) as ranks,
        ExitStack() as stack,
    ):
        log = None
        if ranks.is_root and plan.output is not None:
            log = stack.enter_context(open_log(plan.output))
        fields = plan.as_dict()
        origin = {"provenance": provenance(fields.pop("command")), "plan": fields}
        write_line(log, origin)
        report = _Run(plan, ranks).report(log)
        write_line(log, {"summary": report})
        if ranks.is_root:
            for note in report["notes"]:
                print(f"note: {note}", file=sys.stderr)
            with HERE.waiting(EXEMPT):  # for the reader of a pipe
                _print(plan, {**origin, **report})


class _Run:
    """The run of one rank."""

    def __init__(self, plan: RunPlan, ranks: Ranks) -> None:
        from runtime.engine.build import Model
        from runtime.model.prompts import TextTokenizer, random_prompts, read_prompts

        self.plan, self.ranks = plan, ranks
        seeds = (plan.seed, plan.seed + 1)
        self.models = [
            Model(
                config=read_model_config(path, plan.configs),
                seed=seed,
                folder=None if plan.random_weights else path,
            )
            for path, seed in zip((plan.model, plan.draft), seeds, strict=True)
            if path is not None
        ]
        self.config = self.models[0].config
        lengths = {"batch": plan.batch, "prompt_tokens": plan.prompt_tokens}
        self.tokenizer = None
        if plan.input is not None and not plan.input.exists():
            raise InputError(f"--input {plan.input} does not exist; use a file or folder of text")
        if plan.input is not None or plan.print_output:
            self.tokenizer = TextTokenizer(plan.model)
        if plan.input is None or self.tokenizer is None:
            self.prompts = random_prompts(**lengths, vocab=self.config.vocab, seed=plan.seed)
        else:
            self.prompts = read_prompts(
                plan.input,
                **lengths,
                tokenizer=self.tokenizer,
                vocab=self.config.vocab,
                chat=plan.chat,
            )
        self.notes = context_notes(self.plan, [model.config for model in self.models], self.prompts)

    def report(self, log: TextIO | None) -> dict[str, Any]:
        """Generate, with `--check` also without a draft, and summarise the results."""
        draft = self.plan.draft_plan
        result, engine, startup = self._generate(
            draft, lambda record: write_line(log, {"round": asdict(record)})
        )
        report = {"startup_s": startup, **result.summary(), **self._utilization(result, engine)}
        report["notes"] = self.notes
        del engine  # to free its memory
        report["sequences"] = [asdict(sequence) for sequence in result.sequences]
        if self.tokenizer is not None:
            report["texts"] = [self.tokenizer.decode(s.generated) for s in result.sequences]
        if self.plan.check:
            plain, *_ = self._generate(replace(draft, draft="none", gamma=0), lambda record: None)
            same = plain.sequences == result.sequences
            report["check"] = {"same_tokens": same, "plain_decode_s": plain.decode_s}
            if not same:
                raise EngineError("--check failed: the tokens differ from plain greedy decoding")
        return report

    def _generate(
        self, draft: DraftPlan, on_round: Callable[[RoundRecord], None]
    ) -> tuple[GenerationResult, Engine, dict[str, float]]:
        """The result, its engine, and the seconds of loading and warming up before it."""
        import torch

        from runtime.bench.fake_prefill import start_without_prefill, warm_up
        from runtime.engine.build import BatchShape, build_engine

        new = [self.plan.gen_tokens] * len(self.prompts)
        eos = frozenset() if self.plan.ignore_eos else frozenset(self.config.eos_tokens)
        batch = BatchShape([len(prompt) for prompt in self.prompts], new)
        begun = time.perf_counter()
        engine = build_engine(self._setup(draft), self.ranks, batch, eos)
        loaded = time.perf_counter()
        if self.ranks.device.type == "cuda":  # elsewhere nothing is compiled
            with torch.inference_mode():
                warm_up(engine, self.prompts, new, prompt=not self.plan.skip_prefill)
                torch.cuda.synchronize()
        startup = {"load": loaded - begun, "warm_up": time.perf_counter() - loaded}
        if self.plan.skip_prefill:
            start_without_prefill(engine, self.prompts, new)
            result = engine.run_to_end(ttft_s=0.0, on_round=on_round)
        else:
            show = {"progress": _show_progress} if self.ranks.is_root else {}
            result = engine.generate(self.prompts, new, on_round=on_round, **show)
        return result, engine, startup

    def _utilization(self, result: GenerationResult, engine: Engine) -> dict[str, Any]:
        """The report's memory and verification rates."""
        import torch

        from runtime.bench.utilization import verification_rates

        weights, device = engine.target.weights, self.ranks.device
        memory = {"weights": weights.bytes, "kv_cache": engine.cache.bytes}
        if device.type == "cuda":
            memory["peak_allocated"] = torch.cuda.max_memory_allocated(device)
            memory["peak_reserved"] = torch.cuda.max_memory_reserved(device)
        rates = verification_rates(
            self.config,
            result,
            weight_bytes=weights.read_bytes,
            kv_token_bytes=engine.cache.token_bytes,
            tp=self.plan.tp,
        )
        return {"memory_bytes": memory, "verification": rates}

    def _setup(self, draft: DraftPlan) -> EngineSetup:
        import torch

        from runtime.engine.build import EngineSetup
        from runtime.execution.sampling import SamplingParams

        plan, on_gpu = self.plan, self.ranks.device.type == "cuda"
        return EngineSetup(
            target=self.models[0],
            draft=self.models[1] if len(self.models) > 1 else None,
            plan=draft,
            sampling=SamplingParams(
                temperature=plan.temperature,
                top_k=plan.top_k,
                top_p=plan.top_p,
                seed=plan.seed,
            ),
            rates=plan.acceptance,
            dtype=getattr(torch, plan.dtype or ("bfloat16" if on_gpu else "float32")),
            device=self.ranks.device,
            graphs=plan.compile,
            page_tokens=plan.page_tokens,
            cache_pages=plan.cache_pages,
            chunk_tokens=plan.chunk_tokens or (2048 if on_gpu else 512),
            snapkv_window=plan.snapkv_window,
            snapkv_pool=plan.snapkv_pool,
        )


def context_notes(
    plan: RunPlan, configs: Sequence[DecoderConfig], prompts: Sequence[Sequence[int]]
) -> list[str]:
    """One note per model (target, draft) that runs beyond its maximum context.

    A draft model with a KV budget never attends further than that.
    """
    longest = max(map(len, prompts)) + plan.gen_tokens
    budget = plan.draft_plan.kv_budget_tokens
    draft_longest = longest if budget is None else min(longest, budget)
    limits = zip(
        configs,
        (longest, draft_longest),
        ("times are valid, the text may not be", "acceptance may be lower"),
        strict=False,
    )
    return [
        f"{tokens:,} tokens exceed the maximum context of {config.name} "
        f"({config.max_context_tokens:,}): {effect}"
        for config, tokens, effect in limits
        if tokens > config.max_context_tokens
    ]


def _show_progress(done: int, total: int) -> None:
    show_status("" if done == total else f"prefill: {done:,} of {total:,} tokens")


def open_log(path: Path) -> TextIO:
    """Open a file for JSON lines; raises `InputError` if it cannot be written."""
    try:
        return path.open("w", encoding="utf-8", buffering=1)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path | str, error: OSError) -> InputError:
    return InputError(f"{path} cannot be written: {os_reason(error)}; use another --output")


def write_line(log: TextIO | None, value: dict[str, Any]) -> None:
    """Write one line and flush it; nothing without a log. Raises `InputError`, if it cannot."""
    if log is None:
        return
    try:
        log.write(json.dumps(value, allow_nan=False) + "\n")
        log.flush()
    except OSError as error:
        with suppress(OSError):
            log.close()  # otherwise its owner would write the line again
        raise _unwritable(log.name, error) from error


def _print(plan: RunPlan, report: dict[str, Any]) -> None:
    if plan.json:
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
        f"{name} (median, p90 of {times['count']})": " ".join(
            f"{1e3 * times[part]:.2f}" for part in ("median", "p90")
        )
        + " ms"
        for name, times in report["phase_s"].items()
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
    if plan.print_output:
        for text in report["texts"]:
            print(f"\n{text}")


def main() -> int:
    """Run the plan named on the command line; return the exit code."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print(
            "error: one plan is needed; run python -m runtime.bench PLAN.json, with a file from "
            "specroof run MODE ... --write-plan PLAN.json",
            file=sys.stderr,
        )
        return 2
    return run_file(Path(sys.argv[1]))


if __name__ == "__main__":
    sys.exit(main())
