"""`Recommendation`: the best plan, its binding limit, break-even points and sensitivities."""

from __future__ import annotations

from dataclasses import dataclass, replace
from html import escape

from perfmodel.display import html_table, number_range
from perfmodel.errors import NoFeasiblePlan
from perfmodel.planning.search import Candidate, Search, Unmeasured
from perfmodel.specs.workload import SLO
from perfmodel.speculation import (
    BreakEven,
    GammaSchedule,
    Interval,
    Sensitivity,
    break_even_batch,
    break_even_context,
    gamma_schedule,
    probability_of_gain,
    sensitivities,
    speedup_interval,
)
from perfmodel.units import format_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """The limit that excludes the best plan, and its cost in the objective."""

    name: str
    cost_percent: float
    without: Candidate


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """The best plan and its explanation."""

    objective: str
    best: Candidate
    plain: Candidate  # the best plan without speculation
    runners_up: tuple[Candidate, ...]  # the best of every other draft choice
    unmeasured: tuple[Unmeasured, ...]
    interval: Interval | None
    gain_probability: float | None
    binding: Binding | None
    studied: Candidate | None  # the plan to which interval, break-even points and schedule apply
    batch: BreakEven | None
    context: BreakEven | None
    schedule: GammaSchedule | None
    sensitivities: tuple[Sensitivity, ...]

    def __repr__(self) -> str:
        return f"Recommendation({self.sentence!r})"

    def _repr_html_(self) -> str:
        rows = [
            (c.label, c.scenario.tp, number_range(c.speedup), format_seconds(c.tpot_s))
            for c in dict.fromkeys((self.best, self.plain, *self.runners_up))
        ]
        table = html_table(rows, header=("plan", "TP", "speedup", "TPOT"))
        return f"<p>{escape(self.sentence)}</p>{table}"

    @property
    def speculates(self) -> bool:
        """Whether the best plan speculates."""
        return self.best.scenario.plan.speculates

    @property
    def sentence(self) -> str:
        """The answer in one sentence."""
        if self.speculates:
            tp = self.best.scenario.tp
            return f"{self.best.label}, TP {tp}: {self._gain()}; {self._where()}."
        if self.studied is None:
            return f"Do not speculate: {self._unknown()}."
        draft = f"the best draft ({self.studied.label}) gives {self.studied.speedup:.2f}x"
        if self.studied.speedup > 1.0:
            plain, other = self.best.scenario.tp, self.studied.scenario.tp
            return (
                f"Do not speculate: {draft} on TP {other}, "
                f"but plain decoding on TP {plain} serves more per GPU."
            )
        return f"Do not speculate: {draft}; {self._where()}."

    def _gain(self) -> str:
        text = f"{self.best.speedup:.2f}x"
        if self.interval is not None:
            text += f" ({self.interval.low:.2f}-{self.interval.high:.2f})"
        return f"{text}, {format_seconds(self.best.tpot_s)} per token"

    def _unknown(self) -> str:
        if not self.unmeasured:
            return "no draft choice meets the limits"
        least = min(self.unmeasured, key=lambda u: u.alpha_to_break_even)
        return (
            f"the acceptance of the draft choices is unknown; {least.candidate.label} would pay "
            f"from α={least.alpha_to_break_even:.2f}, so measure α and state it with --acceptance"
        )

    def _where(self) -> str:
        if self.batch is None or self.studied is None:
            return "nothing to compare"
        pays = f"at {self.studied.scenario.workload.prompt_tokens:,} tokens it pays"
        first, last = self.batch.from_value, self.batch.until
        if first is None:
            return f"{pays} at no batch that fits"
        if first > self.batch.lowest:
            return f"{pays} from batch {first}" + ("" if last is None else f" to {last}")
        return f"{pays} at every batch that fits" if last is None else f"{pays} up to batch {last}"


def recommend(result: Search) -> Recommendation:
    """Choose the best candidate of a search and explain the choice.

    Raises `NoFeasiblePlan` if no candidate meets the limits.
    """
    ranked = result.ranked()
    if not ranked:
        raise NoFeasiblePlan(_nearest_miss(result))
    best = ranked[0]
    plain = [c for c in ranked if not c.scenario.plan.speculates]
    drafts = [c for c in ranked if c.scenario.plan.speculates]
    studied = best if best.scenario.plan.speculates else (drafts[0] if drafts else None)
    return Recommendation(
        objective=result.objective,
        best=best,
        plain=plain[0] if plain else _plain_of(result),
        runners_up=_one_per_choice(ranked[1:], skip=best),
        unmeasured=result.unmeasured,
        interval=speedup_interval(studied.scenario) if studied else None,
        gain_probability=probability_of_gain(studied.scenario) if studied else None,
        binding=_binding(result, best),
        studied=studied,
        batch=break_even_batch(studied.scenario) if studied else None,
        context=break_even_context(studied.scenario) if studied else None,
        schedule=gamma_schedule(studied.scenario) if studied else None,
        sensitivities=tuple(sensitivities(studied.scenario)) if studied else (),
    )


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
    """The limit whose removal would improve the objective the most."""
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
    return (
        f"no plan meets the limits at batch {work.batch} and {work.prompt_tokens:,} tokens; the "
        f"closest is {nearest.label} at tp={nearest.scenario.tp}: {misses}"
    )
