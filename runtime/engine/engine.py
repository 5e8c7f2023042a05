"""The speculative loop: prefill → draft γ → verify → accept → roll back.

γ = 0 is plain decoding in the same loop. The host reads the device once per round, to get the
verdict: how many drafts were accepted, and the new tokens.

Plain decoding launches the next step before it reads the last one, so that the host's work takes
place while the GPU computes: the token stays on the device, and every sequence grows by exactly
one. Maximum lengths are known in advance. An end token is seen one step late; the token that was
computed after it is dropped.

A speculative round depends on how many drafts the last one accepted. While a round verifies, the
host prepares the next self-draft for every possible number and launches it; the device selects by
the verdict. The host reads the verdict, appends tokens and rolls back while that draft runs. What
was drafted for a sequence that has ended is dropped. A draft model is launched after this.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime.attention.base import AttentionBackend, PassLayout
from runtime.attention.paged_cache import PagedCache
from runtime.drafting.base import Drafter
from runtime.engine.clock import HostClock, PhaseClock
from runtime.engine.results import FinishedSequence, GenerationResult, RoundRecord
from runtime.engine.verdict import Launched, Verdict, to_device
from runtime.errors import EngineError, OutOfPages
from runtime.execution.draft_steps import PreparedDraft, Proposal
from runtime.execution.eager import Passes, output_rows
from runtime.execution.prefill import Progress, PromptJob, prefill
from runtime.execution.sampling import Sampler
from runtime.execution.sequence import SequenceState, new_sequences
from runtime.model.decoder import Decoder
from runtime.parallel.groups import Group
from runtime.parallel.watchdog import HERE, START_S, stall_limit_s

_FIRST_ROUNDS = 2  # compile and capture


class Engine:
    """Generates for one batch. Every rank of the target's group runs the same engine in step."""

    def __init__(
        self,
        *,
        target: Decoder,
        cache: PagedCache,
        backend: AttentionBackend,
        passes: Passes,
        drafter: Drafter,
        gamma: int,
        sampler: Sampler,
        eos_tokens: frozenset[int] = frozenset(),
        chunk_tokens: int = 2048,
        clock: PhaseClock | None = None,
    ) -> None:
        self.target, self.cache, self.backend = target, cache, backend
        self.passes, self.drafter = passes, drafter
        self.gamma, self.sampler = gamma, sampler
        self.eos_tokens, self.chunk_tokens = eos_tokens, chunk_tokens
        self.clock = clock or HostClock()
        self.sequences: list[SequenceState] = []
        self.rounds: list[RoundRecord] = []
        self._ahead: Launched | None = None  # the next plain step
        self._drafted: Proposal | None = None  # of the next round

    @property
    def group(self) -> Group:
        """The ranks that share the target."""
        return self.target.group

    @property
    def active(self) -> list[SequenceState]:
        """Sequences that have not finished; the others no longer take part in a pass."""
        return [sequence for sequence in self.sequences if sequence.finish is None]

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: Sequence[int],
        *,
        progress: Progress = lambda done, total: None,
        on_round: Callable[[RoundRecord], None] = lambda record: None,
    ) -> GenerationResult:
        """Run a batch to its end.

        Parameters
        ----------
        prompts : list of list of int
            Tokens of each sequence; lengths may differ.
        max_new_tokens : list of int
            Most tokens to generate for each sequence.
        progress : callable
            Called with the tokens prefilled so far and in total.
        on_round : callable
            Called with the record of each round when it ends.

        Raises
        ------
        InputError
            If a prompt is empty or has a token outside the vocabulary, or there is nothing to
            generate.
        OutOfPages
            If the pool is too small.
        """
        begun = time.perf_counter()
        self.start(prompts, max_new_tokens, progress=progress)
        return self.run_to_end(ttft_s=time.perf_counter() - begun, on_round=on_round)

    @torch.inference_mode()
    def run_to_end(
        self, *, ttft_s: float, on_round: Callable[[RoundRecord], None] = lambda record: None
    ) -> GenerationResult:
        """Run all rounds of the sequences that were started, which took `ttft_s` seconds."""
        first, round_s = time.perf_counter(), list[float]()
        while self.active:
            start = time.perf_counter()
            record = self.round()
            round_s.append(time.perf_counter() - start)
            on_round(record)
        ended = time.perf_counter()
        return GenerationResult(
            sequences=tuple(
                FinishedSequence(s.prompt_tokens, tuple(s.generated), s.finish or "")
                for s in self.sequences
            ),
            rounds=tuple(self.rounds),
            phases={**self.clock.seconds(), "round": round_s},
            ttft_s=ttft_s,
            decode_s=ended - first,
        )

    @torch.inference_mode()
    def start(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: Sequence[int],
        *,
        progress: Progress = lambda done, total: None,
    ) -> None:
        """Prefill the target, choose every sequence's first token, prefill the draft."""
        sequences = new_sequences(prompts, max_new_tokens, self.target.config.vocab)

        def chunk_done(done: int, total: int) -> None:
            HERE.move(f"prefill: {done} of {total} tokens", limit_s=START_S)
            progress(done, total)

        with HERE.at("prefill", limit_s=START_S):
            self._start(sequences, chunk_done)

    def _start(self, sequences: list[SequenceState], progress: Progress) -> None:
        self.rounds, self._ahead, self._drafted = [], None, None
        self.sequences = sequences
        with self.clock.phase("prefill"):
            hidden = prefill(
                self.target,
                self.cache,
                self.backend,
                [PromptJob(sequence.tokens, sequence.table) for sequence in sequences],
                chunk_tokens=self.chunk_tokens,
                observer=self.drafter.observer([sequence.prompt_tokens for sequence in sequences]),
                progress=progress,
            )
            nothing = Proposal(hidden.new_empty((len(sequences), 0), dtype=torch.long))
            rows = output_rows(self.target, hidden, self.sampler.greedy)
            verdict = self._read(self._judge(nothing, rows[:, None])).tolist()
        with self.clock.phase("draft_prefill"):
            self.drafter.admit(sequences, progress)
        for sequence, row in zip(sequences, verdict, strict=True):
            sequence.append(row[1:2], self.eos_tokens)
            if sequence.finish is not None:
                self._free(sequence)

    @torch.inference_mode()
    def round(self) -> RoundRecord:
        """Draft γ, verify, accept, roll back: for every active sequence."""
        first = len(self.rounds) < _FIRST_ROUNDS
        limit_s = START_S if first else stall_limit_s(self.target.device.type)
        with HERE.at(f"round {len(self.rounds)}", limit_s=limit_s):
            return self._round()

    def _round(self) -> RoundRecord:
        """Launch a round unless one is running, and the next step or draft; commit the first."""
        number = len(self.rounds)
        launched = self._ahead or self._launch(self.active)
        self._ahead = None
        if self.gamma == 0:
            self._ahead = self._launch_after(launched)
        elif prepared := self._prepare(launched.sequences):
            HERE.note(f"round {number + 1}: draft")
            self._drafted = prepared(launched.verdict.rows)
        HERE.note(f"round {number}: accept")
        record = self._commit(launched, self._read(launched.verdict).tolist())
        if self._drafted is not None:
            rows = [row for row, one in enumerate(launched.sequences) if one.finish is None]
            self._drafted = self._drafted.of_rows(rows)
        self.rounds.append(record)
        if not self.active:
            self._ahead = self._drafted = None  # only sequences that met an end token
        return record

    def _launch(self, active: list[SequenceState]) -> Launched:
        """Draft, unless this has been done, and verify from tokens that the host has."""
        proposal, self._drafted = self._drafted, None
        if proposal is None:
            for sequence in active:
                self.cache.reserve(sequence.table, self.gamma + 1)
            HERE.note(f"round {len(self.rounds)}: draft")
            proposal = self.drafter.propose(active, self.gamma)
        last = [sequence.tokens[-1] for sequence in active]
        return self._verify_and_accept(active, last, proposal)

    def _prepare(self, active: list[SequenceState]) -> PreparedDraft | None:
        """The next round's draft, or None if it cannot be prepared, there are too few pages, or
        every sequence may end."""
        width = self.gamma + 1
        if all(sequence.room <= width for sequence in active):
            return None
        try:
            for sequence in active:
                # Without the room of a sequence that could not draft again.
                most = min(2 * width, sequence.room + self.gamma)
                self.cache.reserve(sequence.table, max(width, most))
        except OutOfPages:  # a sequence that ends in this round may free some
            for sequence in active:
                self.cache.truncate(sequence.table, sequence.table.tokens, reserved=width)
            return None
        return self.drafter.prepare(active, self.gamma)

    def _launch_after(self, before: Launched) -> Launched | None:
        """The plain step after one that has not been read, from the tokens on the device."""
        rows = [
            row
            for row, sequence in enumerate(before.sequences)
            if sequence.finish is None and sequence.room > 1
        ]
        if not rows:
            return None
        active, last = [before.sequences[row] for row in rows], before.verdict.rows[:, 1]
        if len(rows) < len(last):
            last = last[to_device(rows, last.device)]
        try:
            for sequence in active:
                self.cache.reserve(sequence.table, 1)
        except OutOfPages:  # an end token not read yet may free some
            return None
        return self._verify_and_accept(active, last, self.drafter.propose(active, 0))

    def _verify_and_accept(
        self, active: list[SequenceState], last: Sequence[int] | Tensor, proposal: Proposal
    ) -> Launched:
        HERE.note(f"round {len(self.rounds)}: verify")
        rows = self.verify(active, last, proposal.tokens)
        read = sum(sequence.table.tokens for sequence in active)
        with self.clock.phase("accept"):
            verdict = self._judge(proposal, rows)
        if self.gamma == 0:
            for sequence in active:  # nothing will be rolled back
                sequence.table.tokens += 1
        return Launched(active, verdict, read)

    def verify(
        self, active: Sequence[SequenceState], last: Sequence[int] | Tensor, drafts: Tensor
    ) -> Tensor:
        """Logits, or best tokens, after each sequence's `last` token and after every draft."""
        width = self.gamma + 1
        layout = PassLayout(
            page_tables=[sequence.table.pages for sequence in active],
            kv_tokens=[sequence.table.tokens + width for sequence in active],
            query_tokens=[width] * len(active),
            window_tokens=self.target.config.sliding_window_tokens,
        )
        return self.passes.verify(layout, last, drafts, greedy=self.sampler.greedy)

    def _judge(self, proposal: Proposal, rows: Tensor) -> Verdict:
        """Rank 0's verdict (B, γ + 2) on every rank, and whether this rank's drafts differ.

        All ranks must draft the same tokens, since each of them has cached its own: rank 0 sends
        its drafts with its verdict. A greedy plain step needs no comparison, since every rank
        chooses its token from the same exchanged values.
        """
        drafts, group = proposal.tokens, self.group
        if group.size == 1 or (self.sampler.greedy and drafts.shape[1] == 0):
            verdict = self.sampler.verify_tokens(drafts, proposal.probabilities, rows)
            return Verdict(verdict, compared=False)
        batch, width = rows.shape[:2]
        if group.rank == 0:
            verdict = self.sampler.verify_tokens(drafts, proposal.probabilities, rows)
            sent = torch.cat((verdict, drafts), dim=1)
        else:
            sent = drafts.new_empty((batch, 2 * width))
        sent = group.broadcast(sent)
        drafted = drafts if proposal.drafted is None else proposal.drafted
        differs = (sent[:, width + 1 :] != drafted).any(1, keepdim=True)
        return Verdict(torch.cat((sent[:, : width + 1], differs.long()), dim=1), compared=True)

    def _read(self, verdict: Verdict) -> NDArray[np.int64]:
        """Read the device, once per round.

        Raises
        ------
        EngineError
            If this rank drafted different tokens than rank 0, so that their caches disagree.
        """
        rows = verdict.read()
        if not verdict.compared:
            return rows
        for index in np.flatnonzero(rows[:, -1]):
            raise EngineError(
                f"rank {self.group.rank} drafted different tokens than rank 0 (round "
                f"{len(self.rounds)}, sequence {index}): an all-reduce gave different results; "
                f"check the GPUs"
            )
        return rows[:, :-1]

    def _commit(self, launched: Launched, verdict: list[list[int]]) -> RoundRecord:
        """Append what was accepted, roll the cache back to it, free what has finished."""
        counts, kept = [], []
        reserved = 0 if self._drafted is None else self.gamma + 1  # the next draft writes there
        for sequence, (accepted, *tokens) in zip(launched.sequences, verdict, strict=True):
            if sequence.finish is not None:  # this step was launched before its end token was read
                continue
            before = len(sequence.tokens)
            sequence.append(tokens[: accepted + 1], self.eos_tokens)
            counts.append(accepted)
            kept.append(len(sequence.tokens) - before)
            if sequence.finish is not None:
                self._free(sequence)
            elif self.gamma:
                self.cache.truncate(sequence.table, len(sequence.tokens) - 1, reserved=reserved)
        return RoundRecord(self.gamma, tuple(counts), tuple(kept), launched.read_tokens)

    def abandon(self) -> None:
        """Free every sequence that has not finished."""
        for sequence in self.active:
            sequence.finish = "abandoned"
            self._free(sequence)
        self._ahead = self._drafted = None

    def _free(self, sequence: SequenceState) -> None:
        self.cache.release(sequence.table)
        self.drafter.release(sequence)
