"""`RoundEstimate`: time, tokens, TPOT and speedup of a speculative round.

A round drafts γ tokens one by one and verifies them in one pass of the target. It yields Ω(γ, α)
tokens on average (MagicDec, arXiv 2408.11049, section 3):

    round time = γ·T_D + T_V + overhead        TPOT = round time / Ω        speedup = T_T / TPOT

T_D is the time of a draft step, T_V that of a verification, and T_T that of a plain decoding step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from perfmodel._typing import Bools, Floats
from perfmodel.acceptance.tokens import (
    alpha_for_tokens_per_round,
    tokens_per_round,
    tokens_per_round_iid,
)
from perfmodel.display import html_table, number_range, one_line, seconds_range
from perfmodel.passes.forward import forward_pass
from perfmodel.passes.memory import MemoryEstimate, memory_estimate
from perfmodel.passes.parts import StepTime
from perfmodel.passes.rank import Rank
from perfmodel.scenario import Scenario
from perfmodel.specs.draft import DraftPolicy
from perfmodel.specs.workload import fullest_group
from perfmodel.speculation.drafting import draft_step
from perfmodel.speculation.host import host_wait_s, method_of
from perfmodel.speculation.prompt import prompt_s


@dataclass(frozen=True, eq=False, slots=True)
class RoundEstimate:
    """The prediction for a scenario, at one point or over a grid; arrays broadcast to one shape.

    `tokens_per_round`, `tpot_s` and `speedup` are NaN where acceptance is unknown;
    `break_even_alpha` is the acceptance at which speculation would pay.
    """

    scenario: Scenario
    prompt_tokens: Floats
    kv_budget_tokens: Floats
    gamma: Floats
    target_step: StepTime  # T_T
    verify: StepTime  # T_V
    draft_step: StepTime | None  # T_D
    overhead_s: Floats  # per round; at γ = 0, per plain step
    plain_overhead_s: Floats  # time of a plain step beyond T_T
    tokens_per_round: Floats
    alpha: Floats  # mean over positions; NaN where unknown
    memory: MemoryEstimate
    invalid: Bools  # the KV budget exceeds the context

    def __repr__(self) -> str:
        work, plan = self.scenario.workload, self.scenario.plan
        shape, feasible = np.shape(self.tpot_s), float(np.mean(self.feasible))
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
            "feasible": None if feasible == 1.0 else f"{feasible:.0%}" if feasible else "False",
        }
        return one_line("RoundEstimate", values)

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
    def draft_total_s(self) -> Floats:
        """γ·T_D, the drafting time of a round. [s]"""
        return self.gamma * self.draft_step_s

    @property
    def draft_step_s(self) -> Floats:
        """T_D, the time of one draft step; 0 without a draft. [s]"""
        return np.zeros(()) if self.draft_step is None else self.draft_step.total_s

    @property
    def plain_tpot_s(self) -> Floats:
        """TPOT of plain decoding: T_T, or the host's work per step if that takes longer. [s]"""
        return self.target_step.total_s + self.plain_overhead_s

    @property
    def round_s(self) -> Floats:
        """γ·T_D + T_V + overhead; at γ = 0, the time of a plain decoding step. [s]"""
        speculative = self.draft_total_s + self.verify.total_s + self.overhead_s
        return np.where(self.gamma == 0, self.plain_tpot_s, speculative)

    @property
    def tpot_s(self) -> Floats:
        """Time per output token of a sequence. [s]"""
        return self.round_s / self.tokens_per_round

    @property
    def speedup(self) -> Floats:
        """TPOT of plain decoding over TPOT. [1]"""
        return self.plain_tpot_s / self.tpot_s

    @property
    def prefill_s(self) -> Floats:
        """The prompt of one request alone; target and draft, including any KV selection. [s]"""
        return prompt_s(self.scenario, self.prompt_tokens, self.kv_budget_tokens)

    @property
    def ttft_s(self) -> Floats:
        """Prefill of one request on an idle machine and its first step, without queueing. [s]"""
        return self.prefill_s + self.plain_tpot_s

    @property
    def break_even_tokens_per_round(self) -> Floats:
        """Tokens per round at which speculation is as fast as plain decoding. [1]"""
        return self.round_s / self.plain_tpot_s

    @property
    def break_even_alpha(self) -> Floats:
        """The i.i.d. α at which the speedup is 1; inf where no α reaches it."""
        return alpha_for_tokens_per_round(self.break_even_tokens_per_round, self.gamma)

    @property
    def feasible(self) -> Bools:
        """Whether the plan is valid and fits in memory."""
        return self.memory.fits & ~self.invalid


