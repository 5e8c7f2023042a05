"""Hypothesis strategies for scenarios, ranks and points."""

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from perfmodel import (
    SLO,
    Acceptance,
    EngineProfile,
    Machine,
    ModelSpec,
    Recommendation,
    Scenario,
    catalog,
    parse_scenario,
)
from perfmodel.passes.forward import forward_pass
from perfmodel.passes.parts import StepTime
from perfmodel.passes.rank import Rank
from perfmodel.planning.recommend import recommend
from perfmodel.planning.search import search
from perfmodel.speculation import target_rank

MEASURED_GPUS = ("a100-sxm-80gb", "h100-sxm", "h200", "l40s")
GPUS = (*MEASURED_GPUS, "l40", "b200")
ENGINES = ("ideal", "kernels", "magicdec", "plain-graph", "specroof")
TARGETS = ("llama-3.1-8b", "llama-2-7b-32k", "qwen2.5-7b", "mistral-7b-v0.1")
DRAFTS: tuple[dict[str, Any], ...] = (
    {"draft": "none"},
    {"draft": "self", "draft_policy": "full"},
    {"draft": "self", "draft_policy": "streamingllm", "kv_budget": 512},
    {"draft": "self", "draft_policy": "snapkv", "kv_budget": 1024},
    {"draft": "llama-3.2-1b", "draft_policy": "full"},
    {"draft": "llama-3.2-1b", "draft_policy": "streamingllm", "kv_budget": 512},
)
SPECULATING = DRAFTS[1:]
# Fields of an engine profile that are times, beside the factors.
ENGINE_LATENCIES = tuple(f for f in EngineProfile.__dataclass_fields__ if f.endswith("_s"))
APART: dict[str, Any] = {"prefill": "disaggregated"}


def a_scenario(**values: Any) -> Scenario:
    """The scenario of these flat values and the defaults."""
    return parse_scenario(values).scenario()


def answer(slo: SLO | None = None, choices: Any = None, **values: Any) -> Recommendation:
    """The recommendation for `a_scenario` under limits."""
    return recommend(search(a_scenario(**values), slo=slo, choices=choices))


def a_rank(**values: object) -> Rank:
    return target_rank(a_scenario(**values))


def rank_of(spec: ModelSpec, *, tp: int = 1, ep: int = 1, **values: Any) -> Rank:
    """A rank without measured curves of experts and latent attention."""
    rank = target_rank(parse_scenario({"tp": tp, **values}).scenario())
    return replace(rank, spec=spec, ep=ep, curves=replace(rank.curves, experts={}, latent={}))


def step(rank: Rank, batch: float, query: float = 1.0, context: float = 4096.0) -> StepTime:
    return forward_pass(rank, batch=batch, context_tokens=context, query_tokens=query)


def dense(**fields: Any) -> ModelSpec:
    return replace(catalog.model("llama-3.1-8b"), **fields)


def with_acceptance(scenario: Scenario, alpha: float) -> Scenario:
    """The same scenario with an i.i.d. acceptance."""
    return replace(scenario, acceptance=Acceptance.from_alpha(alpha))


def with_peaks(machine: Machine, factor: float, *fields: str) -> Machine:
    """The machine with some peaks of its GPU ("link" for its wires) times `factor`."""
    gpu, link = machine.gpu, machine.link
    if "link" in fields:
        link = replace(link, bandwidth=factor * link.bandwidth)
    changes = {field: factor * getattr(gpu, field) for field in fields if field != "link"}
    return replace(machine, gpu=replace(gpu, **changes), link=link)


def alphas() -> st.SearchStrategy[float]:
    """Acceptance, both ends included."""
    return st.floats(0.0, 1.0, allow_subnormal=False)


@st.composite
def points(draw: st.DrawFn) -> dict[str, int]:
    """A batch, a context and query tokens, spread over their magnitudes."""
    return {
        "batch": draw(st.integers(1, 2)) * 2 ** draw(st.integers(0, 8)) - draw(st.integers(0, 1)),
        "context_tokens": draw(st.integers(128, 256)) * 2 ** draw(st.integers(0, 9)),
        "query_tokens": draw(st.integers(1, 17)),
    }


@st.composite
def scenarios(draw: st.DrawFn, drafts: tuple[dict[str, Any], ...] = DRAFTS) -> Scenario:
    """A scenario of Llama-3.1-8B with one of the draft choices, on any GPU and engine."""
    draft = draw(st.sampled_from(drafts))
    tp = draw(st.sampled_from((1, 2, 4, 8)))
    return a_scenario(
        **draft,
        gpu=draw(st.sampled_from(GPUS)),
        engine=draw(st.sampled_from(ENGINES)),
        tp=tp,
        batch=draw(st.integers(1, 256)),
        prompt_tokens=draw(st.integers(1024, 131_072)),
    )


@st.composite
def ranks(draw: st.DrawFn) -> Rank:
    """A target's rank on any GPU and engine, at a TP degree that splits it."""
    target = draw(st.sampled_from(TARGETS))
    scenario = a_scenario(
        target=target,
        gpu=draw(st.sampled_from(GPUS)),
        engine=draw(st.sampled_from(ENGINES)),
        tp=draw(st.sampled_from((1, 2, 4))),
        kv_dtype=draw(st.sampled_from(("bf16", "fp8"))),
        weight_dtype=draw(st.sampled_from(("bf16", "fp8", "int4"))),
    )
    return target_rank(scenario)
