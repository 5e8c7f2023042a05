"""`EngineProfile`: what an engine adds to the hardware, apart from any GPU's efficiency."""

from __future__ import annotations

from dataclasses import dataclass, replace

from perfmodel.specs.gpu import GPU
from perfmodel.specs.labels import Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCosts:
    """Host time of one way to decode, in seconds.

    `method` is "plain", "draft" (a standalone model) or one of `draft_methods.METHODS`. The host
    first spends `step_s` and `sequence_s` per sequence on scheduling, inputs and outputs. If
    `overlapped` it does so while the GPU still runs the step before, else the GPU waits. Then it
    launches the passes; the GPU waits for launches that take longer than the passes themselves.
    """

    method: str
    overlapped: bool = False
    step_s: float = 0.0  # per step or round
    sequence_s: float = 0.0  # per sequence
    draft_step_s: float = 0.0  # to launch one draft step
    draft_layer_s: float = 0.0  # to launch one layer of a draft step that has no full CUDA graph
    lookup_token_s: float = 0.0  # per sequence and token of context searched for a draft


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProfile:
    """Overheads, kernel choices and memory habits of one engine on one GPU.

    Times are seconds, sizes bytes. `origin` is "assumed", "fitted", "measured" or, where the values
    of `measured_on` are transferred to another GPU, "extrapolated". A factor multiplies the fitted
    kernel time: 1 means that the engine gets what the kernel tables show.

    With `plain_pays_overhead` T_T is the time of a step's kernels, and plain decoding pays the
    overheads of a round of one draft on top. Without it T_T is the whole step, as the engine times
    plain decoding.
    """

    name: str
    origin: Origin
    source: str
    measured_on: str = ""  # the GPU whose kernels were timed with this engine; "" for none
    attention_kernels: str = "vllm"  # which library's attention curve is read
    linear_kernels: str = "library"  # which dense layers: the GPU's library's, or "specroof"
    attention_factor: float = 1.0  # on attention over the whole cache
    draft_attention_factor: float = 1.0  # on attention over a draft's small cache
    verify_attention_factor: float = 1.0  # also on attention of passes over several query tokens
    linear_factor: float = 1.0
    compute_factor: float = 1.0  # share of the peak FLOP/s that sustained clocks leave
    activation_factor: float = 1.0  # on bytes that small kernels move, over one pass at full rate
    sampling_factor: float = 1.0  # on the logits' bytes, times activation_factor
    sampling_column_s: float = 0.0  # one row's walk over one column, which more rows share
    comm_factor: float = 1.0
    all_reduce: str = "best"  # "nccl", "custom" or "best"
    kernel_latency_s: float = 0.0  # fixed time of one small fused kernel
    kernels_per_layer: float = 5.0  # two norms, rotary, cache append, activation
    kernel_gap_s: float = 0.0  # idle between two kernels of a graph
    layer_overhead_s: float = 0.0  # of a layer, besides its kernels and messages
    layer_overhead_per_sequence_s: float = 0.0  # page tables, cache append, rotary by sequence
    step_overhead_s: float = 0.0  # host time per target pass that the GPU waits for
    draft_step_overhead_s: float = 0.0
    round_overhead_s: float = 0.0  # accept, roll back, bookkeeping
    round_overhead_per_sequence_s: float = 0.0
    round_overhead_per_draft_s: float = 0.0  # tables of a draft step, made before the first
    plain_pays_overhead: bool = False  # a plain step pays these as a round of one draft
    vocab_parallel: bool = True
    streamingllm_is_view: bool = True  # a self-draft reads the target's own pages
    draft_refeeds: bool = False  # a standalone draft's first step reads a round's last two tokens
    draft_reads_round: bool = False  # a draft's first step reads all tokens of the last round
    host: tuple[HostCosts, ...] = ()  # host time by method; () where the fields above hold it
    graph_tokens: float = 0.0  # tokens up to which passes replay CUDA graphs; 0: no limit
    eager_layer_s: float = 0.0  # host time to launch one layer without a graph
    prefill_chunk_tokens: int = 8192  # rows of one pass over prompts (vLLM's usual budget)
    reserved_bytes: float = 0.0  # context, communication buffers, allocator slack
    workspace_bytes: float = 0.0  # what libraries allocate for themselves
    speedup_error: float = 0.1  # standard error of the predicted speedup, from held-out rows

    @property
    def has_own_kernels(self) -> bool:
        """Whether the engine's kernels are its own, timed with it, and not a library's."""
        return "specroof" in (self.attention_kernels, self.linear_kernels)

    def kernel_origin(self, gpu: GPU) -> Origin:
        """Whether kernel times are "fitted" on this very GPU or "extrapolated" from another."""
        if self.measured_on:
            return Origin.FITTED if self.measured_on == gpu.name else Origin.EXTRAPOLATED
        return gpu.efficiency_origin

    def host_costs(self, method: str) -> HostCosts | None:
        """Host costs of a method, or else of plain decoding; None if the profile has neither."""
        by_method = {costs.method: costs for costs in self.host}
        return by_method.get(method, by_method.get("plain"))

    def changed(self, **coefficients: float) -> EngineProfile:
        """The same engine with other coefficients, by field name."""
        return replace(self, **coefficients)  # type: ignore[arg-type]
