"""`service`: throughput, TPOT and TTFT of a deployment, with the time that prompts take.

B = `batch` requests are in the system all the time: whenever one finishes, the next one starts (a
closed loop, or a saturated server with B slots). A request has p prompt tokens to compute, and
n = output_tokens - 1 tokens to decode after the first, which its prefill yields, in R rounds.

If prompts share the GPUs (chunked prefill), every pass decodes one round of the running sequences
and fills the token budget C with prompt tokens. In units of passes, this is a closed queue:
requests alternate between R passes of decoding and a prefill server. A prompt needs K = p / (C -
s·(γ+1)) passes, rounded up to k if no other prompt shares the last one; s sequences run meanwhile.
An arriving request waits for those in the queue and for half of the service in progress (mean-value
analysis for a fixed service time, Reiser 1979, with Schweitzer's estimate of the queue with one
request fewer), so with y = K·(B - 1) its W passes of waiting and prefill are

    W = (k + y - R + sqrt((R + k - y)^2 + 2·y·K)) / 2

and x = B / (R + W) requests finish per pass. With P, the time that a prompt adds to its passes:

    running per pass   d = x·R           decoding time   D = R·T_round(d) + s·P
    throughput   X = 1 / (P + T_round(d) / x)    TPOT = D / n    TTFT = B / X - D

If prefill is disaggregated, W = P = 0: the decoding pool alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from perfmodel._typing import Bools, Floats
from perfmodel.passes.forward import prefill_pass
from perfmodel.passes.rank import Rank
from perfmodel.scenario import Scenario
from perfmodel.specs.workload import Prefill
from perfmodel.speculation.drafting import draft_start_s
from perfmodel.speculation.host import mixed_pass_host_s
from perfmodel.speculation.round import RoundEstimate, estimate, round_seconds, target_rank


@dataclass(frozen=True, eq=False, slots=True)
class ServiceEstimate:
    """Steady state of a deployment; arrays broadcast to one shape.

    NaN where acceptance is unknown. `decode` is the prediction for decoding alone at the whole
    batch, with its memory and feasibility.
    """

    decode: RoundEstimate
    batch: Floats  # requests in the system
    output_tokens: int
    prefill_s: Floats  # machine time per request that its prompt takes
    round_s: Floats  # of a round of the sequences that run in a pass
    rounds: Floats  # R
    passes: Floats  # W
    beside: Floats  # s

    @property
    def decode_s(self) -> Floats:
        """From the first to the last token of a request. [s]"""
        return np.asarray(self.rounds * self.round_s + self.beside * self.prefill_s)

    @property
    def requests_per_s(self) -> Floats:
        """Finished requests per second."""
        passes = self.rounds + self.passes
        # With less than one running sequence, some passes have none.
        filled = np.minimum(self.batch * self.rounds / passes, 1.0)
        return np.asarray(1.0 / (self.prefill_s + passes / self.batch * filled * self.round_s))

    @property
    def tokens_per_s(self) -> Floats:
        """Output tokens per second of all requests."""
        return self.requests_per_s * self.output_tokens

    @property
    def prefill_share(self) -> Floats:
        """Share of the machine's time that prompts take. [1]"""
        return self.requests_per_s * self.prefill_s

    @property
    def tpot_s(self) -> Floats:
        """Mean time per output token after the first, of one request. [s]"""
        return self.decode_s / max(self.output_tokens - 1, 1)

    @property
    def running(self) -> Floats:
        """Sequences that decode, on average over time."""
        return self.requests_per_s * self.decode_s

    @property
    def ttft_s(self) -> Floats:
        """Mean time from the start of a request to its first token. [s]"""
        if self.decode.scenario.workload.prefill is Prefill.DISAGGREGATED:
            return self.decode.ttft_s
        return self.batch / self.requests_per_s - self.decode_s

    @property
    def feasible(self) -> Bools:
        """Whether the plan is valid and fits in memory with the whole batch at full length."""
        return self.decode.feasible