def estimate(
    scenario: Scenario,
    *,
    batch: ArrayLike | None = None,
    prompt_tokens: ArrayLike | None = None,
    gamma: ArrayLike | None = None,
    kv_budget_tokens: ArrayLike | None = None,
) -> RoundEstimate:
    """Predict a scenario at one point, or over a grid in one broadcast call.

    Parameters
    ----------
    scenario : Scenario
        Machine, models and engine, and the defaults of the arguments below.
    batch, prompt_tokens, gamma, kv_budget_tokens : float or array, mutually broadcastable
        Sequences; prompt tokens; drafts per round; cached tokens that a draft may read. [1]

    Returns
    -------
    RoundEstimate
        Step times, round time, tokens per round, memory and feasibility, with the broadcast shape.

    Notes
    -----
    Step times are those at a context of `prompt_tokens`; output tokens only count for memory.
    """
    plan, work = scenario.plan, scenario.workload
    b = _array(batch, work.batch)
    prompt = _array(prompt_tokens, work.prompt_tokens)
    g = _array(gamma, plan.gamma)
    if kv_budget_tokens is None and plan.kv_budget_share is not None:
        kv_budget_tokens = plan.budget_at(prompt)
    budget = _array(kv_budget_tokens, plan.kv_budget_tokens or 0)
    step, plain_overhead = _plain_step(scenario, b, prompt)
    verify, draft, overhead = _speculative_steps(scenario, b, prompt, g, budget)
    alpha, tokens = _acceptance(scenario, prompt, g, budget)
    return RoundEstimate(
        scenario=scenario,
        prompt_tokens=prompt,
        kv_budget_tokens=budget,
        gamma=g,
        target_step=step,
        verify=verify,
        draft_step=draft,
        overhead_s=np.where(g > 0, overhead, plain_overhead),
        plain_overhead_s=plain_overhead,
        tokens_per_round=tokens,
        alpha=alpha,
        memory=memory_estimate(
            scenario, batch=b, prompt_tokens=prompt, gamma=g, kv_budget_tokens=budget
        ),
        invalid=(budget > prompt) & (g > 0) & (plan.policy != DraftPolicy.FULL),
    )


def round_seconds(
    scenario: Scenario,
    *,
    batch: Floats,
    prompt_tokens: Floats,
    gamma: Floats,
    kv_budget_tokens: Floats,
) -> Floats:
    """`RoundEstimate.round_s` alone, without the passes that it does not need. [s]"""
    plain_s: Floats = np.zeros(())
    if not np.all(gamma > 0):
        step, overhead = _plain_step(scenario, batch, prompt_tokens)
        plain_s = step.total_s + overhead
    if not np.any(gamma > 0):
        return np.asarray(plain_s + 0.0 * gamma)
    verify, draft, overhead = _speculative_steps(
        scenario, batch, prompt_tokens, gamma, kv_budget_tokens
    )
    drafting = gamma * draft.total_s if draft else 0.0
    return np.where(gamma == 0, plain_s, drafting + verify.total_s + overhead)


def _plain_step(scenario: Scenario, batch: Floats, prompt: Floats) -> tuple[StepTime, Floats]:
    """T_T, and the time of a plain step beyond it."""
    engine = scenario.engine
    of_host = fullest_group(batch, scenario.dp)
    step = forward_pass(target_rank(scenario), batch=batch, context_tokens=prompt)
    host = engine.plain_host_work_s(scenario.tp, of_host) if engine.plain_runs_ahead else 0.0
    overhead = np.maximum(host - step.total_s, 0.0)
    if engine.host:
        overhead = overhead + host_wait_s(
            scenario, "plain", of_host, prompt, np.zeros(()), step.total_s
        )
    return step, overhead


def _speculative_steps(
    scenario: Scenario, batch: Floats, prompt: Floats, gamma: Floats, budget: Floats
) -> tuple[StepTime, StepTime | None, Floats]:
    """T_V, T_D, and the overhead of a round with drafts."""
    engine, plan = scenario.engine, scenario.plan
    draft = draft_step(
        scenario, batch=batch, prompt_tokens=prompt, gamma=gamma, kv_budget_tokens=budget
    )
    by_model = scenario.draft is not None and not plan.is_self
    fixed, per_sequence, per_draft = engine.round_overheads(scenario.tp, by_model=by_model)
    drafts, of_host = np.maximum(gamma, 1.0), fullest_group(batch, scenario.dp)
    overhead = fixed + per_sequence * of_host + per_draft * drafts
    if scenario.draft is None and not plan.is_self:  # the host looks drafts up between passes
        overhead = overhead + engine.plain_host_work_s(1, of_host)
    verify = forward_pass(
        target_rank(scenario), batch=batch, context_tokens=prompt, query_tokens=gamma + 1.0
    )
    if engine.host:
        passes = verify.total_s + (gamma * draft.total_s if draft else 0.0)
        method = method_of(scenario)
        overhead = overhead + host_wait_s(scenario, method, of_host, prompt, gamma, passes)
    return verify, draft, overhead


def target_rank(scenario: Scenario) -> Rank:
    """The target's shard on one rank."""
    return Rank.of_scenario(scenario, scenario.target, tp=scenario.tp, is_draft=False)


def without_speculation(scenario: Scenario) -> Scenario:
    """The same scenario with plain decoding."""
    plan = replace(
        scenario.plan,
        draft="none",
        gamma=0,
        policy=DraftPolicy.FULL,
        kv_budget_tokens=None,
        kv_budget_share=None,
        draft_tp=None,
    )
    return replace(scenario, plan=plan, draft=None, acceptance=None)


def _acceptance(
    scenario: Scenario, prompt: Floats, gamma: Floats, budget: Floats
) -> tuple[Floats, Floats]:
    """Mean α and tokens per round: as given, from the acceptance curve, or NaN."""
    plan, given = scenario.plan, scenario.acceptance
    if not plan.speculates and not np.any(gamma > 0):
        return np.full((), np.nan), np.ones(np.shape(gamma))
    if given is not None:
        return np.asarray(given.alpha), tokens_per_round(given, gamma)
    curve = scenario.curve
    if curve is None:
        return np.full((), np.nan), np.where(gamma == 0, 1.0, np.nan)
    read = prompt if plan.policy == DraftPolicy.FULL else budget
    alpha = curve.alpha(kv_budget_tokens=read, context_tokens=prompt)
    return alpha, tokens_per_round_iid(alpha, gamma)


def _array(value: ArrayLike | None, default: float) -> Floats:
    return np.asarray(default if value is None else value, dtype=float)
