"""`Recommendation`: the best plan, its evidence, binding limit, break-even points and capacity.

A plan is recommended only if its gain is clear, that is, if the whole 90 % interval is above 1, or
if only speculation meets the limits. Within the error of the fastest plan, one with fewer parts is
preferred: plain decoding, a look-up or a self-draft with StreamingLLM, one with SnapKV, a built-in
draft with weights, then a draft model.

If the engine profile names a version of a serving engine, only plans that this version runs are
recommended, and the plan that would be best without this restriction is stated as `EngineGap`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from html import escape

from perfmodel.display import html_table, number_range
from perfmodel.errors import NoFeasiblePlan
from perfmodel.planning.capacity import Capacity, Fleet, capacity, fleets
from perfmodel.planning.search import Candidate, Search, Unmeasured
from perfmodel.scenario import Scenario
from perfmodel.specs.engine_support import profile_version
from perfmodel.specs.workload import SLO, Prefill
from perfmodel.speculation import (
    BreakEven,
    Evidence,
    GammaSchedule,
    Interval,
    Rule,
    Sensitivity,
    break_even_alpha,
    break_even_batch,
    break_even_context,
    evidence,
    fastest_gamma,
    gamma_schedule,
    interval_probability,
    sensitivities,
    service_gain,
    speedup_interval,
)
from perfmodel.units import format_seconds


class Verdict(StrEnum):
    """The kind of answer."""

    SPECULATE = "speculate"
    NO_CLEAR_GAIN = "no clear gain"
    DO_NOT_SPECULATE = "do not speculate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """The limit that excludes the best plan, and its cost in the objective."""

    name: str
    cost_percent: float
    without: Candidate


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineGap:
    """The plan that would be best if the engine could run it, and the cost of not running it."""

    ideal: Candidate  # with the overheads of the same engine profile
    cost_percent: float  # in the objective: how much better the ideal plan is than the best one


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """The best plan and its explanation."""

    rule: Rule  # the objective and the limits
    verdict: Verdict
    best: Candidate
    plain: Candidate  # the best plan without speculation
    runners_up: tuple[Candidate, ...]  # the best of every other draft choice
    unmeasured: tuple[Unmeasured, ...]
    studied: Candidate | None  # the plan to which the following fields apply
    advantage: Interval | None  # over the best plan without speculation, at any TP
    interval: Interval | None  # of the gain over plain decoding at the same TP
    decode_interval: Interval | None  # of the speedup of decoding alone
    gain_probability: float | None
    alpha_to_break_even: float | None
    batch: BreakEven | None
    context: BreakEven | None
    schedule: GammaSchedule | None
    fastest_gamma: int | None  # that of the studied plan is the smallest within 1 % of its cost
    sensitivities: tuple[Sensitivity, ...]
    evidence: Evidence  # of the studied plan, or of plain decoding
    binding: Binding | None
    engine_gap: EngineGap | None  # None if the engine runs the best plan
    capacity: Capacity | None  # of the best plan, on one replica
    fleet: Fleet | None  # if a rate of requests was given
    plain_fleet: Fleet | None
    price_per_hour: float | None  # of one GPU

    def __repr__(self) -> str:
        return f"Recommendation({self.answer!r})"

    def _repr_html_(self) -> str:
        rows = [
            (c.label, c.scenario.tp, number_range(c.gain), format_seconds(c.tpot_s))
            for c in dict.fromkeys((self.best, self.plain, *self.runners_up))
        ]
        table = html_table(rows, header=("plan", "TP", "gain", "TPOT"))
        return f"<p>{escape(self.sentence)}</p>{table}"

    @property
    def objective(self) -> str:
        """What was maximised: "throughput" or "latency"."""
        return self.rule.objective

    @property
    def speculates(self) -> bool:
        """Whether the best plan speculates."""
        return self.best.scenario.plan.speculates

    @property
    def sentence(self) -> str:
        """The answer, a better plan that the engine cannot run, what prompts take, the evidence."""
        parts = (self.answer, self.in_principle, self.prefill, self.evidence.sentence)
        return " ".join(part for part in parts if part)

    @property
    def in_principle(self) -> str:
        """A better plan that the engine cannot run, and why; empty if there is none."""
        if self.engine_gap is None:
            return ""
        ideal = self.engine_gap.ideal
        return (
            f"In principle, {ideal.label}, TP {ideal.scenario.tp}, gives "
            f"{self.engine_gap.cost_percent:.1f} % more {self._objective_words} "
            f"({ideal.gain:.2f}x, {format_seconds(ideal.tpot_s)} per token), but "
            f"{ideal.scenario.engine_obstacle}."
        )

    @property
    def prefill(self) -> str:
        """What the prompts take, and the figure of decoding alone."""
        shown = self.studied or self.best
        alone = f"{format_seconds(shown.decode_tpot_s)} per token"
        if shown.scenario.plan.speculates:
            alone = f"{shown.decode_speedup:.2f}x, {alone}"
        if shown.scenario.workload.prefill is Prefill.DISAGGREGATED:
            return "Prompts are computed on other GPUs, which are not counted."
        return (
            f"Prompts take {shown.prefill_share:.0%} of the GPU time; decoding alone would be "
            f"{alone}."
        )

    def cost_per_million_tokens(self, candidate: Candidate) -> float | None:
        """Price of a million output tokens, in the currency of the price of a GPU hour."""
        if self.price_per_hour is None:
            return None
        return self.price_per_hour / 3600.0 / candidate.throughput_per_gpu * 1e6

    @property
    def answer(self) -> str:
        """The verdict and its figures in one sentence."""
        return f"{self._answer()}."

    def _answer(self) -> str:
        if self.speculates:
            why = self._where()
            if not self._is_clear():
                why = "without speculation, the limits are not met on as many GPUs"
            return f"{self.best.label}, TP {self.best.scenario.tp}: {self._gain()}; {why}"
        if self.studied is None or self.interval is None:
            return f"Do not speculate: {self._unknown()}"
        tp, plain_tp = self.studied.scenario.tp, self.best.scenario.tp
        draft = f"the best draft ({self.studied.label}, TP {tp}) gives {self._gain()}"
        if tp != plain_tp:
            draft += f", but plain decoding on TP {plain_tp} serves as much per GPU"
            return f"{self._start()}: {draft}"
        return f"{self._start()}: {draft}; {self._where()}"

    def _start(self) -> str:
        return "No clear gain" if self.verdict is Verdict.NO_CLEAR_GAIN else "Do not speculate"

    def _is_clear(self) -> bool:
        return self.interval is not None and self.interval.low > 1.0

    def _gain(self) -> str:
        shown = self.studied or self.best
        what = ("the " if self.objective == "latency" else "") + self._objective_words
        text = f"{shown.gain:.2f}x"
        if self.interval is not None:
            text += f" ({self.interval.low:.2f}-{self.interval.high:.2f})"
        return f"{text} {what}, {format_seconds(shown.tpot_s)} per token"

    @property
    def _objective_words(self) -> str:
        return "speed per token" if self.objective == "latency" else "throughput"

    def _unknown(self) -> str:
        if not self.unmeasured:
            version = profile_version(self.best.scenario.engine.name)
            runs = f" that {version.label} runs" if version else ""
            return f"no draft choice{runs} meets the limits"
        least = min(self.unmeasured, key=lambda u: u.alpha_to_break_even)
        if least.alpha_to_break_even > 1.0:
            return "no draft choice would pay at any acceptance"
        return (
            f"the acceptance of the draft choices is unknown; {least.candidate.label} would pay "
            f"from α={least.alpha_to_break_even:.2f}, so measure α and state it with --acceptance"
        )

    def _where(self) -> str:
        if self.batch is None or self.studied is None:
            return "nothing to compare"
        pays = f"at {self.studied.scenario.workload.prompt_tokens:,} tokens it clearly pays"
        first, last = self.batch.from_value, self.batch.until
        if first is None:
            return f"{pays} at no batch that fits"
        if first > self.batch.lowest:
            if first == last:
                return f"{pays} only at batch {first}"
            return f"{pays} from batch {first}" + ("" if last is None else f" to {last}")
        return f"{pays} at every batch that fits" if last is None else f"{pays} up to batch {last}"


def recommend(
    result: Search, *, rate: float | None = None, price_per_hour: float | None = None
) -> Recommendation:
    """Choose the best candidate of a search and explain the choice.

    Raises `NoFeasiblePlan` if no candidate meets the limits.

    Parameters
    ----------
    result : Search
        The candidates, their objective and the limits.
    rate : float, optional
        Requests per second, for which the fewest GPUs are found. [1/s]
    price_per_hour : float, optional
        Price of one GPU hour, in any currency.
    """
    ranked = result.ranked()
    if not ranked:
        raise NoFeasiblePlan(_nearest_miss(result))
    drafts, plain = _split(ranked)
    best = _choose(result, drafts, plain)
    studied = best if best.scenario.plan.speculates else (drafts[0] if drafts else None)
    reference = plain or _plain_of(result)
    sized = fleets(result, rate) if rate else []
    rule = Rule(objective=result.objective, limits=result.slo)
    at, advantage, interval = None, None, None
    if studied is not None:
        at = studied.scenario
        interval = gain_interval(studied, result.objective)
        advantage = _advantage(result, studied, reference)
    return Recommendation(
        rule=rule,
        verdict=_verdict(best, advantage),
        best=best,
        plain=reference,
        runners_up=_one_per_choice(ranked, skip=best),
        unmeasured=result.unmeasured,
        studied=studied,
        advantage=advantage,
        interval=interval,
        decode_interval=speedup_interval(at) if at else None,
        gain_probability=interval_probability(interval, at) if interval and at else None,
        alpha_to_break_even=break_even_alpha(at, objective=result.objective) if at else None,
        batch=break_even_batch(at, rule) if at else None,
        context=break_even_context(at, rule) if at else None,
        schedule=gamma_schedule(at, rule) if at else None,
        fastest_gamma=fastest_gamma(at, rule) if at else None,
        sensitivities=tuple(sensitivities(at, _gain_of(result))) if at else (),
        evidence=evidence(at or best.scenario),
        binding=_binding(result, ranked[0]),
        engine_gap=_engine_gap(result, best),
        capacity=capacity(best, result.slo),
        fleet=sized[0] if sized else None,
        plain_fleet=next((f for f in sized if f.capacity.candidate.parts == 0), None),
        price_per_hour=price_per_hour,
    )


def _gain_of(result: Search) -> Callable[[Scenario], float]:
    return lambda scenario: float(service_gain(scenario, objective=result.objective).value)


def gain_interval(candidate: Candidate, objective: str) -> Interval:
    """The gain of a candidate over plain decoding at the same TP, with its 90 % interval."""
    gain = service_gain(candidate.scenario, objective=objective)
    return Interval(low=float(gain.low), value=float(gain.value), high=float(gain.high))


def _advantage(result: Search, candidate: Candidate, plain: Candidate) -> Interval:
    """The gain over a plain plan at any TP; its relative error is that of the gain at one TP."""
    interval = gain_interval(candidate, result.objective)
    ratio = result.cost(plain) / result.cost(candidate)
    low, high = ratio * interval.low / interval.value, ratio * interval.high / interval.value
    return Interval(low=low, value=ratio, high=high)


def _split(ranked: list[Candidate]) -> tuple[list[Candidate], Candidate | None]:
    """The plans that speculate, and the best one that does not."""
    drafts = [c for c in ranked if c.scenario.plan.speculates]
    return drafts, next((c for c in ranked if not c.scenario.plan.speculates), None)


def _engine_gap(result: Search, best: Candidate) -> EngineGap | None:
    """The gap between the best plan and the one chosen if the engine could run all plans."""
    if not result.not_runnable:
        return None
    every = replace(result, candidates=result.candidates + result.not_runnable)
    ideal = _choose(every, *_split(every.ranked()))
    if result.cost(ideal) >= result.cost(best):
        return None
    cost = 100.0 * (result.cost(best) / result.cost(ideal) - 1.0)
    return EngineGap(ideal=ideal, cost_percent=cost)


def _choose(result: Search, drafts: list[Candidate], plain: Candidate | None) -> Candidate:
    """The fastest plan, or one with fewer parts that is as fast within the error."""
    if not drafts:
        assert plain is not None
        return plain
    fastest = drafts[0]
    if plain is not None and _advantage(result, fastest, plain).low <= 1.0:
        return plain
    interval = gain_interval(fastest, result.objective)
    slowest = result.cost(fastest) * interval.value / interval.low
    best: dict[int, Candidate] = {}
    for candidate in drafts:
        best.setdefault(candidate.parts, candidate)
    for _, candidate in sorted(best.items()):
        pays = plain is None or _advantage(result, candidate, plain).low > 1.0
        if result.cost(candidate) <= slowest and pays:
            return candidate
    return fastest


def _verdict(best: Candidate, advantage: Interval | None) -> Verdict:
    if best.scenario.plan.speculates:
        return Verdict.SPECULATE
    if advantage is not None and advantage.value > 1.0:
        return Verdict.NO_CLEAR_GAIN
    return Verdict.DO_NOT_SPECULATE


def _plain_of(result: Search) -> Candidate:
    return min((c for c in result.candidates if not c.scenario.plan.speculates), key=result.cost)


def _one_per_choice(ranked: list[Candidate], *, skip: Candidate) -> tuple[Candidate, ...]:
    """The best candidate of each draft choice other than that of `skip`."""

    def choice(candidate: Candidate) -> tuple[str, str]:
        plan = candidate.scenario.plan
        return (plan.draft, plan.policy) if plan.speculates else ("none", "full")

    best: dict[tuple[str, str], Candidate] = {}
    for candidate in ranked:
        if choice(candidate) != choice(skip):
            best.setdefault(choice(candidate), candidate)
    return tuple(best.values())


def _binding(result: Search, best: Candidate) -> Binding | None:
    """The limit whose removal would improve the best cost the most."""
    slo, options = result.slo, []
    relaxed = {
        "ttft": replace(slo, ttft_s=None),
        "tpot": replace(slo, tpot_s=None),
        "memory": replace(slo, memory_fraction=float("inf")),
    }
    for name, limits in relaxed.items():
        without = _ranked_without(result, limits, ignore_memory=name == "memory")
        if without and result.cost(without[0]) < result.cost(best):
            cost = 100.0 * (result.cost(best) / result.cost(without[0]) - 1.0)
            options.append(Binding(name=name, cost_percent=cost, without=without[0]))
    return max(options, key=lambda b: b.cost_percent, default=None)


def _ranked_without(result: Search, limits: SLO, *, ignore_memory: bool) -> list[Candidate]:
    def allowed(candidate: Candidate) -> bool:
        broken = set(candidate.violation(limits))
        return not broken or (ignore_memory and broken == {"memory"})

    return sorted(filter(allowed, result.candidates), key=result.cost)


def _nearest_miss(result: Search) -> str:
    """One line on the plan that comes closest and the limits that it exceeds."""
    nearest = min(result.candidates, key=lambda c: max(c.violation(result.slo).values()))
    broken = nearest.violation(result.slo)
    value = {
        "memory": f"memory {nearest.memory_fraction:.0%} of the GPU",
        "tpot": f"tpot {format_seconds(nearest.tpot_s)}",
        "ttft": f"ttft {format_seconds(nearest.ttft_s)}",
    }
    misses = ", ".join(f"{value[name]} ({ratio:.2f}x the limit)" for name, ratio in broken.items())
    work = nearest.scenario.workload
    sized = [capacity(c, result.slo) for c in result.candidates if c.parts == 0]
    most = max((c for c in sized if c), key=lambda c: c.concurrency, default=None)
    plain = f"No speculation, TP {most.candidate.scenario.tp}" if most else ""
    fewer = f"; {plain}, meets them at up to {most.concurrency} requests" if most else ""
    ideal = ""
    for other in replace(result, candidates=result.not_runnable).ranked()[:1]:
        scenario = other.scenario
        ideal = f"; in principle, {other.label}, TP {scenario.tp}, meets them, but "
        ideal += f"{scenario.engine_obstacle}"
    return (
        f"no plan meets the limits at batch {work.batch} and {work.prompt_tokens:,} tokens; the "
        f"closest is {nearest.label} at tp={nearest.scenario.tp}: {misses}{fewer}{ideal}"
    )
