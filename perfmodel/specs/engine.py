"""`EngineProfile`: the overheads and choices of an inference engine."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import ArrayLike

from perfmodel._typing import Floats
from perfmodel.specs.cuda_graphs import largest_multiple, padded_tokens, replays_full_graph
from perfmodel.specs.gpu import GPU
from perfmodel.specs.labels import Origin
from perfmodel.specs.model import ModelSpec

V2_MIXTURES = ("deepseek_v2", "granitemoe", "qwen2_moe")


def has_v2_runner(target: ModelSpec) -> bool:
    """Whether vLLM runs a model with its model runner V2; others run with V1.

    Source: `_is_default_v2_model_runner_model` in vllm/config/vllm.py of 0.26.
    """
    is_mixture = target.experts is not None
    return target.linear is None and (not is_mixture or target.family in V2_MIXTURES)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCosts:
    """Host time of one decoding method, in seconds.

    `method` is "plain", "draft" (a standalone model) or one of `draft_methods.METHODS`. The host
    first spends `step_s`, plus `sequence_s` per sequence, on scheduling, inputs and outputs. If
    `overlapped` is true, the GPU runs the previous step in the meantime; otherwise it waits. Then
    the host launches the passes, and the GPU waits if launching takes longer than the passes.

    `graph_sizes` states which rounds replay a full CUDA graph by default: with "multiples", sizes
    are multiples of γ + 1 tokens; with "mixed", which vLLM's model runner V2 has, piecewise graphs
    of other sizes are captured too and are replayed if they fit a round more closely
    (`cuda_graphs`). Targets that vLLM runs with V1 have "multiples" all the same.
    """

    method: str
    overlapped: bool = False
    graph_sizes: str = "multiples"
    step_s: float = 0.0  # per step or round
    sequence_s: float = 0.0  # per sequence
    draft_token_s: float = 0.0  # per sequence and draft
    draft_step_s: float = 0.0  # to launch one draft step
    draft_layer_s: float = 0.0  # to launch one layer of a draft step without a full CUDA graph
    lookup_token_s: float = 0.0  # per sequence and context token that is searched for a draft

    def slower(self, factor: float) -> HostCosts:
        """The costs of a host that takes `factor` times as long for everything."""
        times = (field.name for field in fields(self) if field.name.endswith("_s"))
        return replace(self, **{name: factor * getattr(self, name) for name in times})


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProfile:
    """Overheads, kernel choices and memory use of one engine on one GPU.

    Times are in seconds, sizes in bytes. `origin` is "assumed", "fitted", "measured" or, if the
    values of `measured_on` are transferred to another GPU, "extrapolated". Factors multiply fitted
    kernel times; at 1 the engine's kernels take the time in the kernel tables.

    If `plain_runs_ahead` is true, the host prepares a plain step while the GPU runs the one before:
    a step takes T_T or the host's work (`plain_host_s`), whichever is longer. Otherwise T_T is the
    whole plain step.
    """

    name: str
    origin: Origin
    source: str
    measured_on: str = ""  # the GPU on which the engine was timed; "" for none
    timed_tp: tuple[int, ...] = (1,)  # numbers of ranks at which its steps were timed there
    # The targets whose steps it was fitted to, if these include no other targets as a check.
    timed_targets: tuple[str, ...] = ()
    attention_kernels: str = "vllm"  # the library whose attention curve is used
    linear_kernels: str = "library"  # "library" (of the GPU) or "specroof"
    attention_factor: float = 1.0  # for attention over the whole cache
    draft_attention_factor: float = 1.0  # for attention over a draft's small cache
    verify_attention_factor: float = 1.0  # for passes over several query tokens, in addition
    # For images whose tokens see all others, which only FlashAttention 4 supports.
    prefix_attention_factor: float = 1.0
    prefix_attention_token_s: float = 0.0  # per cached token of a sequence that is not split
    # Share of the multiprocessors that reach the memory bandwidth, if the attention kernel runs a
    # last wave of blocks (`kernels.attention_tail`); 0 if it does not.
    attention_tail_share: float = 0.0
    linear_factor: float = 1.0
    compute_factor: float = 1.0  # share of the peak FLOP/s at sustained clocks
    prefill_compute_factor: float = 1.0  # FLOP/s in prompts over those at sustained clocks
    # Time at sustained clocks of attention that tensor cores slow down, over that in short runs.
    sustained_attention_factor: float = 1.0
    activation_factor: float = 1.0  # time of small kernels over that of their bytes at full rate
    sampling_s: float = 0.0  # of choosing tokens, beyond the logits' bytes; 0: as small kernels
    sampling_factor: float = 1.0  # time over that of the logits' bytes at full rate
    comm_factor: float = 1.0
    all_reduce: str = "best"  # "nccl", "custom", "best", or "exchange" (in the norm kernel)
    # Added per all-reduce in a layer, compared with one after a GEMM; negative if the next GEMM is
    # shortened more, because it loads weights meanwhile.
    sum_gap_s: float = 0.0
    sum_wait_s: float = 0.0  # the same per e-fold of rows: the last of them is waited for
    kernel_latency_s: float = 0.0  # fixed time of one small fused kernel
    kernels_per_layer: float = 5.0  # two norms, rotary, cache append, activation
    kernel_gap_s: float = 0.0  # idle time between two kernels of a graph
    layer_overhead_s: float = 0.0  # per layer, in addition to kernels and messages
    layer_overhead_per_sequence_s: float = 0.0  # page tables, cache append, rotary
    step_overhead_s: float = 0.0  # host time per target pass for which the GPU waits
    draft_step_overhead_s: float = 0.0
    round_overhead_s: float = 0.0  # accept, choose tables, launch
    round_overhead_per_sequence_s: float = 0.0
    round_overhead_per_draft_s: float = 0.0
    # Added to these three for a draft model, which the host prepares and launches between passes.
    model_draft_overhead_s: float = 0.0
    model_draft_overhead_per_sequence_s: float = 0.0
    model_draft_overhead_per_draft_s: float = 0.0
    rank_round_overhead_s: float = 0.0  # added to the first three if several ranks share a model
    rank_round_overhead_per_sequence_s: float = 0.0
    rank_round_overhead_per_draft_s: float = 0.0
    plain_host_s: float = 0.0  # host's work per plain step; ranks add as much as to a round
    plain_host_per_sequence_s: float = 0.0
    plain_runs_ahead: bool = False
    is_bound: bool = False  # parts take their time at the peaks of the datasheet
    vocab_parallel: bool = True
    gathers_logits: bool = False  # every rank receives all logits, not each rank's best token
    streamingllm_is_view: bool = True  # a self-draft reads the pages of the target
    draft_refeeds: bool = False  # the first step of a standalone draft processes two tokens
    draft_reads_round: bool = False  # it processes as many tokens as a padded round
    rank_step_s: float = 0.0  # host time per step for messages to the processes of several ranks
    host: tuple[HostCosts, ...] = ()  # host time by method; () if the fields above include it
    # Whether graphs have the engine's default sizes, as when it was measured; otherwise, they hold
    # every round, as in a configuration written by `specroof export`.
    default_graphs: bool = False
    graph_tokens: float = 0.0  # most tokens of a default CUDA graph; 0: no limit
    eager_layer_s: float = 0.0  # host time to launch one layer without a graph
    # The same in the processes of several ranks, which do nothing but launch; 0: the same.
    rank_eager_layer_s: float = 0.0
    piecewise_layer_s: float = 0.0  # the same with a piecewise graph, which leaves attention out
    prefill_chunk_tokens: int = 8192  # rows of a pass with prompts (vLLM's usual budget)
    prompt_chunk_tokens: int = 0  # rows of a pass over one prompt alone; 0: the same
    reserved_bytes: float = 0.0  # context, communication buffers, allocator slack
    workspace_bytes: float = 0.0  # allocated by libraries
    # Standard error of ln(speedup) from that of GPU times, and with `host_error` of 0 of host times
    # too; from held-out points.
    speedup_error: float = 0.1
    host_error: float = 0.0  # standard error of ln(host time), which GPU time may hide

    @property
    def has_own_kernels(self) -> bool:
        """Whether the engine has kernels that were timed with it, instead of a library's."""
        return "specroof" in (self.attention_kernels, self.linear_kernels)

    def is_timed_at(self, ranks: int) -> bool:
        """Whether an engine that was timed was so with this many ranks."""
        return not self.measured_on or ranks in self.timed_tp

    def kernel_origin(self, gpu: GPU) -> Origin:
        """Whether kernel times were "fitted" on this GPU or "extrapolated" from another."""
        if self.measured_on:
            return Origin.FITTED if self.measured_on == gpu.name else Origin.EXTRAPOLATED
        return gpu.efficiency_origin

    @property
    def chunk_of_prompt(self) -> int:
        """Most tokens of one prompt in a pass of its own."""
        return self.prompt_chunk_tokens or self.prefill_chunk_tokens

    def round_overheads(self, tp: int, *, by_model: bool = False) -> tuple[float, float, float]:
        """Seconds of a round of `tp` ranks beyond its passes: fixed, per sequence, per draft.

        `by_model` says whether a draft model drafts, instead of the target itself.
        """
        ranks, model = float(tp > 1), float(by_model)
        return (
            self.round_overhead_s
            + ranks * self.rank_round_overhead_s
            + model * self.model_draft_overhead_s,
            self.round_overhead_per_sequence_s
            + ranks * self.rank_round_overhead_per_sequence_s
            + model * self.model_draft_overhead_per_sequence_s,
            self.round_overhead_per_draft_s
            + ranks * self.rank_round_overhead_per_draft_s
            + model * self.model_draft_overhead_per_draft_s,
        )

    def plain_host_work_s(self, tp: int, sequences: Floats) -> Floats:
        """Seconds that the host works per plain step of `tp` ranks."""
        ranks, per_rank = float(tp > 1), self.rank_round_overhead_per_sequence_s
        fixed = self.plain_host_s + ranks * self.rank_round_overhead_s
        return np.asarray(fixed + (self.plain_host_per_sequence_s + ranks * per_rank) * sequences)

    def host_costs(self, method: str) -> HostCosts | None:
        """Host costs of a method, or else of the most similar one that the profile has.

        Suffix look-up resembles n-gram look-up, and other heads resemble EAGLE-3's; otherwise,
        costs of plain decoding are used. None if the profile has none of these.
        """
        by_method = {costs.method: costs for costs in self.host}
        similar = {"suffix": "ngram", "plain": "plain", "draft": "plain"}.get(method, "eagle3")
        return by_method.get(method) or by_method.get(similar) or by_method.get("plain")

    def eager_launch_s(self, tp: int) -> float:
        """Host seconds to launch one layer without a graph, on each of `tp` ranks."""
        return self.rank_eager_layer_s if tp > 1 and self.rank_eager_layer_s else self.eager_layer_s

    def default_launch_s(
        self, method: str, batch: ArrayLike, gamma: ArrayLike, *, tp: int, target: ModelSpec
    ) -> Floats:
        """Host seconds to launch one layer of the target with the engine's default CUDA graphs.

        0 for rounds that replay a full graph. The arguments are a method of `HostCosts.method`,
        sequences, and drafts per round; the arrays must be mutually broadcastable. `tp` is the
        number of ranks.
        """
        tokens = np.asarray(batch) * (np.asarray(gamma) + 1.0)
        if not self.graph_tokens:
            return np.zeros(tokens.shape)
        costs = self.host_costs(method)
        if costs is None or costs.graph_sizes == "multiples" or not has_v2_runner(target):
            most = largest_multiple(gamma, most=self.graph_tokens)
            return np.where(tokens > most, self.eager_launch_s(tp), 0.0)
        full = replays_full_graph(batch, gamma, most=self.graph_tokens)
        piecewise = np.where(full, 0.0, self.piecewise_layer_s)
        return np.where(tokens > self.graph_tokens, self.eager_launch_s(tp), piecewise)

    def uses_other_attention(self, spec: ModelSpec, gpu: GPU) -> bool:
        """Whether the engine computes attention with a slower kernel than for most models.

        vLLM does so for the multimodal Gemma-3, whatever the prompt (`FlashAttentionBackend` in
        vllm/v1/attention/backends/flash_attn.py of 0.26), except with FlashAttention 4, which
        Blackwell runs for heads of up to 128 or of 192 (`get_flash_attn_version` in fa_utils.py).
        """
        if self.prefix_attention_factor == 1.0 or spec.family != "gemma3":
            return False
        if gpu.architecture == "blackwell":
            return spec.head_dim > 128 and spec.head_dim != 192
        return gpu.architecture in ("ampere", "ada", "hopper")

    def graph_rows(self, tokens: Floats) -> Floats:
        """Rows of a pass with so many tokens, including those that a default CUDA graph adds."""
        if not self.default_graphs or not self.graph_tokens:
            return tokens
        return padded_tokens(tokens, most=self.graph_tokens)

    def mixed_launch_s(self, tokens: ArrayLike, *, tp: int) -> Floats:
        """Host seconds to launch one layer of a pass with so many tokens, some of prompts.

        Such passes replay piecewise graphs at best, and none with more tokens than any graph.
        """
        is_eager = np.asarray(tokens) > self.graph_tokens
        return np.where(is_eager, self.eager_launch_s(tp), self.piecewise_layer_s)

    def on_slower_host(self, factor: float) -> EngineProfile:
        """The engine on a host that takes `factor` times as long for its work and launches."""
        times = {name: factor * getattr(self, name) for name in _HOST_TIMES}
        host = tuple(costs.slower(factor) for costs in self.host)
        return replace(self, host=host, **times)

    @property
    def has_host_times(self) -> bool:
        """Whether the profile states any time that the host takes."""
        return self.on_slower_host(2.0) != self

    def changed(self, **coefficients: float) -> EngineProfile:
        """The same engine with some coefficients replaced, given by field name."""
        return replace(self, **coefficients)  # type: ignore[arg-type]


# The fields that a host's speed scales, beside `host`: its steps, its work between the passes of a
# round, and its launches. `draft_step_overhead_s` is the time of small kernels.
_HOST_TIMES = tuple(
    field.name
    for field in fields(EngineProfile)
    if field.name.startswith(("plain_host_", "round_overhead_", "model_draft_", "rank_"))
    or field.name in ("step_overhead_s", "eager_layer_s", "piecewise_layer_s")
)
