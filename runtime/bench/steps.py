"""Time T_T, T_V, T_D and a whole round of one configuration on a GPU.

Weights are random, of the real shape. Caches hold random keys and values, since their contents do
not affect run time.
"""

from __future__ import annotations

import copy
import gc
import itertools
import math
import statistics
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch

from runtime.attention.paged_cache import PageTable
from runtime.bench.fake_prefill import start_without_prefill
from runtime.bench.kernel_parts import replay_parts
from runtime.config import config_of_shape
from runtime.contracts import DraftChoice, ModelShape
from runtime.drafting.standalone import StandaloneDrafter
from runtime.engine.build import BatchShape, EngineSetup, Model, assemble
from runtime.engine.clock import PhaseClock
from runtime.engine.engine import Engine
from runtime.execution.cuda_graphs import Captured, GraphPasses
from runtime.execution.prefill import PromptJob, prefill
from runtime.model.decoder import Decoder
from runtime.parallel.groups import connect
from runtime.parallel.watchdog import HERE

_PAGE_TOKENS = 16
WARM_S = 0.05
_CASE_S = 300.0  # time limit of one case, with compilation and capture, before ranks are aborted
WARM_ROUNDS = 3
_PREFILL_TOKENS, _PREFILLS = 8192, 3  # most tokens of the prompt; repetitions
_RATE = 0.7  # simulated acceptance, which does not affect the time of a round


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCase:
    """A draft, and a batch of sequences that all have `context_tokens` in the cache."""

    plan: DraftChoice
    batch: int
    context_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """Median times in seconds, and bytes on one rank.

    `target_step_s`, `verify_s` and `draft_step_s` are device times of graph replays launched back
    to back, from input to sampled tokens; a draft step is a draft phase divided by γ. `spread` is
    the largest (max - min) / median of the three. `round_s` is the wall time of a whole round.
    `host_s` is the part of it that exceeds a draft phase and a verification timed back to back; as
    the difference of separate measurements it may be negative. `between_s` is the time of a round
    outside its two replays, or None if not timed. `parts_s` splits each pass's device time by kind
    of kernel, and `prefill_s` is the wall time of prefilling one prompt of `prefill_tokens`, up to
    its last hidden state; both are measured on request.
    """

    target_step_s: float
    verify_s: float
    draft_step_s: float
    round_s: float
    host_s: float
    spread: float
    repeats: int
    peak_memory_bytes: int
    memory_bytes: Mapping[str, int]
    prefill_s: float = 0.0
    prefill_tokens: int = 0
    between_s: float | None = None
    parts_s: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


