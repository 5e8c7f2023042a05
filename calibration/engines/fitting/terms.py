"""The terms of an engine profile that measured points can determine, with their priors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from calibration.engines.records import Point, PointRecord
from perfmodel import EngineProfile, catalog
from perfmodel.specs import replays_full_graph

COMPUTE_TOKENS = 256  # tokens of a pass at which its GEMMs begin to depend on the clock
TARGET_LAUNCHES = ("eager_layer_s", "piecewise_layer_s")
COMMON_HOST = (*TARGET_LAUNCHES, "rank_step_s")  # not of a single method
LAUNCHES = ("draft_step_s", "draft_layer_s", *TARGET_LAUNCHES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One fitted number: mean and standard deviation of its prior, bounds, and starting value."""

    field: str  # of EngineProfile, or of the method's HostCosts
    method: str = ""
    prior: float
    width: float
    low: float = 0.0
    high: float
    start: float

    @property
    def is_host(self) -> bool:
        """Whether it is host time, which GPU time may hide."""
        return bool(self.method) or self.field in COMMON_HOST


def _factor(field: str) -> Term:
    return Term(field=field, prior=1.0, width=0.15, low=0.3, high=3.0, start=1.0)


def _host(field: str, method: str, width: float, start: float) -> Term:
    return Term(field=field, method=method, prior=0.0, width=width, high=20.0 * width, start=start)


# Time between the kernels of a layer: gaps in a graph, latencies of small kernels.
LAYER_OVERHEAD = Term(field="layer_overhead_s", prior=4e-6, width=4e-6, high=100e-6, start=4e-6)
# Share of the multiprocessors that reach the memory bandwidth.
TAIL = Term(field="attention_tail_share", prior=0.4, width=0.15, high=1.0, start=0.4)
# Small kernels between the draft steps: page tables, sampling, the attention's schedule.
DRAFT_GAP = Term(field="draft_step_overhead_s", prior=0.0, width=2e-4, high=4e-3, start=5e-5)
# Between a layer's kernels and each of its all-reduces, which are kernels of their own.
RANK_GAP = Term(field="sum_gap_s", prior=2e-6, width=2e-6, high=50e-6, start=2e-6)
# ln(host times over those of the fastest host), of the host of each file of records.
SLOWDOWN = Term(field="slowdown", prior=0.0, width=0.5, high=1.5, start=0.1)
# Share of the peak FLOP/s at clocks under load: mean and deviation of the runtime's 0.86 and 0.91.
SUSTAINED_CLOCK = Term(
    field="compute_factor", prior=0.885, width=0.035, low=0.5, high=1.0, start=0.9
)


def terms_of(points: Sequence[PointRecord], base: EngineProfile) -> list[Term]:
    """The terms that these points can determine."""
    terms = [_factor("linear_factor"), _factor("attention_factor"), TAIL, LAYER_OVERHEAD]
    if any(r.point.setup.gamma for r in points):
        terms.append(_factor("verify_attention_factor"))
    if any(r.point.setup.tp > 1 for r in points):
        terms.append(RANK_GAP)
    if {r.point.setup.tp > 1 for r in points} == {False, True}:
        terms.append(_host("rank_step_s", "", 1e-3, 1e-4))
    tokens = [r.point.batch * (r.point.setup.gamma + 1) for r in points]
    if max(tokens) >= COMPUTE_TOKENS:
        terms.append(SUSTAINED_CLOCK)
    if base.graph_tokens and max(tokens) > base.graph_tokens:
        terms.append(_host("eager_layer_s", "", 5e-4, 5e-5))
    if any(_is_piecewise(r.point, base) for r in points):
        terms.append(_host("piecewise_layer_s", "", 5e-4, 5e-5))
    if any(_has_head(r.point.setup.method) for r in points):
        terms.append(DRAFT_GAP)
    for method in dict.fromkeys(r.point.setup.method for r in points):
        terms += [_host("step_s", method, 2e-3, 2e-4), _host("sequence_s", method, 2e-5, 1e-6)]
        if method != "plain":
            terms.append(_host("draft_token_s", method, 1e-5, 1e-6))
        setups = {r.point.setup for r in points if r.point.setup.method == method}
        if method == "draft":
            terms.append(_host("draft_layer_s", method, 5e-4, 5e-5))
        elif method == "ngram":
            terms.append(_host("lookup_token_s", method, 1e-7, 1e-9))
        elif _has_head(method):
            terms.append(_host("draft_step_s", method, 2e-3, 1e-4))
        if method == "draft" and len({catalog.model(s.draft).layers for s in setups}) > 1:
            terms.append(_host("draft_step_s", method, 2e-3, 1e-4))
    return terms


def _has_head(method: str) -> bool:
    """Whether a method's drafts are passes of a head of the target."""
    return method not in ("plain", "draft", "ngram", "suffix")


def _is_piecewise(point: Point, base: EngineProfile) -> bool:
    """Whether a point's rounds replay piecewise graphs."""
    gamma, batch = point.setup.gamma, point.batch
    costs = base.host_costs(point.setup.method)
    if costs is None or costs.graph_sizes != "mixed" or not base.graph_tokens:
        return False
    in_graph = batch * (gamma + 1) <= base.graph_tokens
    return bool(in_graph and not replays_full_graph(batch, gamma, most=base.graph_tokens))