def service(
    scenario: Scenario,
    *,
    batch: ArrayLike | None = None,
    prompt_tokens: ArrayLike | None = None,
    gamma: ArrayLike | None = None,
    kv_budget_tokens: ArrayLike | None = None,
    alpha_shift: ArrayLike = 0.0,
) -> ServiceEstimate:
    """Predict the steady state of a scenario's deployment, at one point or over a grid.

    Parameters
    ----------
    scenario : Scenario
        Its workload has output length, prefix-cache hits and where prefill runs, and the defaults
        of the arguments below.
    batch, prompt_tokens, gamma, kv_budget_tokens : float or array, mutually broadcastable
        Requests in the system; prompt tokens; drafts per round; tokens that a draft may read. [1]
    alpha_shift : float or array
        Is added to α at every position, within 0 and 1.
    """
    plan, work = scenario.plan, scenario.workload
    whole = np.asarray(work.batch if batch is None else batch, float)
    prompt = np.asarray(work.prompt_tokens if prompt_tokens is None else prompt_tokens, float)
    drafts = np.asarray(plan.gamma if gamma is None else gamma, float)
    stated = plan.budget_at(prompt) if kv_budget_tokens is None else kv_budget_tokens
    budget = np.asarray(stated, float)
    decode = estimate(
        scenario, batch=whole, prompt_tokens=prompt, gamma=drafts, kv_budget_tokens=budget
    )
    drawn = mean_rounds(decode, work.output_tokens - 1, alpha_shift)
    known = ~np.isnan(drawn)
    rounds = np.where(known, drawn, float(work.output_tokens))
    computed = prompt - np.floor(work.prefix_hit_rate * prompt)
    shared = work.prefill is Prefill.SHARED
    zero = np.zeros(())
    queue = _Queue(zero, whole, zero, zero)
    if shared:
        queue = _queue(scenario, whole, drafts, rounds, computed)
    running = whole * rounds / (rounds + queue.passes)
    round_s = round_seconds(
        scenario,
        batch=np.maximum(running, 1.0),
        prompt_tokens=prompt + 0.5 * (work.output_tokens - 1),
        gamma=drafts,
        kv_budget_tokens=budget,
    )
    prompt_s: Floats = np.zeros(())
    if shared:
        rows = queue.beside * (drafts + 1.0)
        prompt_s = _prompt_s(scenario, prompt, computed, rows, queue)
        prompt_s = prompt_s + draft_start_s(scenario, prompt, budget, prompt - computed)
        prompt_s = prompt_s + _host_s(scenario, whole, computed, drafts, round_s, queue, prompt_s)
    return ServiceEstimate(
        decode=decode,
        batch=whole,
        output_tokens=work.output_tokens,
        prefill_s=prompt_s,
        round_s=round_s,
        rounds=np.where(known, rounds, np.nan),
        passes=queue.passes,
        beside=queue.beside,
    )


def mean_rounds(point: RoundEstimate, tokens: int, alpha_shift: ArrayLike = 0.0) -> Floats:
    """Mean rounds until a sequence has `tokens` more tokens; NaN where acceptance is unknown.

    Renewal theory: the last round overshoots by (E[t²] - E[t]) / 2 E[t] tokens on average, where t
    is the number of tokens of a round (Feller, vol. 2, section XI.3).
    """
    if tokens <= 0:
        return np.zeros(np.shape(point.tokens_per_round))
    given, shift = point.scenario.acceptance, np.asarray(alpha_shift, float)
    shape = np.broadcast_shapes(shift.shape, np.shape(point.alpha), np.shape(point.gamma))
    reach = np.ones(shape)
    mean, square = np.ones_like(reach), np.ones_like(reach)
    for position in range(int(np.max(point.gamma))):
        if given is None:
            rate = point.alpha
        else:
            rate = np.asarray(given.per_position[min(position, len(given.per_position) - 1)])
        reach = np.where(position < point.gamma, reach * np.clip(rate + shift, 0.0, 1.0), 0.0)
        mean, square = mean + reach, square + (2 * position + 3) * reach
    expected = (tokens + 0.5 * (square / mean - 1.0)) / mean
    return np.asarray(np.maximum(expected, np.ceil(tokens / (point.gamma + 1.0))))


@dataclass(frozen=True, slots=True)
class _Queue:
    passes: Floats  # W, waiting and prefill of one request
    beside: Floats  # s, sequences that run in a pass with a prompt
    rate: Floats  # x, requests per pass
    load: Floats  # share of the token budget of all passes that prompts use


def _fields_of(queue: _Queue) -> tuple[Floats, Floats, Floats, Floats]:
    return queue.passes, queue.beside, queue.rate, queue.load


def _queue(
    scenario: Scenario, batch: Floats, gamma: Floats, rounds: Floats, computed: Floats
) -> _Queue:
    """The prefill server; see the module docstring.

    The room for prompts depends on the sequences that run beside them. Where these could take more
    than half of a pass, their number is found by bisection, since more of them leave less room.
    """
    chunk = float(scenario.engine.prefill_chunk_tokens)

    def beside_of(beside: Floats) -> tuple[Floats, _Queue]:
        service = computed / np.maximum(chunk - beside * (gamma + 1.0), 1.0)
        alone = np.ceil(service)
        others = service * (batch - 1.0)
        root = np.sqrt((rounds + alone - others) ** 2 + 2.0 * others * service)
        passes = np.maximum(0.5 * (alone + others - rounds + root), 1.0)
        rate = batch / (rounds + passes)
        busy = np.minimum(rate * alone, 1.0)
        beside = np.maximum(batch - rate * passes / busy, 0.0)
        return beside, _Queue(passes, beside, rate, np.minimum(rate * service, 1.0))

    beside = np.asarray(batch - 1.0)
    for _ in range(3):
        beside, queue = beside_of(beside)
    is_full = (batch - 1.0) * (gamma + 1.0) > 0.5 * chunk
    if not np.any(is_full):
        return queue
    low, high = np.zeros(np.shape(beside)), np.broadcast_to(batch - 1.0, np.shape(beside))
    for _ in range(40):
        middle = 0.5 * (low + high)
        more = beside_of(middle)[0] > middle
        low, high = np.where(more, middle, low), np.where(more, high, middle)
    full = beside_of(high)[1]
    return _Queue(
        *(
            np.where(is_full, one, other)
            for one, other in zip(_fields_of(full), _fields_of(queue), strict=True)
        )
    )


