"""Acceptance of SmolLM2-135M on two texts, everything that docs/acceptance.md reports, in one run.

    python -m calibration.acceptance_study --model DIR --texts DIR --out DIR --seconds N \\
        [--device cuda]

`--texts` is what `acceptance_pack prepare` wrote. In the order of importance, until the time is up:

1. 48 windows a cell: 3 contexts x 2 texts x 7 budgets x 2 policies;
2. speculative runs at temperature 1 on 16 further windows, counted round by round;
3. acceptance along what those runs generated, where each draft would have been tried;
4. the 16 windows of step 2 measured as in step 1;
5. the ablations: sinks, positions, SnapKV's windows and pools;
6. speculative runs with greedy sampling, and at temperature 1 with twice the γ.

Both files in `--out` are continued by another run. Windows whose index is 3 modulo 4 are those that
no fit of the comparison may use.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from calibration.acceptance_counted import CountedRun, append_run, count_rounds, read_runs
from calibration.acceptance_pack import read_texts
from calibration.acceptance_records import DraftView, RecordFile, Window
from calibration.acceptance_run import (
    Job,
    LoadedModel,
    Text,
    check_tokens,
    draft_views,
    exact_float32,
    header,
    load_model,
    run_jobs,
    windows_of,
)
from calibration.acceptance_window import Task
from runtime import EngineError

POLICIES = ("streamingllm", "snapkv")
HELD_OUT = 3  # window index modulo 4
SAMPLED = "~sampled"  # after a text's name: its windows go on with what the target sampled


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much of everything; smaller on a CPU."""

    contexts: tuple[int, ...]
    budgets: tuple[int, ...]
    windows: int
    counted_budgets: tuple[int, ...]
    counted_windows: int
    counted_tokens: int
    ablation_context: int
    ablation_budgets: tuple[int, ...]
    task: Task


class Study:
    """One model, its texts, and the two files that the steps write."""

    def __init__(
        self, model: LoadedModel, texts: list[Text], out: Path, plan: Plan, until: float
    ) -> None:
        self.model, self.plan, self.until = model, plan, until
        self.texts = {text.name: text for text in texts}
        self.header = header(model, None, texts, plan.task)
        self.records, self.counted = out / "records.jsonl", out / "counted.jsonl"

    def run(self) -> bool:
        """Every step in order; False where the time was up first."""
        with RecordFile(self.records, self.header) as file:
            steps: tuple[tuple[str, Callable[[], bool]], ...] = (
                ("windows to fit on", lambda: self._jobs(file, self._main(held_out=False))),
                ("counted at temperature 1", lambda: self._count(1.0, gamma=4)),
                ("along sampled text", lambda: self._jobs(file, list(self._sampled()))),
                ("held-out windows", lambda: self._jobs(file, self._main(held_out=True))),
                ("ablations", lambda: self._jobs(file, list(self._ablations()))),
                ("counted, greedy", lambda: self._count(0.0, gamma=4)),
                ("counted, gamma 8", lambda: self._count(1.0, gamma=8)),
            )
            for name, step in steps:
                begun = time.monotonic()
                finished = step()
                say(f"== {name}: {time.monotonic() - begun:.0f} s, finished: {finished}")
                if not finished:
                    return False
        return True

    def windows(self, text: Text, context: int) -> tuple[Window, ...]:
        """Every window of a text at one context."""
        plan = self.plan
        return windows_of(text, prefix_tokens=context, count=plan.windows, task=plan.task)

    def _jobs(self, file: RecordFile, jobs: list[Job]) -> bool:
        return run_jobs(
            self.model, None, jobs, self.plan.task, file, say=say_rarely(), until=self.until
        )

    def _main(self, *, held_out: bool) -> list[Job]:
        """All cells, a quarter of the windows at a time: a cut run is even over the cells."""
        views = draft_views(POLICIES, self.plan.budgets)
        full = draft_views(["full"], ())
        jobs = []
        for residue in (HELD_OUT,) if held_out else (0, 2, 1):
            for context in self.plan.contexts:
                for text in self.texts.values():
                    windows = self.windows(text, context)
                    if residue == 0:
                        jobs.append(Job(text, context, windows[:1], full))
                    chosen = tuple(window for window in windows if window.index % 4 == residue)
                    jobs.append(Job(text, context, chosen, views))
        return jobs

    def _ablations(self) -> Iterator[Job]:
        """Pages of 4 tokens, so that 0, 4 and 16 sinks are just that."""
        budgets, context = self.plan.ablation_budgets, self.plan.ablation_context
        views = draft_views(
            POLICIES,
            budgets,
            sinks=(0, 4, 16),
            positions=("absolute", "relative"),
            snapkv_windows=(16, 32, 64),
            snapkv_pools=(1, 5, 7),
            page_tokens=4,
        )
        # Without sinks there is nothing to move: relative is absolute.
        views = tuple(v for v in views if not (v.sink == 0 and v.positions == "relative"))
        for residue in (0, 2):
            for text in self.texts.values():
                chosen = (w for w in self.windows(text, context) if w.index % 4 == residue)
                yield Job(text, context, tuple(chosen), views)

    # ---- counted ------------------------------------------------------------------------------

    def _held_out(self, text: Text, context: int) -> list[Window]:
        found = [w for w in self.windows(text, context) if w.index % 4 == HELD_OUT]
        return found[: self.plan.counted_windows]

    def _count(self, temperature: float, *, gamma: int) -> bool:
        """Speculative runs that the file lacks."""
        known = {run.key for run in read_runs(self.counted)}
        main = temperature > 0 and gamma == 4
        for context, text, view in self._counted_cases(every_context=main):
            windows = self._held_out(text, context)
            run = CountedRun(
                text=text.name,
                prefix_tokens=context,
                windows=tuple(window.index for window in windows),
                view=view,
                gamma=gamma,
                temperature=temperature,
                seed=1,
                accepted=(),
            )
            if run.key in known or not windows:
                continue
            if time.monotonic() > self.until:
                return False
            begun = time.monotonic()
            accepted, generated = count_rounds(
                self.model.decoder,
                [text.tokens[w.start : w.start + context].tolist() for w in windows],
                view,
                gamma=gamma,
                temperature=temperature,
                new_tokens=self.plan.counted_tokens,
                seed=run.seed,
                chunk_tokens=self.plan.task.chunk_tokens,
            )
            keep = temperature > 0 and view == self._sampling_view(context)
            run = replace(run, accepted=accepted, generated=generated if keep else ())
            append_run(self.counted, run, self.header)
            say(
                f"counted {text.name} {context:,} {view.label} gamma {gamma} at {temperature:g}: "
                f"{run.tokens_per_round:.3f} tokens/round, {time.monotonic() - begun:.1f} s"
            )
        return True

    def _counted_cases(self, *, every_context: bool) -> Iterator[tuple[int, Text, DraftView]]:
        """All budgets at the longest context, two of them elsewhere."""
        longest = max(self.plan.contexts)
        for context in self.plan.contexts if every_context else (longest,):
            budgets = self.plan.counted_budgets
            chosen = budgets if context == longest else budgets[1:3]
            for text in self.texts.values():
                for view in draft_views(POLICIES, [b for b in chosen if b < context]):
                    yield context, text, view

    def _sampling_view(self, context: int) -> DraftView:
        """Whose generated text is kept; any would do, the distribution is the target's."""
        budgets = [b for b in self.plan.counted_budgets[1:3] if b < context]
        return draft_views(["snapkv"], budgets)[-1]

    def _sampled(self) -> Iterator[Job]:
        """The counted runs' own windows and tokens, drawn from p, as a text to measure on."""
        task = self.plan.task
        for run in read_runs(self.counted):
            if not run.generated or run.gamma != 4 or run.prefix_tokens not in self.plan.contexts:
                continue
            text, context = self.texts[run.text], run.prefix_tokens
            width = task.window_tokens(context)
            by_index = {w.index: w for w in self.windows(text, context)}
            pieces: list[NDArray[np.int32]] = []
            windows: list[Window] = []
            for index, generated in zip(run.windows, run.generated, strict=True):
                start = by_index[index].start
                piece = [*text.tokens[start : start + context].tolist(), *generated][:width]
                if len(piece) < width:
                    continue
                windows.append(
                    Window(
                        text=text.name + SAMPLED,
                        prefix_tokens=context,
                        index=index,
                        start=len(pieces) * width,
                    )
                )
                pieces.append(np.array(piece, dtype=np.int32))
            if pieces:
                sampled = Text(text.name + SAMPLED, np.concatenate(pieces), text.sha256)
                views = draft_views(POLICIES, self.plan.counted_budgets)
                yield Job(sampled, context, tuple(windows), views)


