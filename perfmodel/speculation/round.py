"""`RoundEstimate`: time, tokens, TPOT and speedup of a speculative round.

A round drafts γ tokens one by one, verifies them in one pass of the target, and yields Ω(γ, α)
tokens on average (MagicDec, arXiv 2408.11049, section 3):

    round time = γ·T_D + T_V + overhead        TPOT = round time / Ω        speedup = T_T / TPOT

with T_D the time of a draft step, T_V of verification, and T_T of a plain decoding step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from perfmodel.acceptance.tokens import (
    alpha_for_tokens_per_round,
    tokens_per_round,
    tokens_per_round_iid,
)
from perfmodel.display import html_table, number_range, one_line, seconds_range
from perfmodel.passes.forward import Rank, forward_pass, prefill_pass
from perfmodel.passes.memory import MemoryEstimate, memory_estimate
from perfmodel.passes.parts import StepTime
from perfmodel.scenario import Scenario
from perfmodel.specs.draft import DraftPolicy
from perfmodel.speculation.drafting import draft_cost
from perfmodel.speculation.host import host_wait_s, method_of

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False, slots=True)
class RoundEstimate:
    """A scenario's prediction at one point or over a grid; every array broadcasts to one shape.

    Seconds and tokens. `tokens_per_round` (with `tpot_s` and `speedup`) is NaN where acceptance
    is unknown; `break_even_alpha` is then the acceptance that speculation needs.
    """

    scenario: Scenario
    gamma: Array
    target_step: StepTime  # T_T
    verify: StepTime  # T_V
    draft_step: StepTime | None  # T_D
    overhead_s: Array  # per round; at γ = 0 that of a plain step
    plain_overhead_s: Array  # what the engine adds to T_T in plain decoding
    prefill_s: Array  # one request, target and draft, with any KV selection
    tokens_per_round: Array
    alpha: Array  # mean over positions; NaN where unknown
    memory: MemoryEstimate
    invalid: NDArray[np.bool_]  # a budget over the context: no such plan

    def __repr__(self) -> str:
        work, plan = self.scenario.workload, self.scenario.plan
        shape = np.shape(self.tpot_s)
        values = {
            "speedup": number_range(self.speedup),
            "tpot": seconds_range(self.tpot_s),
            "gamma": number_range(self.gamma, 0),
            "tokens_per_round": number_range(self.tokens_per_round),
            "draft": plan.draft,
            "target": self.scenario.target.name,
            "gpu": self.scenario.machine.gpu.name,
            "tp": self.scenario.tp,
            "batch": None if shape else work.batch,
            "prompt_tokens": None if shape else work.prompt_tokens,
            "shape": shape or None,
            "feasible": None if np.all(self.feasible) else self._feasible_text(),
        }
        return one_line("RoundEstimate", values)

    def _feasible_text(self) -> str:
        share = float(np.mean(self.feasible))
        return f"{share:.0%}" if share else "False"

    def _repr_html_(self) -> str:
        rows = [
            ("speedup", number_range(self.speedup)),
            ("time per token (TPOT)", seconds_range(self.tpot_s)),
            ("plain TPOT", seconds_range(self.plain_tpot_s)),
            ("tokens per round (Ω)", number_range(self.tokens_per_round)),
            ("draft steps (γ)", number_range(self.gamma, 0)),
            ("target step (T_T)", seconds_range(self.target_step.total_s)),
            ("verification (T_V)", seconds_range(self.verify.total_s)),
            ("draft step (T_D)", seconds_range(self.draft_step_s)),
            ("first token (TTFT)", seconds_range(self.ttft_s)),
            ("memory used", f"{number_range(100.0 * self.memory.fraction, 0)} %"),
        ]
        return html_table(rows)

    @property
    def draft_total_s(self) -> Array:
        """γ·T_D, the whole draft phase of a round. [s]"""
        return self.gamma * self.draft_step_s

    @property
    def draft_step_s(self) -> Array:
        """T_D, one draft step; 0 without a draft. [s]"""
        return np.zeros(()) if self.draft_step is None else self.draft_step.total_s

    @property
    def plain_tpot_s(self) -> Array:
        """T_T plus its overhead where the engine has one: TPOT of plain decoding. [s]"""
        return self.target_step.total_s + self.plain_overhead_s

    @property
    def round_s(self) -> Array:
        """γ·T_D + T_V + overhead; at γ = 0 the step of plain decoding. [s]"""
        speculative = self.draft_total_s + self.verify.total_s + self.overhead_s
        return np.where(self.gamma == 0, self.plain_tpot_s, speculative)

    @property
    def tpot_s(self) -> Array:
        """Time per output token of one sequence. [s]"""
        return self.round_s / self.tokens_per_round

    @property
    def speedup(self) -> Array:
        """TPOT of plain decoding over this TPOT. [1]"""
        return self.plain_tpot_s / self.tpot_s

    @property
    def ttft_s(self) -> Array:
        """One request's prefill on an idle machine, then its first step; without queueing. [s]"""
        return self.prefill_s + self.plain_tpot_s

    @property
    def break_even_tokens_per_round(self) -> Array:
        """Tokens per round at which speculation equals plain decoding. [1]"""
        return self.round_s / self.plain_tpot_s

    @property
    def break_even_alpha(self) -> Array:
        """The i.i.d. α at which the speedup is 1; NaN where no α reaches it."""
        return alpha_for_tokens_per_round(self.break_even_tokens_per_round, self.gamma)

    @property
    def feasible(self) -> NDArray[np.bool_]:
        """Whether the plan exists and the GPUs hold it."""
        return self.memory.fits & ~self.invalid