# Nodes and weights of the Gauss-Hermite rule of three points, for a standard normal variable.
_NODES = (-math.sqrt(3.0), 0.0, math.sqrt(3.0))
MOST_SHARING = 12  # prompts that start in one pass
_WEIGHTS = (1.0 / 6.0, 2.0 / 3.0, 1.0 / 6.0)


def _prompt_s(
    scenario: Scenario, prompt: Floats, computed: Floats, rows: Floats, queue: _Queue
) -> Floats:
    """Seconds that the target's prefill of one prompt adds to passes that decode `rows` tokens.

    A pass costs less per token the more prompts share it. A prompt shares its last pass with those
    that wait, or that arrive in the same pass: a Poisson number with mean x, here by quadrature.
    """
    rank, chunk = target_rank(scenario), float(scenario.engine.prefill_chunk_tokens)
    room = np.maximum(chunk - rows, 1.0)
    before, whole = _dense_s(rank, rows, rows + room)
    full = np.floor(computed / room)
    last = computed - full * room
    shares = []
    for node in _NODES:
        sharing = np.maximum(1.0 + queue.rate + node * np.sqrt(queue.rate), 1.0)
        shares.append(np.minimum(last * np.where(full > 0.0, 1.0, sharing), room))
    alone: Floats = np.zeros(())
    steps = _dense_s(rank, *(rows + filled for filled in shares))
    for weight, filled, step in zip(_WEIGHTS, shares, steps, strict=True):
        alone = alone + weight * last / np.maximum(filled, 1.0) * (step - before)
    waits = np.where(full > 0.0, queue.load, 0.0)
    whole = whole - before
    dense_s = full * whole + (1.0 - waits) * alone + waits * last / room * whole
    read = _attention_s(rank, prompt) - _attention_s(rank, prompt - computed)
    return np.asarray(dense_s + read)


def _host_s(
    scenario: Scenario,
    batch: Floats,
    computed: Floats,
    gamma: Floats,
    round_s: Floats,
    queue: _Queue,
    prompt_s: Floats,
) -> Floats:
    """Seconds per request in which passes with prompts wait for the host (`mixed_pass_host_s`).

    Prompts that reach their last pass together share it; each of the B requests does so with
    probability x / B, independently. The passes before are full, and each holds one prompt.
    """
    share = np.maximum(queue.rate, 1e-9) / batch
    room = np.maximum(scenario.engine.prefill_chunk_tokens - queue.beside * (gamma + 1.0), 1.0)
    last = np.minimum(computed - np.floor(computed / room) * room, computed)
    waits: Floats = np.zeros(())
    chance = (1.0 - share) ** batch
    for count in range(1, MOST_SHARING + 1):
        ways = np.maximum(batch - count + 1.0, 0.0) / count
        chance = chance * ways * share / (1.0 - share)
        running = np.maximum(np.minimum(queue.beside, batch - count), 0.0)
        tokens = np.minimum(last * count, room)
        gpu_s = np.where(running > 0, round_s, 0.0) + prompt_s * tokens / np.maximum(computed, 1.0)
        host_s = mixed_pass_host_s(scenario, running, gamma, running * (gamma + 1.0) + tokens)
        waits = waits + chance * np.maximum(host_s - gpu_s, 0.0)
    waits = waits / (batch * share)
    full = np.floor(computed / room)
    gpu_s = round_s + prompt_s * room / np.maximum(computed, 1.0)
    chunk = scenario.engine.prefill_chunk_tokens
    host_s = mixed_pass_host_s(scenario, queue.beside, gamma, chunk)
    whole = np.maximum(host_s - gpu_s, 0.0)
    queued = np.where(full > 0.0, queue.load, 0.0)  # then the next prompt fills the last pass
    return np.asarray(full * whole + (1.0 - queued) * waits + queued * last / room * whole)


def _dense_s(rank: Rank, *tokens: Floats) -> Floats:
    """Seconds of passes over so many tokens without their attention, one row per argument."""
    rows = np.stack(np.broadcast_arrays(*tokens))
    step = prefill_pass(rank, batch=1, prompt_tokens=np.maximum(rows, 1.0))
    return np.asarray((step.total_s - step.group_s("attention")) * np.minimum(rows, 1.0))


def _attention_s(rank: Rank, tokens: Floats) -> Floats:
    """Seconds of the attention of one prompt."""
    if not np.any(tokens):
        return np.zeros(())
    step = prefill_pass(rank, batch=1, prompt_tokens=np.maximum(tokens, 1.0))
    return np.asarray(step.group_s("attention") * np.minimum(tokens, 1.0))