class StepBench:
    """A loaded target and optional draft model, for timing many cases.

    Parameters
    ----------
    target, draft : ModelShape
        Shapes of the models, which get random weights.
    tp, draft_tp : int
        Ranks of each model. With more than one, every rank creates a `StepBench`.
    """

    def __init__(
        self,
        target: ModelShape,
        draft: ModelShape | None = None,
        *,
        tp: int = 1,
        draft_tp: int | None = None,
        device: str = "cuda",
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        self._stack = ExitStack()
        self.ranks = self._stack.enter_context(
            connect(tp=tp, draft_tp=draft_tp or tp, device=device)
        )
        self.device, self.dtype = self.ranks.device, dtype
        self.models = [Model(config=config_of_shape(target), seed=0)]
        self.target: Decoder | None = self.models[0].load(self.ranks.target, dtype, self.device)
        self.draft: Decoder | None = None
        if draft is not None:
            self.models.append(Model(config=config_of_shape(draft), seed=1))
            if self.ranks.draft is not None:
                self.draft = self.models[1].load(self.ranks.draft, dtype, self.device)

    def time(
        self, case: StepCase, *, repeats: int = 15, parts: bool = False, prompt: bool = False
    ) -> StepTimes:
        """Time one case.

        Parameters
        ----------
        parts : bool
            Also trace each pass by kind of kernel.
        prompt : bool
            Also time the prefill of one prompt, of at most 8,192 tokens.

        Raises
        ------
        EngineError
            If the case does not fit in memory, or the plan does not match the models.
        """
        _release()
        torch.cuda.reset_peak_memory_stats(self.device)
        engine = self._engine(case, (case.plan.gamma + 1) * (repeats + 8))
        where = f"timing batch {case.batch}, {case.context_tokens} tokens, gamma {case.plan.gamma}"
        try:
            with HERE.at(where, limit_s=_CASE_S):
                return self._timed(engine, case, repeats, parts=parts, prompt=prompt)
        finally:
            del engine
            _release()

    def close(self) -> None:
        """Free the weights and leave the process group."""
        self.target = self.draft = None
        _release()
        self._stack.close()

    def _engine(self, case: StepCase, room: int) -> Engine:
        """An engine whose sequences have `context_tokens` in the cache, without a prefill.

        `room` is the number of tokens to reserve for each.
        """
        gamma = case.plan.gamma
        setup = EngineSetup(
            target=self.models[0],
            draft=self.models[1] if len(self.models) > 1 else None,
            plan=case.plan,
            rates=[_RATE] * gamma,
            dtype=self.dtype,
            device=self.device,
            page_tokens=_PAGE_TOKENS,
        )
        tokens, count = case.context_tokens, case.batch
        shape = BatchShape([tokens] * count, [room] * count)
        assert self.target is not None
        engine = assemble(setup, self.ranks, shape, self.target, self.draft)
        prompts = [[1 + index % 97] * tokens for index in range(count)]
        start_without_prefill(engine, prompts, [room] * count)
        return engine

    @torch.inference_mode()
    def _timed(
        self,
        engine: Engine,
        case: StepCase,
        repeats: int,
        *,
        parts: bool,
        prompt: bool,
    ) -> StepTimes:
        gamma, active = case.plan.gamma, engine.active
        passes, drafting = engine.passes, getattr(engine.drafter, "passes", None)
        assert isinstance(passes, GraphPasses)
        plain = copy.copy(engine)
        plain.gamma = 0
        for sequence in active:
            engine.cache.reserve(sequence.table, gamma + 1)
        nothing = torch.zeros((len(active), gamma), dtype=torch.long, device=self.device)
        last = [sequence.tokens[-1] for sequence in active]
        plain.verify(active, last, nothing[:, :0])
        graphs = {"target_step": passes.captured("verify")}
        target = self._median(graphs["target_step"], passes, repeats)
        draft, verify, round_s, between_s = (0.0, 0.0), target, target[0], None
        if gamma:
            engine.drafter.propose(active, gamma)
            if isinstance(drafting, GraphPasses):  # else other ranks draft
                graphs["draft_phase"] = drafting.captured("draft")
                draft = self._median(graphs["draft_phase"], drafting, repeats)
            engine.verify(active, last, nothing)
            graphs["verify"] = passes.captured("verify")
            verify = self._median(graphs["verify"], passes, repeats)
            round_s, between_s = time_rounds(engine, repeats, engine.clock)
        peak = torch.cuda.max_memory_allocated(self.device)  # before prefill: that of decoding
        tokens = min(case.context_tokens, _PREFILL_TOKENS) if prompt else 0
        prefill_s = self._prefill(engine, tokens) if prompt else 0.0
        # Last, because tracing slows every later launch in this process.
        seen = {name: replay_parts(graph.replay) for name, graph in graphs.items()} if parts else {}
        memory = {"weights": engine.target.weights.bytes, "kv_cache": engine.cache.bytes}
        if isinstance(engine.drafter, StandaloneDrafter):
            memory["draft_weights"] = engine.drafter.decoder.weights.bytes
            memory["draft_kv_cache"] = engine.drafter.cache.bytes
        return StepTimes(
            target_step_s=target[0],
            verify_s=verify[0],
            draft_step_s=draft[0] / max(1, gamma),
            round_s=round_s,
            host_s=round_s - draft[0] - verify[0] if gamma else 0.0,
            spread=max(target[1], verify[1], draft[1]),
            repeats=repeats,
            peak_memory_bytes=peak,
            memory_bytes=memory,
            prefill_s=prefill_s,
            prefill_tokens=tokens,
            between_s=between_s,
            parts_s=seen,
        )

    def _median(
        self, graph: Captured[object], passes: GraphPasses, repeats: int
    ) -> tuple[float, float]:
        """Median seconds and spread of a graph's replays."""
        for _ in range(self._warm_replays(graph, passes)):
            graph.replay()
        torch.cuda.synchronize(self.device)
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
        marks[0].record()
        for mark in marks[1:]:
            graph.replay()
            mark.record()
        torch.cuda.synchronize(self.device)
        times = [a.elapsed_time(b) * 1e-3 for a, b in itertools.pairwise(marks)]
        median = statistics.median(times)
        return median, (max(times) - min(times)) / median

    def _warm_replays(self, graph: Captured[object], passes: GraphPasses) -> int:
        """How often to replay before timing, since an idle GPU is slow to raise its clock.

        All ranks use rank 0's count, because a pass may contain collectives.
        """
        graph.replay()
        torch.cuda.synchronize(self.device)
        start = time.perf_counter()
        graph.replay()
        torch.cuda.synchronize(self.device)
        count = math.ceil(WARM_S / (time.perf_counter() - start))
        agreed = torch.tensor([count], device=self.device)
        return int(passes.decoder.group.broadcast(agreed))

    def _prefill(self, engine: Engine, tokens: int) -> float:
        """Median wall seconds of prefilling one prompt, after a warm-up.

        It overwrites the first sequence's pages, so it must be the last measurement on this engine.
        """
        sequence = engine.sequences[0]
        times = []
        for _ in range(1 + _PREFILLS):
            job = PromptJob(sequence.tokens[:tokens], PageTable(sequence.table.pages[:]))
            torch.cuda.synchronize(self.device)
            start = time.perf_counter()
            prefill(
                engine.target,
                engine.cache,
                engine.backend,
                [job],
                chunk_tokens=engine.chunk_tokens,
            )
            torch.cuda.synchronize(self.device)
            times.append(time.perf_counter() - start)
        return statistics.median(times[1:])


def time_rounds(engine: Engine, repeats: int, clock: PhaseClock) -> tuple[float, float]:
    """Median wall seconds of consecutive whole rounds, and of the time outside their passes.

    `clock` is the engine's: it times each pass within its round, from the moment when the device
    could begin it, so that the launch latency of an idle device counts as part of the pass.
    """
    times = []
    for _ in range(WARM_ROUNDS + repeats):
        start = time.perf_counter()
        engine.round()
        times.append(time.perf_counter() - start)
    # One replay of each kind per round, after those that captured the graphs.
    seconds = clock.seconds()
    replays = [seconds[name][-len(times) :] for name in ("draft", "verify") if name in seconds]
    within = [sum(round_replays) for round_replays in zip(*replays, strict=True)]
    between = [whole - inside for whole, inside in zip(times, within, strict=True)]
    return statistics.median(times[WARM_ROUNDS:]), statistics.median(between[WARM_ROUNDS:])


def _release() -> None:
    gc.collect()
    torch.cuda.empty_cache()