def estimate(
    scenario: Scenario,
    *,
    batch: ArrayLike | None = None,
    prompt_tokens: ArrayLike | None = None,
    gamma: ArrayLike | None = None,
    kv_budget_tokens: ArrayLike | None = None,
) -> RoundEstimate:
    """Predict a scenario, or a whole grid of it, in one broadcast call.

    Parameters
    ----------
    scenario : Scenario
        Machine, models, engine and the values of all that is not given below.
    batch, prompt_tokens, gamma, kv_budget_tokens : float or array, mutually broadcastable
        Sequences; prompt tokens; drafts per round; cached tokens a draft may read. [1]

    Returns
    -------
    RoundEstimate
        Step times, round time, tokens per round, memory and feasibility, of the broadcast shape.

    Notes
    -----
    Step times are taken at the prefix length: round time = γ·T_D + T_V + overhead, time per token
    = round time over Ω(γ, α) (MagicDec, arXiv 2408.11049, section 3). A plain step is T_T, with
    the overhead of a round of one pass where the engine's profile says that it pays it.
    """
    plan, work = scenario.plan, scenario.workload
    b = _array(batch, work.batch)
    prefix = _array(prompt_tokens, work.prompt_tokens)
    g = _array(gamma, plan.gamma)
    budget = _array(kv_budget_tokens, plan.kv_budget_tokens or 0)
    target = target_rank(scenario)
    draft = draft_cost(scenario, batch=b, prompt_tokens=prefix, gamma=g, kv_budget_tokens=budget)
    engine = scenario.engine
    each = engine.round_overhead_s + engine.round_overhead_per_sequence_s * b
    # A plain step fills the tables of its one pass, with no draft step to hide that behind.
    tables = each + engine.round_overhead_per_draft_s
    plain = tables if engine.plain_pays_overhead else np.zeros_like(b)
    step = forward_pass(target, batch=b, context_tokens=prefix)
    verify = forward_pass(target, batch=b, context_tokens=prefix, query_tokens=g + 1.0)
    round_overhead = each + engine.round_overhead_per_draft_s * g
    if engine.host:
        at = {"batch": b, "prompt_tokens": prefix}
        plain = plain + host_wait_s(
            scenario, **at, gamma=np.zeros(()), passes_s=step.total_s, method="plain"
        )
        passes = verify.total_s + (g * draft.step.total_s if draft else 0.0)
        round_overhead = round_overhead + host_wait_s(
            scenario, **at, gamma=g, passes_s=passes, method=method_of(scenario)
        )
    alpha, tokens = _acceptance(scenario, prefix, g, budget)
    return RoundEstimate(
        scenario=scenario,
        gamma=g,
        target_step=step,
        verify=verify,
        draft_step=draft.step if draft else None,
        overhead_s=np.where(g > 0, round_overhead, plain),
        plain_overhead_s=plain,
        prefill_s=prefill_pass(target, batch=1, prompt_tokens=prefix).total_s
        + (draft.start_s if draft else 0.0),
        tokens_per_round=tokens,
        alpha=alpha,
        memory=memory_estimate(
            scenario, batch=b, prompt_tokens=prefix, gamma=g, kv_budget_tokens=budget
        ),
        invalid=(budget > prefix) & (g > 0) & (plan.policy != "full"),
    )


def target_rank(scenario: Scenario) -> Rank:
    """The target's shard on one of its ranks."""
    return Rank(
        machine=scenario.machine,
        spec=scenario.target,
        engine=scenario.engine,
        curves=scenario.kernels,
        tp=scenario.tp,
        weight_dtype=scenario.weight_dtype,
        kv_dtype=scenario.kv_dtype,
    )


def without_speculation(scenario: Scenario) -> Scenario:
    """The same scenario with plain decoding."""
    plan = replace(
        scenario.plan,
        draft="none",
        gamma=0,
        policy=DraftPolicy.FULL,
        kv_budget_tokens=None,
        draft_tp=None,
    )
    return replace(scenario, plan=plan, draft=None, acceptance=None)


def _acceptance(
    scenario: Scenario, prefix: Array, gamma: Array, budget: Array
) -> tuple[Array, Array]:
    """Mean α and tokens per round: as given, else from the catalog's curve, else NaN."""
    plan, given = scenario.plan, scenario.acceptance
    if not scenario.plan.speculates and not np.any(gamma > 0):
        return np.full((), np.nan), np.ones(np.shape(gamma))
    if given is not None:
        return np.asarray(given.alpha), tokens_per_round(given, gamma)
    curve = scenario.curve
    if curve is None:
        return np.full((), np.nan), np.where(gamma == 0, 1.0, np.nan)
    read = prefix if plan.policy == "full" else budget
    alpha = curve.alpha(kv_budget_tokens=read, context_tokens=prefix)
    return alpha, tokens_per_round_iid(alpha, gamma)


def _array(value: ArrayLike | None, default: float) -> Array:
    return np.asarray(default if value is None else value, dtype=float)
