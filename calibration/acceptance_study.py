"""Acceptance of SmolLM2-135M on two texts, everything that docs/acceptance.md reports, in one run.

    python -m calibration.acceptance_study --model DIR --texts DIR --out DIR --seconds N \\
        [--device cuda] [--workers 10] [--known FILE]

`--texts` is what `acceptance_pack prepare` wrote. In the order of importance, until the time is up:

- main: 48 windows a cell, 3 contexts x 2 texts x 7 budgets x 2 policies;
- counted: speculative runs at temperature 1 on 16 further windows, counted round by round;
- heldout: the 16 windows of those runs measured as in the first step;
- sampled: acceptance along what those runs generated;
- renewal: a third of the main windows again, where `--known` records lack what later ones have;
- ablation: sinks, positions, SnapKV's windows and pools;
- greedy, gamma8: speculative runs with greedy sampling, and at temperature 1 with twice the γ.

Both files in `--out` are continued by another run. Windows whose index is 3 modulo 4 are those that
no fit of the comparison may use. With `--workers` several processes share the device and the work:
a small model leaves most of a GPU idle.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from calibration.acceptance_counted import CountedRun, append_run, count_rounds
from calibration.acceptance_pack import read_texts
from calibration.acceptance_parts import Claims, merge_folders, merged_runs, run_parts
from calibration.acceptance_plan import Plan, arguments, plan_of
from calibration.acceptance_records import (
    SCHEMA,
    DraftView,
    RecordFile,
    Window,
    differing,
    read_records,
)
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
from runtime import EngineError, InputError

POLICIES = ("streamingllm", "snapkv")
HELD_OUT = 3  # window index modulo 4
SAMPLED = "~sampled"  # after a text's name: its windows go on with what the target sampled


class Study:
    """One model, its texts, and the two files that the steps write."""

    def __init__(
        self,
        model: LoadedModel,
        texts: list[Text],
        out: Path,
        plan: Plan,
        until: float,
        *,
        known: Sequence[Path] = (),
        claims: Claims,
    ) -> None:
        """`known` are files of records and of counted runs that need not be measured again."""
        self.model, self.plan, self.until = model, plan, until
        self.texts = {text.name: text for text in texts}
        self.header = header(model, None, texts, plan.task)
        self.out, self.claims = out, claims
        self.records, self.counted = out / "records.jsonl", out / "counted.jsonl"
        self.known_runs = [file for file in known if "counted" in file.name]
        self.known = self._keys(file for file in known if file not in self.known_runs)

    def run(self) -> bool:
        """Every step in order; False where the time was up first."""
        with RecordFile(self.records, self.header) as file:
            if self.claims.folder and (shared := self.out.parent / self.records.name).is_file():
                file.done |= self._keys([shared])
            jobs: dict[str, Callable[[], Iterable[Job]]] = {
                "main": lambda: self._main((0, 2, 1)),
                "heldout": lambda: self._main((HELD_OUT,)),
                "sampled": self._sampled,
                "renewal": lambda: self._main((0,)),
                "ablation": self._ablations,
            }
            runs = {"counted": (1.0, 4), "greedy": (0.0, 4), "gamma8": (1.0, 8)}
            for name in self.plan.steps:
                begun = time.monotonic()
                if name in jobs:
                    finished = self._jobs(file, name, list(jobs[name]()))
                else:
                    finished = self._count(*runs[name])
                say(f"== {name}: {time.monotonic() - begun:.0f} s, finished: {finished}")
                if not finished:
                    return False
        return True

    def _keys(self, files: Iterable[Path]) -> set[tuple[Window, DraftView]]:
        """What files of records hold; those of another measurement are refused."""
        found: set[tuple[Window, DraftView]] = set()
        for file in files:
            records = read_records(file)
            if difference := differing({"schema": SCHEMA, **self.header}, records.header):
                key, now, was = difference
                raise InputError(f"{file} holds another measurement: its {key} is {was}, not {now}")
            found |= {(record.window, record.view) for record in records.records}
        return found

    def windows(self, text: Text, context: int) -> tuple[Window, ...]:
        """Every window of a text at one context."""
        plan = self.plan
        return windows_of(text, prefix_tokens=context, count=plan.windows, task=plan.task)

    def _jobs(self, file: RecordFile, step: str, jobs: list[Job]) -> bool:
        return run_jobs(
            self.model,
            None,
            jobs,
            self.plan.task,
            file,
            say=say_rarely(),
            until=self.until,
            known=frozenset() if step == "renewal" else self.known,
            claim=lambda unit: self.claims.take(f"{step}-{unit}"),
        )

    def _main(self, residues: Sequence[int]) -> list[Job]:
        """All cells, a quarter of the windows at a time: a cut run is even over the cells."""
        views = draft_views(POLICIES, self.plan.budgets)
        full = draft_views(["full"], ())
        jobs = []
        for residue in residues:
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

    def _runs(self) -> list[CountedRun]:
        """Counted so far, by the processes beside this one too."""
        beside = self.out.parent.glob("*/counted.jsonl") if self.claims.folder else ()
        files = [self.counted, self.out.parent / "counted.jsonl", *self.known_runs, *beside]
        return merged_runs(file for file in files if file.is_file() and file.stat().st_size)[1]

    def _awaited_runs(self, seconds: float = 30.0) -> list[CountedRun]:
        """Counted so far, once those that other processes are at are there."""
        asked = len(self.plan.contexts) * len(self.texts)
        until = min(self.until, time.monotonic() + (seconds if self.claims.folder else 0.0))
        while sum(bool(run.generated) for run in self._runs()) < asked and time.monotonic() < until:
            time.sleep(0.5)
        return self._runs()

    def _count(self, temperature: float, gamma: int) -> bool:
        """Speculative runs that the files lack."""
        known = {run.key for run in self._runs()}
        main = temperature > 0 and gamma == 4
        contexts = self.plan.contexts if main else (max(self.plan.contexts),)
        for context, text, view in self._counted_cases(contexts):
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
            if not self.claims.take(f"{text.name}-{context}-{view.label}-{gamma}-{temperature}"):
                continue
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
            if self.model.decoder.device.type == "cuda":
                gc.collect()  # other processes need the memory
                torch.cuda.empty_cache()
            say(
                f"counted {text.name} {context:,} {view.label} gamma {gamma} at {temperature:g}: "
                f"{run.tokens_per_round:.3f} tokens/round, {time.monotonic() - begun:.1f} s"
            )
        return True

    def _counted_cases(self, contexts: Iterable[int]) -> Iterator[tuple[int, Text, DraftView]]:
        for context in contexts:
            budgets = [b for b in self.plan.counted_budgets if b < context]
            for text in self.texts.values():
                for view in draft_views(POLICIES, budgets):
                    yield context, text, view

    def _sampling_view(self, context: int) -> DraftView:
        """Whose generated text is kept; any would do, the distribution is the target's."""
        budgets = [b for b in self.plan.counted_budgets[1:3] if b < context]
        return draft_views(["snapkv"], budgets)[-1]

    def _sampled(self) -> Iterator[Job]:
        """The counted runs' own windows and tokens, drawn from p, as a text to measure on."""
        task = self.plan.task
        for run in self._awaited_runs():
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


def share(out: Path, *, count: int, until: float) -> int:
    """Let several processes do this command line, and make one of their files."""
    codes = run_parts(sys.argv[1:], out, count=count, until=until)
    merge_folders(codes, out, {"command": sys.argv})
    return min(codes.values())


def main() -> int:
    """Run one command line and return its exit code; 0 also where the time was up."""
    options = arguments((__doc__ or "").splitlines()[0])
    until = time.monotonic() + options.seconds
    exact_float32()
    plan = plan_of(options)
    try:
        if options.workers > 1:
            return share(options.out, count=options.workers, until=until)
        device, dtype = torch.device(options.device), getattr(torch, options.dtype)
        model = load_model(options.model, dtype=dtype, device=device)
        texts = read_texts(options.texts)
        for text in texts:
            check_tokens(text.name, text.tokens, model.decoder.config.vocab)
        options.out.mkdir(parents=True, exist_ok=True)
        claims = Claims(options.claims)
        known = options.known
        study = Study(model, texts, options.out, plan, until, known=known, claims=claims)
        finished = study.run()
    except EngineError as error:
        say(f"error: {error}")
        return error.exit_code
    say("finished" if finished else "the time is up; run it again to go on")
    return 0


if __name__ == "__main__":
    sys.exit(main())
