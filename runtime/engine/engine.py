"""The speculative loop: prefill → draft γ → verify → accept → roll back.

γ = 0 is plain decoding on the same loop. Between rounds the target's cache holds every token of a
sequence but its last. The host reads the device once a round: the verdict.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from runtime.attention.base import AttentionBackend, PassLayout
from runtime.attention.paged_cache import PagedCache
from runtime.drafting.base import Drafter
from runtime.engine.clock import HostClock, PhaseClock
from runtime.engine.results import FinishedSequence, GenerationResult, RoundRecord
from runtime.errors import EngineError, InputError
from runtime.execution.draft_steps import Proposal
from runtime.execution.eager import Passes, output_rows
from runtime.execution.prefill import Progress, PromptJob, prefill
from runtime.execution.sampling import Sampler
from runtime.execution.sequence import SequenceState
from runtime.model.decoder import Decoder
from runtime.parallel.groups import Group
from runtime.parallel.watchdog import HERE, START_S, stall_limit_s

_FIRST_ROUNDS = 2  # compile and capture


def _silent(done: int, total: int) -> None:
    """No progress shown."""


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
        progress: Progress = _silent,
        on_round: Callable[[RoundRecord], None] = lambda record: None,
    ) -> GenerationResult:
        """Run a batch to its end.

        Parameters
        ----------
        prompts : list of list of int
            Tokens of each sequence; lengths may differ.
        max_new_tokens : list of int
            The most tokens to generate for each.
        progress : callable
            Called with tokens done and in all as prompts are prefilled.
        on_round : callable
            Called with every round's record as it ends.

        Raises
        ------
        InputError
            For an empty prompt, a token outside the vocabulary, or nothing to generate.
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
        """All rounds of what was started; `ttft_s` is how long that took."""
        first = time.perf_counter()
        while self.active:
            on_round(self.round())
        ended = time.perf_counter()
        return GenerationResult(
            sequences=tuple(
                FinishedSequence(s.prompt_tokens, tuple(s.generated), s.finish or "")
                for s in self.sequences
            ),
            rounds=tuple(self.rounds),
            phases=self.clock.seconds(),
            ttft_s=ttft_s,
            decode_s=ended - first,
        )

    @torch.inference_mode()
    def start(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: Sequence[int],
        *,
        progress: Progress = _silent,
    ) -> None:
        """Prefill the target, choose every sequence's first token, prefill the draft."""
        self._check(prompts, max_new_tokens)

        def chunk_done(done: int, total: int) -> None:
            HERE.move(f"prefill: {done} of {total} tokens", limit_s=START_S)
            progress(done, total)

        with HERE.at("prefill", limit_s=START_S):
            self._start(prompts, max_new_tokens, chunk_done)

    def _start(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: Sequence[int], progress: Progress
    ) -> None:
        self.rounds = []
        self.sequences = [
            SequenceState(index, list(prompt), len(prompt), most)
            for index, (prompt, most) in enumerate(zip(prompts, max_new_tokens, strict=True))
        ]
        with self.clock.phase("prefill"):
            hidden = prefill(
                self.target,
                self.cache,
                self.backend,
                [PromptJob(sequence.tokens, sequence.table) for sequence in self.sequences],
                chunk_tokens=self.chunk_tokens,
                observer=self.drafter.observer([len(prompt) for prompt in prompts]),
                progress=progress,
            )
            nothing = Proposal(hidden.new_empty((len(prompts), 0), dtype=torch.long))
            rows = output_rows(self.target, hidden, self.sampler.greedy)
            verdict = self._read(self._verify_tokens(nothing, rows[:, None]))
        with self.clock.phase("draft_prefill"):
            self.drafter.admit(self.sequences, progress)
        for sequence, row in zip(self.sequences, verdict, strict=True):
            sequence.append(row[1:2], self.eos_tokens)
            if sequence.finish is not None:
                self._free(sequence)

    @torch.inference_mode()
    def round(self) -> RoundRecord:
        """Draft γ, verify, accept, roll back: for every active sequence."""
        first = len(self.rounds) < _FIRST_ROUNDS
        limit_s = START_S if first else stall_limit_s(self.target.device.type)
        with HERE.at(f"round {len(self.rounds)}", limit_s=limit_s):
            return self._round(self.active)

    def _round(self, active: list[SequenceState]) -> RoundRecord:
        number = len(self.rounds)
        for sequence in active:
            self.cache.reserve(sequence.table, self.gamma + 1)
        HERE.text = f"round {number}: draft"
        with self.clock.phase("draft"):
            proposal = self.drafter.propose(active, self.gamma)
        HERE.text = f"round {number}: verify"
        with self.clock.phase("verify"):
            rows = self.verify(active, proposal.tokens)
            read = sum(sequence.table.tokens for sequence in active)
        HERE.text = f"round {number}: accept"
        with self.clock.phase("accept"):
            verdict = self._read(self._verify_tokens(proposal, rows))
        with self.clock.phase("host"):
            record = self._commit(active, verdict, read)
        self.rounds.append(record)
        return record

    def verify(self, active: Sequence[SequenceState], drafts: Tensor) -> Tensor:
        """What the sampler reads after each sequence's last token and after every draft."""
        width = self.gamma + 1
        layout = PassLayout(
            page_tables=[sequence.table.pages for sequence in active],
            kv_tokens=[sequence.table.tokens + width for sequence in active],
            query_tokens=[width] * len(active),
            window_tokens=self.target.config.sliding_window_tokens,
        )
        last = [sequence.tokens[-1] for sequence in active]
        return self.passes.verify(layout, last, drafts, greedy=self.sampler.greedy)

    def _verify_tokens(self, proposal: Proposal, rows: Tensor) -> Tensor:
        """Rank 0's verdict (B, γ + 2) on every rank, and whether this one drafted otherwise.

        Ranks that draft must draft the same tokens, since each reads its part of the cache by its
        drafts: rank 0's travel with its verdict.
        """
        if self.group.size == 1:
            return self.sampler.verify_tokens(proposal.tokens, proposal.probabilities, rows)
        batch, width = rows.shape[:2]
        if self.group.rank == 0:
            verdict = self.sampler.verify_tokens(proposal.tokens, proposal.probabilities, rows)
            sent = torch.cat((verdict, proposal.tokens), dim=1)
        else:
            sent = proposal.tokens.new_empty((batch, 2 * width))
        sent = self.group.broadcast(sent)
        drafted = proposal.tokens if proposal.drafted is None else proposal.drafted
        differs = (sent[:, width + 1 :] != drafted).any(1, keepdim=True)
        return torch.cat((sent[:, : width + 1], differs.long()), dim=1)

    def _read(self, verdict: Tensor) -> list[list[int]]:
        """The one read of the device in a round.

        Raises
        ------
        EngineError
            If this rank drafted other tokens than rank 0: caches of the ranks no longer agree.
        """
        rows: list[list[int]] = verdict.tolist()
        if self.group.size == 1:
            return rows
        for index, row in enumerate(rows):
            if row.pop():
                raise EngineError(
                    f"rank {self.group.rank} drafted other tokens than rank 0 (round "
                    f"{len(self.rounds)}, sequence {index}): their sums differ; check the GPUs"
                )
        return rows

    def _commit(
        self, active: Sequence[SequenceState], verdict: list[list[int]], read: int
    ) -> RoundRecord:
        """Append what was accepted, roll the cache back to it, free what has finished."""
        kept = []
        for sequence, (accepted, *tokens) in zip(active, verdict, strict=True):
            before = len(sequence.tokens)
            sequence.append(tokens[: accepted + 1], self.eos_tokens)
            kept.append(len(sequence.tokens) - before)
            self.cache.truncate(sequence.table, len(sequence.tokens) - 1)
            if sequence.finish is not None:
                self._free(sequence)
        return RoundRecord(self.gamma, tuple(row[0] for row in verdict), tuple(kept), read)

    def _free(self, sequence: SequenceState) -> None:
        self.cache.release(sequence.table)
        self.drafter.release(sequence)

    def _check(self, prompts: Sequence[Sequence[int]], max_new_tokens: Sequence[int]) -> None:
        vocab = self.target.config.vocab
        for index, prompt in enumerate(prompts):
            if not prompt:
                raise InputError(f"prompt {index} is empty; give every sequence at least one token")
            if min(prompt) < 0 or max(prompt) >= vocab:
                raise InputError(f"prompt {index} has tokens outside the vocabulary of {vocab}")
        if not prompts or min(max_new_tokens) < 1:
            raise InputError("nothing to generate: give a prompt, and at least one new token each")
