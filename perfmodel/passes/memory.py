"""Memory per GPU of weights, caches, activations and reserve, and the largest batch that fits."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike

from perfmodel._typing import Bools, Floats
from perfmodel.display import html_table, number_range, one_line
from perfmodel.passes.linear import part_parameters
from perfmodel.passes.rank import ACTIVATION_BYTES
from perfmodel.scenario import Scenario
from perfmodel.specs.draft import DraftKind, DraftPolicy
from perfmodel.specs.dtypes import StoredTypes, stored_bytes
from perfmodel.specs.model import ModelSpec
from perfmodel.specs.workload import fullest_group
from perfmodel.units import GB, format_bytes


@dataclass(frozen=True, eq=False, slots=True)
class MemoryEstimate:
    """Bytes on the fullest GPU, by term; arrays broadcast to one shape."""

    weights: Floats
    target_kv: Floats
    draft_weights: Floats
    draft_kv: Floats
    lookahead_kv: Floats  # slots for γ drafts, which may be rolled back
    activations: Floats
    reserved: Floats  # the engine's reserve and workspace, and all-reduce buffers
    capacity: float
    usable: float  # with which the engine starts

    def __repr__(self) -> str:
        share = number_range(100.0 * self.fraction, 0)
        values = {"fraction": f"{share} %", "capacity": format_bytes(self.capacity)}
        return one_line("MemoryEstimate", values)

    def _repr_html_(self) -> str:
        terms = {name: number_range(getattr(self, name) / GB) for name in TERMS}
        rows = {**terms, "total": number_range(self.total / GB), "capacity": self.capacity / GB}
        return html_table(rows.items(), header=("", "GB"))

    @property
    def total(self) -> Floats:
        """Bytes needed per GPU."""
        return sum((getattr(self, name) for name in TERMS), np.zeros(()))

    @property
    def fraction(self) -> Floats:
        """Bytes needed over capacity."""
        return self.total / self.capacity

    @property
    def fits(self) -> Bools:
        """Whether the scenario fits in the memory that the engine can use."""
        return self.total <= self.usable

    def account(self) -> str:
        """Why one point does not fit: bytes needed, bytes available, and the terms of the sum."""
        terms = ", ".join(
            f"{name.replace('_', ' ').replace('kv', 'KV')} "
            f"{format_bytes(float(getattr(self, name)))}"
            for name in TERMS
            if float(getattr(self, name)) > 0
        )
        need, usable = format_bytes(float(self.total)), format_bytes(self.usable)
        if need == usable:
            need, usable = f"{float(self.total) / 1e9:.3f} GB", f"{self.usable / 1e9:.3f} GB"
        share = self.usable / self.capacity
        most = "" if share == 1.0 else f" (the engine starts with at most {share:.0%})"
        return f"it needs {need} per GPU, {usable} are available{most}: {terms}"


TERMS = tuple(f.name for f in fields(MemoryEstimate) if f.name not in ("capacity", "usable"))


def memory_estimate(
    scenario: Scenario,
    *,
    batch: ArrayLike,
    prompt_tokens: ArrayLike,
    gamma: ArrayLike,
    kv_budget_tokens: ArrayLike,
) -> MemoryEstimate:
    """Bytes per GPU when every sequence has reached its full length.

    Parameters
    ----------
    batch, prompt_tokens, gamma, kv_budget_tokens : float or array, mutually broadcastable
        Sequences; prompt tokens per sequence; drafts per round; tokens that a draft may read per
        sequence (ignored without a draft, and for policy "full"). [1]

    Notes
    -----
    If the draft runs on only some of the ranks, the estimate is for such a rank; the others need
    less.
    """
    batch, gamma = np.asarray(batch, float), np.asarray(gamma, float)
    capacity = scenario.machine.gpu.memory_bytes
    prompt, budget = np.asarray(prompt_tokens, float), np.asarray(kv_budget_tokens, float)
    spec, tp, engine = scenario.target, scenario.group_tp, scenario.engine
    batch = fullest_group(batch, scenario.dp)
    per_token = spec.kv_bytes_per_token_per_rank(tp, scenario.kv_dtype)
    length = prompt + scenario.workload.output_tokens
    draft_weights, draft_per_token, draft_tokens = _draft_terms(scenario, length, budget, gamma)
    # Verification keeps the states of linear layers after every token.
    state = spec.state_bytes_per_rank(tp)
    return MemoryEstimate(
        weights=np.asarray(_weight_bytes(spec, tp, scenario.target_types, scenario.tp)),
        target_kv=batch * (spec.cached_tokens(length) * per_token + state),
        draft_weights=np.asarray(draft_weights),
        draft_kv=batch * draft_tokens * draft_per_token,
        lookahead_kv=batch * gamma * (per_token + state),
        activations=_activation_bytes(scenario, batch, prompt, gamma),
        reserved=np.asarray(
            engine.reserved_bytes + engine.workspace_bytes + _exchange_bytes(scenario)
        ),
        capacity=capacity,
        usable=scenario.memory_share * capacity,
    )


def largest_batch(scenario: Scenario, *, share: float = 1.0) -> int:
    """The largest batch up to 2^20 that fits in a share of the memory; 0 if no batch fits."""

    def fits(batch: int) -> bool:
        estimate = memory_estimate(
            scenario,
            batch=batch,
            prompt_tokens=scenario.workload.prompt_tokens,
            gamma=scenario.plan.gamma,
            kv_budget_tokens=scenario.plan.budget_at(scenario.workload.prompt_tokens),
        )
        return bool(estimate.fits and estimate.total <= share * estimate.capacity)

    low, high = 0, 1 << 20
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _weight_bytes(spec: ModelSpec, tp: int, types: StoredTypes, gpus: int) -> float:
    """Layers in their storage types, experts divided among `gpus`; the embedding is in bf16."""
    vocabulary = spec.padded_vocab_per_rank(tp) * spec.hidden * (1 if spec.tied_embeddings else 2)
    layers = spec.parameters_per_rank(tp) - vocabulary

    def of_one(dtype: str) -> float:
        return stored_bytes(dtype, spec.scale_bytes)

    experts = spec.experts.routed_parameters(spec.hidden, tp) if spec.experts else 0
    dense = (layers - experts) * of_one(types.weights)
    for part, dtype in types.parts:
        usual = ACTIVATION_BYTES if part == "head" else of_one(types.weights)
        dense += part_parameters(spec, tp)[part] * (of_one(dtype) - usual)
    experts = spec.experts.routed_parameters(spec.hidden, gpus) if spec.experts else 0
    return dense + experts * of_one(types.experts) + vocabulary * ACTIVATION_BYTES


def _draft_terms(
    scenario: Scenario, length: Floats, budget: Floats, gamma: Floats
) -> tuple[float, float, Floats]:
    """Bytes of draft weights, draft KV bytes per token, and draft tokens cached per sequence."""
    plan, draft, none = scenario.plan, scenario.draft, np.zeros(())
    if draft is None or plan.kind is DraftKind.NONE:
        return 0.0, 0.0, none
    types = scenario.draft_types
    tp = scenario.draft_tp // scenario.dp
    per_token = draft.kv_bytes_per_token_per_rank(tp, types.kv)
    weights = _weight_bytes(draft, tp, types, scenario.draft_tp)
    if plan.is_self:
        shares_weights = types._replace(kv=scenario.kv_dtype) == scenario.target_types
        full = plan.policy is DraftPolicy.FULL
        shares_pages = not scenario.draft_copies_kv and (
            full
            or (plan.policy is DraftPolicy.STREAMINGLLM and scenario.engine.streamingllm_is_view)
        )
        tokens = draft.cached_tokens(length) + gamma if full else budget + gamma
        return (0.0 if shares_weights else weights), per_token, none if shares_pages else tokens
    cached = draft.cached_tokens(length) + gamma
    if plan.policy is not DraftPolicy.FULL:
        # A chunk of the prompt is added before the tokens that it displaces are removed.
        piece = np.minimum(scenario.engine.prefill_chunk_tokens, budget)
        cached = np.minimum(cached, budget + np.maximum(piece, gamma))
    return weights, per_token, cached


def _exchange_bytes(scenario: Scenario) -> float:
    """Memory that peers write to: one inbox per model and one buffer per group of ranks."""
    exchange = scenario.exchange
    if exchange is None:
        return 0.0
    groups = [scenario.group_tp]
    total = exchange.inbox_bytes(scenario.group_tp)
    if scenario.draft is not None and not scenario.plan.is_self and scenario.draft_tp > 1:
        groups.append(scenario.draft_tp)
        total += exchange.inbox_bytes(scenario.draft_tp)
    return total + exchange.buffer_bytes * len(set(groups))


def _activation_bytes(scenario: Scenario, batch: Floats, prompt: Floats, gamma: Floats) -> Floats:
    """Live tensors of the largest pass: a chunk of prompts, or a verification and its logits.

    A CUDA graph keeps its logits, and needs them a second time while it is captured.
    """
    chunk = np.minimum(scenario.engine.prefill_chunk_tokens, batch * prompt)
    rows = batch * (gamma + 1.0)
    prefill = np.maximum(_layer_bytes(scenario, chunk), _logit_bytes(scenario, batch))
    logits = _logit_bytes(scenario, rows)
    graph_logits = ACTIVATION_BYTES * rows * scenario.target.vocab
    verify = np.maximum(_layer_bytes(scenario, rows), logits) + graph_logits
    return np.asarray(np.maximum(prefill, verify))


def _layer_bytes(scenario: Scenario, rows: Floats) -> Floats:
    """The peak of a layer: residual, norm, outputs of attention and of the previous layer, and the
    gate, up and product of the MLP, or these and two copies of the input for each expert."""
    spec = scenario.target
    mlp = 3 * spec.ffn_hidden / scenario.group_tp if spec.dense_layers else 0.0
    if (experts := spec.experts) is not None:
        routed = experts.top_k * (2 * spec.hidden + 3 * experts.width / scenario.group_tp)
        mlp = max(mlp, routed + 3 * experts.shared_width / scenario.group_tp)
    width = 4 * spec.hidden + mlp
    return np.asarray(ACTIVATION_BYTES * rows * width)


def _logit_bytes(scenario: Scenario, rows: Floats) -> Floats:
    """Normed states and logits of `rows`, and the local logits if the head is split."""
    spec, tp = scenario.target, scenario.group_tp
    part = spec.padded_vocab_per_rank(tp) if tp > 1 and scenario.engine.vocab_parallel else 0
    return np.asarray(ACTIVATION_BYTES * rows * (spec.hidden + spec.vocab + part))
