"""`Recommendation`: the best plan with its evidence, limits and gaps, and the answer in words."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from html import escape

from perfmodel.display import html_table, least_alpha_text, number_range
from perfmodel.planning.candidate import Candidate
from perfmodel.planning.capacity import Capacity, Fleet, fleet_of
from perfmodel.planning.caveats import caveats
from perfmodel.planning.search import Unmeasured
from perfmodel.scenario_notes import length_excess
from perfmodel.specs.engine_support import EngineVersion
from perfmodel.specs.labels import Origin
from perfmodel.specs.workload import Prefill
from perfmodel.speculation import (
    BreakEven,
    Evidence,
    GammaSchedule,
    Interval,
    Rule,
    Sensitivity,
    acceptance_is_weak,
)
from perfmodel.units import format_seconds

DECIDED_ALPHA = 0.005  # α to break even below which no measurement of α changes the answer
_WORDS = {"latency": "speed per token", "throughput": "throughput"}


def _between(interval: Interval) -> str:
    low, high = (format_seconds(end) for end in (interval.low, interval.high))
    return f"{format_seconds(interval.value)}, 90 % interval {low} to {high}"


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
    obstacle: str  # why the engine cannot run it
    cost_percent: float  # in the objective: how much better the ideal plan is than the best one


@dataclass(frozen=True, slots=True, kw_only=True)
class Faster:
    """The plan with the best prediction, if another one is recommended."""

    candidate: Candidate
    lead: Interval  # its gain over the recommended plan
    advantage: Interval  # over the best plan without speculation
    alpha_to_break_even: float

    @property
    def measure(self) -> str:
        """What to measure to decide; empty if α is well known, or if any α breaks even."""
        scenario, least = self.candidate.scenario, self.alpha_to_break_even
        if least < DECIDED_ALPHA or not acceptance_is_weak(scenario):
            return ""
        given, curve = scenario.acceptance, scenario.curve
        origin = given.origin if given else curve.origin if curve else None
        what = "measure its acceptance to decide"
        if origin in (Origin.MEASURED, Origin.FITTED):
            what = "its acceptance was measured on other prompts, so measure it on yours to decide"
        return f"; {what} (at γ={scenario.plan.gamma}, it breaks even at α={least:.2f})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """The best plan and its explanation."""

    rule: Rule  # the objective and the limits
    saturated_verdict: Verdict  # of a service at full load, to which all plans below apply
    saturated: Candidate  # the best plan there
    for_rate: Candidate | None  # what a replica of the fleet runs, if a rate of requests was given
    plain: Candidate  # the best plan without speculation
    plain_meets_limits: bool
    faster: Faster | None
    runners_up: tuple[Candidate, ...]  # the best of every other draft choice
    unmeasured: tuple[Unmeasured, ...]
    beyond_limits: Candidate | None  # the nearest miss, if no draft with known α meets the limits
    drafts: tuple[str, ...]  # that were searched
    not_run: tuple[str, ...]  # why the engine does not run some of them
    tpot: Interval  # of the best plan's service at full load
    plain_tpot: Interval  # without speculation on as many GPUs
    studied: Candidate | None  # the plan to which the following fields apply
    advantage: Interval | None  # over the best plan without speculation, at any TP
    interval: Interval | None  # of the gain over plain decoding at the same TP
    decode_interval: Interval | None  # of the speedup of decoding alone
    gain_probability: float | None
    alpha_to_break_even: float | None
    batch: BreakEven | None
    context: BreakEven | None
    schedule: GammaSchedule | None
    fastest_gamma: int | None
    plateau_gamma: int | None  # the smallest within 1 % of its cost; the plan's may be smaller
    sensitivities: tuple[Sensitivity, ...]
    evidence: Evidence  # of the studied plan, or of plain decoding
    binding: Binding | None
    runs_on: EngineVersion | None  # what runs the best plan, if the search was restricted to it
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
            for c in dict.fromkeys((self.saturated, self.plain, *self.runners_up))
        ]
        table = html_table(rows, header=("plan", "TP", "gain", "TPOT"))
        return f"<p>{escape(self.sentence)}</p>{table}"

    @property
    def objective(self) -> str:
        """What was maximised: "throughput" or "latency"."""
        return self.rule.objective

    @property
    def best(self) -> Candidate:
        """The plan to deploy: for the rate if one was given, otherwise for a full load."""
        return self.for_rate or self.saturated

    @property
    def verdict(self) -> Verdict:
        """The kind of answer, for the same."""
        if self.for_rate is None or self.saturated_verdict is Verdict.DO_NOT_SPECULATE:
            return Verdict.SPECULATE if self.best.parts else self.saturated_verdict
        return Verdict.SPECULATE if self.for_rate.parts else Verdict.NO_CLEAR_GAIN

    @property
    def speculates(self) -> bool:
        """Whether the best plan speculates."""
        return self.best.scenario.plan.speculates

    @property
    def sentences(self) -> tuple[str, ...]:
        """The answer, limits that it may miss, a better plan in principle, prompts, evidence."""
        limits = (self.length_limit, self.tpot_limit)
        texts = (self.answer, *limits, self.in_principle, self.prefill, self.evidence.sentence)
        return tuple(filter(None, texts))

    @property
    def sentence(self) -> str:
        """All `sentences`."""
        return " ".join(self.sentences)

    @property
    def length_limit(self) -> str:
        """That requests are longer than the target supports; empty if they are not."""
        excess = length_excess(self.best.scenario)
        return excess and f"Requests of {excess}, so `export` refuses them for serving engines."

    @property
    def tpot_limit(self) -> str:
        """That the plan, or plain decoding instead, is within the error of a limit on TPOT."""
        limit, plain, clauses = self.rule.limits.tpot_s, self.plain_tpot, []
        if limit is None:
            return ""
        if self.tpot.high > limit:
            clauses.append(f"the plan may miss it ({_between(self.tpot)})")
        if self.saturated.parts and not self.is_clear and plain.low <= limit < plain.value:
            clauses.append(f"plain decoding may meet it ({_between(plain)})")
        near = f"The limit of {format_seconds(limit)} per token is near: {', and '.join(clauses)}."
        return near if clauses else ""

    @property
    def in_principle(self) -> str:
        """A better plan that the engine cannot run, and why; empty if there is none."""
        if self.engine_gap is None:
            return ""
        ideal = self.engine_gap.ideal
        return (
            f"In principle, {ideal.label}, TP {ideal.scenario.tp}, gives "
            f"{self.engine_gap.cost_percent:.1f} % more {_WORDS[self.objective]} "
            f"({ideal.gain:.2f}x, {format_seconds(ideal.tpot_s)} per token), but "
            f"{self.engine_gap.obstacle}."
        )

    @property
    def why_not_fastest(self) -> str:
        """Why the plan with the best prediction is not recommended; empty if it is."""
        if self.faster is None:
            return ""
        candidate, lead = self.faster.candidate, self.faster.lead
        low, value, high = (f"{100.0 * (r - 1.0):.1f}" for r in (lead.low, lead.value, lead.high))
        start = f"{candidate.label}, TP {candidate.scenario.tp}, by {value} % ({low} to {high} %)"
        over_plain = self.faster.advantage
        what = "comes with the target's checkpoint" if self.saturated.ships_draft else "is simpler"
        reason = f"which is within the error, and {self.saturated.label} {what}"
        if over_plain.low <= 1.0:
            ends = f"{over_plain.low:.2f}-{over_plain.high:.2f}x"
            reason = f"but its gain over plain decoding is not clear ({ends})"
        return f"{start}, {reason}{self.faster.measure}"

    @property
    def notes(self) -> tuple[str, ...]:
        """Caveats of the best plan, of the search, and of an engine that was not measured."""
        return caveats(
            self.saturated,
            studied=self.studied,
            batch=self.batch,
            limits=self.rule.limits,
            version=self.runs_on,
            drafts=self.drafts,
        )

    @property
    def prefill(self) -> str:
        """What the prompts take, and the figure of decoding alone."""
        shown = self.studied or self.saturated
        if shown.scenario.workload.prefill is Prefill.DISAGGREGATED:
            return "Prompts are computed on other GPUs, which are not counted."
        speedup = f"{shown.decode_speedup:.2f}x, " if shown.scenario.plan.speculates else ""
        return (
            f"Prompts take {shown.prefill_share:.0%} of the GPU time; decoding alone would be "
            f"{speedup}{format_seconds(shown.decode_tpot_s)} per token."
        )

    def cost_per_million_tokens(self, candidate: Candidate) -> float | None:
        """Price of a million output tokens, in the currency of the price of a GPU hour.

        With a rate, that of the fewest GPUs that serve it with this plan, or None if it misses the
        limits; otherwise, that of a saturated service. None without a price.
        """
        if self.price_per_hour is None:
            return None
        if self.fleet is not None:
            sized = next(
                (f for f in (self.fleet, self.plain_fleet) if f and f.runs(candidate.scenario)),
                fleet_of(candidate, self.rule.limits, self.fleet.rate, self.fleet.most_requests),
            )
            return None if sized is None else sized.cost_per_million_tokens(self.price_per_hour)
        return self.price_per_hour / 3600.0 / candidate.throughput_per_gpu * 1e6

    @property
    def answer(self) -> str:
        """The verdict and its figures in one sentence, after the fleet if a rate was given."""
        at_rate = "" if self.fleet is None else f"{self.fleet.sentence} At full load: "
        return f"{at_rate}{self._answer()}."

    def _answer(self) -> str:
        if self.saturated.parts:
            why = self._where()
            if not self.is_clear:
                why = "without speculation, the limits are not met on the same number of GPUs"
            elif not self.plain_meets_limits:
                why += "; no plan without speculation meets the limits"
            return f"{self.saturated.label}, TP {self.saturated.scenario.tp}: {self._gain()}; {why}"
        if self.studied is None or self.interval is None:
            return f"Do not speculate: {self._unknown()}"
        tp, plain_tp = self.studied.scenario.tp, self.saturated.scenario.tp
        share = 1.0 if self.advantage is None else self.advantage.value  # of plain decoding
        loses = self.saturated_verdict is Verdict.DO_NOT_SPECULATE
        is_best = self.faster is None or self.faster.candidate is self.studied
        start = "Do not speculate" if loses else "No clear gain"
        start += f": the {'best' if is_best else 'bundled'} draft ({self.studied.label}, TP {tp})"
        if tp == plain_tp:
            what = f"costs {100.0 * (1.0 - share):.2g} %:" if loses else "gives"
            return f"{start} {what} {self._gain()}; {self._where()}"
        other = f"{100.0 * (1.0 / share - 1.0):.2g} % faster" if loses else "as fast"
        plain = f"plain decoding with TP {plain_tp} is {other} per GPU"
        return f"{start} gives {self._gain()}, but {plain}"

    @property
    def is_clear(self) -> bool:
        """Whether the whole interval of the gain is above 1."""
        return self.interval is not None and self.interval.low > 1.0

    def _gain(self) -> str:
        shown = self.studied or self.saturated
        what = ("the " if self.objective == "latency" else "") + _WORDS[self.objective]
        i = self.interval
        text = f"{shown.gain:.2f}x" + (f" ({i.low:.2f}-{i.high:.2f})" if i else "")
        return f"{text} {what}{self._over_plain()}, {format_seconds(shown.tpot_s)} per token"

    def _over_plain(self) -> str:
        """The gain over plain decoding at the batch that is best for it, if that is another one."""
        if self.studied is None or (over := self.advantage) is None:
            return ""
        work, plain = self.studied.scenario.workload, self.plain.scenario
        if work.batch == plain.workload.batch:
            return ""
        return (
            f" at batch {work.batch:,}, {over.value:.2f}x ({over.low:.2f}-{over.high:.2f}) over "
            f"plain decoding with TP {plain.tp} at its batch of {plain.workload.batch:,}"
        )

    def _unknown(self) -> str:
        """Why no draft with a known acceptance was compared with plain decoding."""
        beyond = ""
        if self.beyond_limits is not None:
            beyond = f" ({self.beyond_limits.label} {self.beyond_limits.excess(self.rule.limits)})"
        if not self.unmeasured:
            return self._none_runs() or f"no draft choice meets the limits{beyond}"
        least = min(self.unmeasured, key=lambda u: u.alpha_to_break_even)
        of = "the acceptance of the draft choices"
        if beyond:
            of = f"no draft with a known acceptance meets the limits{beyond}; that of the others"
        if least.alpha_to_break_even > 1.0:
            return f"{of} is unknown, and none would pay at any acceptance"
        return (
            f"{of} is unknown; {least.candidate.label} would pay from "
            f"α={least_alpha_text(least.alpha_to_break_even)}, so measure α and state it with "
            f"--acceptance"
        )

    def _none_runs(self) -> str:
        """That the engine runs no draft choice, or none within the limits; empty if it runs one."""
        if self.runs_on is None or self.beyond_limits is not None:
            return ""
        why = f": {'; '.join(self.not_run)}" if self.not_run else " within the limits"
        return f"{self.runs_on.label} runs none of the draft choices{why}"

    def _where(self) -> str:
        if self.batch is None or self.studied is None:
            return "nothing to compare"
        work = self.studied.scenario.workload
        pays = f"at {work.prompt_tokens:,} tokens it clearly pays"
        if work.batch != self.plain.scenario.workload.batch:
            pays += " over plain decoding at the same batch"
        if not self.batch.clear:
            pays += " or alone meets the limits"
        text = f"{pays} {self.batch.where('batch', self.studied.scenario.plan.gamma)}"
        if self.batch.is_exception(work.batch):
            text += f"; batch {work.batch:,} itself is a narrow exception"
        return text