def say(line: str) -> None:
    """One line of progress."""
    print(line, file=sys.stderr, flush=True)


def say_rarely(seconds: float = 10.0) -> Callable[[str], None]:
    """Progress at most every so often."""
    last = 0.0

    def tell(line: str) -> None:
        nonlocal last
        if time.monotonic() - last > seconds:
            last = time.monotonic()
            say(line)

    return tell


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def main() -> int:
    """Run one command line and return its exit code; 0 also where the time was up."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--model", type=Path, required=True, help="folder of config.json and safetensors")
    add("--texts", type=Path, required=True, help="folder of token arrays")
    add("--out", type=Path, required=True, help="folder of the two files of records")
    add("--seconds", type=float, default=540.0, help="stop after the cell that passes this")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--contexts", type=_numbers, default=(7800, 2048, 4096))
    add("--budgets", type=_numbers, default=(64, 128, 256, 512, 1024, 2048, 4096))
    add("--windows", type=int, default=64)
    # 112: the speech then holds 64 windows behind 7,800 tokens whose scored parts are disjoint.
    add("--scored-tokens", type=int, default=112, help="a multiple of 16")
    add("--counted-budgets", type=_numbers, default=(64, 256, 1024, 4096))
    add("--counted-windows", type=int, default=16)
    add("--counted-tokens", type=int, default=192, help="generated tokens a sequence")
    add("--ablation-context", type=int, default=4096)
    add("--ablation-budgets", type=_numbers, default=(256, 1024))
    options = parser.parse_args()
    until = time.monotonic() + options.seconds
    exact_float32()
    plan = Plan(
        contexts=options.contexts,
        budgets=options.budgets,
        windows=options.windows,
        counted_budgets=options.counted_budgets,
        counted_windows=options.counted_windows,
        counted_tokens=options.counted_tokens,
        ablation_context=options.ablation_context,
        ablation_budgets=options.ablation_budgets,
        task=Task(
            scored_tokens=options.scored_tokens,
            chunk_tokens=2048 if options.device == "cuda" else 512,
            read_bytes=8e9 if options.device == "cuda" else 1e9,
        ),
    )
    try:
        device, dtype = torch.device(options.device), getattr(torch, options.dtype)
        model = load_model(options.model, dtype=dtype, device=device)
        texts = read_texts(options.texts)
        for text in texts:
            check_tokens(text.name, text.tokens, model.decoder.config.vocab)
        options.out.mkdir(parents=True, exist_ok=True)
        finished = Study(model, texts, options.out, plan, until).run()
    except EngineError as error:
        say(f"error: {error}")
        return error.exit_code
    say("finished" if finished else "the time is up; run it again to go on")
    return 0


if __name__ == "__main__":
    sys.exit(main())
