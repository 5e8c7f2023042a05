"""Plan a run: the setups with which an engine is started, and the workloads to time in each.

An engine takes one to two minutes to start, and a point takes a few seconds. The plan therefore
starts few setups: plain decoding of each target, then one γ per method in turn, as many as the time
allows. Workloads (batch and context) are spread evenly over their logarithms. All setups of a
target time the same workloads, so that the speedup of a method is measured, not predicted. A share
of the workloads is held back from the fit, the same ones in all setups.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice

from calibration.engines.records import Point, Setup
from perfmodel import ConfigError, RoundEstimate, Scenario, catalog, estimate, parse_scenario
from perfmodel.specs import METHODS as DRAFT_METHODS
from perfmodel.specs import named_version

BATCH = (1, 128)
CONTEXT = (1024, 65_536)
GAMMAS = (1, 2, 3, 4, 5)
METHODS = ("draft", "eagle3", "ngram")
SHORT_ROUNDS, LONG_ROUNDS, REPEATS = 8, 56, 3
MOST_REPEATS, TIMED_S = 12, 1.5  # offline: more repeats until so many seconds of rounds were timed
START_S = 110.0  # one H200: 75 to 120 s
RUN_S, TOKEN_S = 0.056, 2.2e-6  # of a run, per prompt token: a fit to 482 points of one H200
LEAST_POINTS = 7  # per setup
MOST_WORKLOADS = 24
R2 = (0.7548776662466927, 0.5698402909980532)  # powers of 1/1.3247..., the plastic number
PAGE = 16  # tokens; prompts are whole pages, so that the prefix cache holds all but their last page
MODEL_ENGINE = "kernels"  # its predictions determine which points fit the time and the memory


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """The options of a plan; equal options give equal plans."""

    gpu: str
    targets: tuple[str, ...] = ("llama-3.1-8b",)
    methods: tuple[str, ...] = METHODS
    gammas: tuple[int, ...] = GAMMAS
    draft: str = ""  # a standalone draft; by default the smallest with the target's tokenizer
    tp: int = 1
    minutes: float = 15.0
    seed: int = 0
    hold_back: float = 0.3  # share of the workloads
    memory_share: float = 0.8
    batch: tuple[int, int] = BATCH
    context: tuple[int, int] = CONTEXT
    start_s: float = START_S
    served: bool = False  # use a running server: one method, one γ, no engine start
    exported_graphs: bool = False  # capture the CUDA graphs that `export` lists

    @property
    def start_cost_s(self) -> float:
        """Expected seconds of one engine start."""
        return 0.0 if self.served else self.start_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Points in the order in which they are timed, grouped by setup."""

    options: PlanOptions
    points: tuple[Point, ...]

    @property
    def setups(self) -> list[Setup]:
        """The setup of every engine start, in order."""
        return list(dict.fromkeys(point.setup for point in self.points))

    def of(self, setup: Setup) -> list[Point]:
        """The points of one setup."""
        return [point for point in self.points if point.setup == setup]

    @property
    def seconds(self) -> float:
        """Expected duration of the run."""
        starts = len(self.setups) * self.options.start_cost_s
        return starts + sum(point_seconds(point, self.options) for point in self.points)

    @property
    def left_out(self) -> list[str]:
        """The methods that are not timed with a target, and why; a line each."""
        if self.options.served:
            return []
        pairs = [(t, m) for t in self.options.targets for m in self.options.methods]
        reasons = {(t, m): _obstacle(self.options, t, m) for t, m in pairs}
        return [f"{m} of {t} is not timed: {why}" for (t, m), why in reasons.items() if why]

    def lines(self) -> list[str]:
        """The plan as text: one line per start, and the expected duration."""
        lines = []
        for setup in self.setups:
            points = self.of(setup)
            held_back = sum(point.held_back for point in points)
            spent = sum(point_seconds(point, self.options) for point in points)
            lines.append(
                f"{setup.label:36} {len(points):3} points, {held_back} held back, {spent:5.0f} s"
            )
        minutes = self.seconds / 60.0
        return [*lines, f"{len(self.points)} points in {len(lines)} starts, {minutes:.0f} minutes"]


def plan_run(options: PlanOptions) -> Plan:
    """The plan of a run that takes no longer than its options allow.

    Raises `ConfigError` if the time is too short for two starts, an option is out of range, or
    fewer than two workloads fit in memory.
    """
    _check(options)
    if options.served:
        return _plan(options, 1)
    least = len(options.targets) + 1
    most = max(least, int(60.0 * options.minutes / options.start_s))
    for starts in range(most, least, -1):
        plan = _plan(options, starts)
        if plan.seconds <= 60.0 * options.minutes:
            return plan
    return _plan(options, least)


def _plan(options: PlanOptions, starts: int) -> Plan:
    """The plan with a number of starts: `LEAST_POINTS` each, and more while time is left."""
    rng = random.Random(options.seed)
    setups = _setups(options, starts, rng)
    workloads = {
        target: _workloads(options, target, [s for s in setups if s.target == target])
        for target in options.targets
    }
    left = 60.0 * options.minutes - len(setups) * options.start_cost_s
    points: dict[Setup, list[Point]] = {setup: [] for setup in setups}
    for index in range(max(map(len, workloads.values()))):
        row = [
            Point(setup=setup, batch=batch, prompt_tokens=prompt, held_back=held_back)
            for setup in setups
            for batch, prompt, held_back in workloads[setup.target][index : index + 1]
        ]
        left -= sum(point_seconds(point, options) for point in row)
        if index >= LEAST_POINTS and left < 0:
            break
        for point in row:
            points[point.setup].append(point)
    ordered = [sorted(points[setup], key=lambda p: (-p.prompt_tokens, p.batch)) for setup in setups]
    return Plan(options=options, points=tuple(point for each in ordered for point in each))


def point_seconds(point: Point, options: PlanOptions) -> float:
    """Expected seconds to time a point: prefill, then a run per repeat, or two on a server."""
    _, prefill_s, round_s = _cost(point.setup, options.gpu, point.batch, point.prompt_tokens)
    enough = math.ceil(TIMED_S / (LONG_ROUNDS - SHORT_ROUNDS) / round_s)
    runs = min(max(REPEATS, enough), MOST_REPEATS)
    rounds = runs * LONG_ROUNDS
    if options.served:
        runs, rounds = 2 * REPEATS, REPEATS * (SHORT_ROUNDS + LONG_ROUNDS)
    run_s = RUN_S + TOKEN_S * point.batch * point.prompt_tokens
    return runs * run_s + point.batch * prefill_s + rounds * round_s


def point_scenario(setup: Setup, *, gpu: str, engine: str, batch: int, prompt: int) -> Scenario:
    """The scenario that predicts a setup under one workload."""
    draft = {"plain": "none", "draft": setup.draft}.get(setup.method, setup.method)
    values = {
        "target": setup.target,
        "draft": draft,
        "draft_policy": "full" if setup.method == "draft" else None,
        "gamma": setup.gamma or None,
        "gpu": gpu,
        "tp": setup.tp,
        "batch": batch,
        "prompt_tokens": prompt,
        "output_tokens": (LONG_ROUNDS + 1) * (setup.gamma + 1),
        "engine": engine,
    }
    return parse_scenario(values).scenario()


def default_draft(target: str) -> str:
    """The smallest catalog model with a target's tokenizer and less than a third of its size.

    Raises `ConfigError` if the catalog has none.
    """
    names = _draft_names(target)
    if not names:
        raise ConfigError(f"the catalog has no draft model for {target}; give one with --draft")
    return names[0]


def _draft_names(target: str) -> list[str]:
    """Catalog models that can draft for a target, smallest first."""
    fitting = catalog.draft_models(catalog.model(target))
    return [m.name for m in sorted(fitting, key=lambda m: m.parameters)]


def _check(options: PlanOptions) -> None:
    if not options.targets:
        raise ConfigError("no target is given; give at least one")
    known = ("draft", *DRAFT_METHODS, *(("plain",) if options.served else ()))
    unknown = [method for method in options.methods if method not in known]
    if unknown or not options.methods:
        problem = f"unknown method {unknown[0]!r}" if unknown else "no method is given"
        raise ConfigError(f"{problem}; use one or more of {', '.join(known)}")
    gammas = options.gammas if options.methods != ("plain",) else (0,)
    single = (options.targets, options.methods, gammas)
    if options.served and any(len(values) != 1 for values in single):
        raise ConfigError(
            "a running server has one target, method and gamma; give --target, --method and "
            "--gamma one value each (--method plain needs no --gamma)"
        )
    if not 0.0 <= options.hold_back < 1.0:
        raise ConfigError(f"hold_back={options.hold_back!r} must be at least 0 and less than 1")
    if any(gamma < 1 for gamma in options.gammas) or not options.gammas:
        raise ConfigError(f"gammas {list(options.gammas)} must be whole numbers of at least 1")
    for low, high in (options.batch, options.context):
        if not 1 <= low <= high:
            raise ConfigError(
                f"{low}:{high} is not a valid range; give LOW:HIGH with 1 <= LOW <= HIGH"
            )
    if not options.served and 60.0 * options.minutes < 2 * options.start_s * len(options.targets):
        raise ConfigError(
            f"{options.minutes:g} minutes are too short for two starts of {options.start_s:.0f} s "
            f"per target; increase --minutes"
        )


def _setups(options: PlanOptions, starts: int, rng: random.Random) -> list[Setup]:
    """Plain decoding of each target, then methods in turn."""
    if options.served:
        method, gamma = options.methods[0], options.gammas[0]
        return [_setup(options, options.targets[0], method, 0 if method == "plain" else gamma)]
    plain = [_setup(options, target, "plain", 0) for target in options.targets]
    chosen = plain + list(islice(_drafting(options, rng), max(1, starts - len(plain))))
    return sorted(chosen, key=lambda s: (options.targets.index(s.target), s.method != "plain"))


def _drafting(options: PlanOptions, rng: random.Random) -> Iterator[Setup]:
    """Every method, γ and target; methods alternate, each with its γ in spread order."""
    orders = {method: _spread_order(options.gammas, rng) for method in options.methods}
    for turn in range(len(set(options.gammas))):
        for method in options.methods:
            for target in options.targets:
                if _obstacle(options, target, method) is None:
                    yield _setup(options, target, method, orders[method][turn])


def _obstacle(options: PlanOptions, target: str, method: str) -> str | None:
    """Why a method is not timed with a target; None if it is."""
    spec, version = catalog.model(target), named_version("vllm")
    if method == "draft" and not (options.draft or _draft_names(target)):
        return "the catalog has no draft model for it; give one with --draft"
    if method == "mtp" and not spec.mtp_layers:
        return "it has no MTP layers"
    if not version.gives_states_to(method, spec):
        return f"{version.label} gives drafts no hidden states of {spec.family} models"
    return None


def _setup(options: PlanOptions, target: str, method: str, gamma: int) -> Setup:
    draft = (options.draft or default_draft(target)) if method == "draft" else ""
    return Setup(
        target=target,
        method=method,
        gamma=gamma,
        draft=draft,
        tp=options.tp,
        exported_graphs=options.exported_graphs,
    )


def _spread_order(gammas: Sequence[int], rng: random.Random) -> list[int]:
    """The γ, ordered so that each is as far as possible from the earlier ones."""
    left = list(dict.fromkeys(gammas))
    order = [left.pop(rng.randrange(len(left)))]
    while left:
        rng.shuffle(left)
        order.append(max(left, key=lambda g: min(abs(g - other) for other in order)))
        left.remove(order[-1])
    return order


def _workloads(
    options: PlanOptions, target: str, setups: Sequence[Setup]
) -> list[tuple[int, int, bool]]:
    """(batch, prompt, held back) of workloads that fit in memory under all setups of the target."""
    rng = random.Random(f"{options.seed} {target}")  # does not depend on the planned setups
    places = _spread(MOST_WORKLOADS, rng)
    batches = [_between(options.batch, x) for x, _ in places]
    prompts = [_between(options.context, y) for _, y in places]
    workloads: list[tuple[int, int]] = []
    for batch, prompt in zip(batches, prompts, strict=True):
        fitting = _shrunk(options, setups, batch, prompt)
        if fitting is not None and fitting not in workloads:
            workloads.append(fitting)
    if len(workloads) < 2:
        raise ConfigError(
            f"fewer than two workloads fit in {options.memory_share:.0%} of the memory of "
            f"{options.gpu} with {', '.join(s.label for s in setups)}; reduce --context or --batch"
        )
    held_back = _held_back(len(workloads), options.hold_back, rng)
    return [(batch, prompt, index in held_back) for index, (batch, prompt) in enumerate(workloads)]


def _spread(count: int, rng: random.Random) -> list[tuple[float, float]]:
    """A low-discrepancy sequence in the unit square (Roberts' R2)."""
    start = rng.random(), rng.random()
    return [((start[0] + i * R2[0]) % 1.0, (start[1] + i * R2[1]) % 1.0) for i in range(count)]


def _between(span: tuple[int, int], place: float) -> int:
    """The value at a place from 0 to 1 of a logarithmic range."""
    low, high = (math.log(edge) for edge in span)
    return round(math.exp(low + (high - low) * place))


def _shrunk(
    options: PlanOptions, setups: Sequence[Setup], batch: int, prompt: int
) -> tuple[int, int] | None:
    """The workload with the largest batch that fits every setup; None if no batch fits."""
    prompt = max(PAGE, prompt // PAGE * PAGE)
    while batch >= options.batch[0]:
        needed = max(_cost(setup, options.gpu, batch, prompt)[0] for setup in setups)
        if needed <= options.memory_share:
            return batch, prompt
        batch = int(batch * 0.8)
    return None


def _held_back(count: int, share: float, rng: random.Random) -> set[int]:
    """Indices of held-back workloads: one at random per block, never the first two."""
    if not share:
        return set()
    block = max(2, round(1.0 / share))
    chosen = [start + rng.randrange(block) for start in range(2, count, block)]
    return {index for index in chosen if index < count}


@cache
def _cost(setup: Setup, gpu: str, batch: int, prompt: int) -> tuple[float, float, float]:
    """Share of the memory, seconds to prefill one prompt, and seconds of a step or round."""
    point: RoundEstimate = estimate(
        point_scenario(setup, gpu=gpu, engine=MODEL_ENGINE, batch=batch, prompt=prompt)
    )
    return float(point.memory.fraction), float(point.prefill_s), float(point.round_s)
