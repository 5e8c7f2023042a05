"""`ScenarioFields`: the keys of a scenario, with values as flags, TOML and CSV write them."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from perfmodel.specs.draft import MAX_GAMMA
from perfmodel.units import ambiguous, parse_number

MAX_COUNT = 1 << 40


def whole_number(value: Any) -> Any:
    """A whole number, also in the forms of CSV and TOML ("64", 64.0, "32_000")."""
    if isinstance(value, bool):
        raise ValueError("must be a whole number, not true or false")
    if isinstance(value, str):
        if doubt := ambiguous(value):
            raise ValueError(doubt)
        try:
            value = parse_number(value)
        except ValueError:
            raise ValueError("must be a whole number such as 32000") from None
    if isinstance(value, float):
        if not math.isfinite(value) or value % 1:
            raise ValueError("must be a whole number")
        return int(value)
    return value


def number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    if isinstance(value, str):
        try:
            return parse_number(value)
        except ValueError:
            raise ValueError("must be a finite number such as 0.8") from None
    return value


def rates(value: Any) -> Any:
    """Rates of the draft positions; text is a list such as "0.8,0.7"."""
    rates = value
    if isinstance(value, str):
        try:
            rates = tuple(parse_number(part) for part in value.split(","))
        except ValueError:
            raise ValueError("must be a list of numbers such as 0.8,0.7") from None
    if isinstance(rates, list | tuple) and len(rates) > MAX_GAMMA:
        raise ValueError(f"has {len(rates):,} positions; give at most {MAX_GAMMA}")
    return rates


def budget(value: Any) -> Any:
    """A number of tokens, or a share of the context such as "5%"."""
    if not (isinstance(value, str) and value.strip().endswith("%")):
        tokens = whole_number(value)
        if not isinstance(tokens, int):
            raise ValueError("must be a whole number such as 512, or a share such as 5%")
        if not 1 <= tokens <= MAX_COUNT:
            raise ValueError(f"must be from 1 to {MAX_COUNT:,}")
        return tokens
    try:
        share = parse_number(value.strip().removesuffix("%"))
    except ValueError:
        share = 0.0
    if not 0 < share <= 100:
        raise ValueError("must be a number of tokens, or a share of the context such as 5%")
    return f"{share:.10g}%"


Count = Annotated[int, BeforeValidator(whole_number), Field(ge=1, le=MAX_COUNT)]
Budget = Annotated[int | str, BeforeValidator(budget)]
Name = Annotated[str, Field(min_length=1, max_length=512)]


def scenario_field(
    panel: str, metavar: str, description: str, default: Any = None, *, otherwise: str = ""
) -> Any:
    """A field with its text for `--help` and the docs; `otherwise` is the default in words."""
    return Field(
        default,
        description=description,
        json_schema_extra={"panel": panel, "metavar": metavar, "otherwise": otherwise},
    )


class ScenarioFields(BaseModel):
    """The keys of a scenario; each is a flag, a TOML key and a CSV column.

    The flags, their help and the table in docs/reference/commands.md are derived from these fields.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    target: Name = scenario_field(
        "Models",
        "MODEL",
        "Target model: a catalog name, a hub id, or the path of a config.json.",
        "llama-3.1-8b",
    )
    draft: Name = scenario_field(
        "Models",
        "MODEL|self|none",
        'Draft model, "self" (the target), "none", or eagle3, mtp, p-eagle, dflash, ngram, suffix.',
        "none",
    )
    draft_policy: Name | None = scenario_field(
        "Models",
        "POLICY",
        "Part of the KV cache that a draft reads: full, streamingllm, or snapkv (only draft self).",
        otherwise="streamingllm",
    )
    kv_budget: Budget | None = scenario_field(
        "Models",
        "TOKENS|SHARE",
        "Cached tokens that a draft reads per sequence, including sink and window, or a share of "
        "the context such as 5%.",
        otherwise="512 for streamingllm, 2,049 for snapkv",
    )
    gamma: Annotated[int, BeforeValidator(whole_number), Field(ge=0, le=1 << 40)] | None = (
        scenario_field(
            "Models",
            "N",
            "Draft tokens per round; 0 is plain decoding.",
            otherwise="4 with a draft",
        )
    )
    acceptance: Annotated[float, BeforeValidator(number), Field(ge=0, le=1)] | None = (
        scenario_field(
            "Acceptance",
            "ALPHA",
            "Probability that a draft token is accepted if all earlier ones were, 0 to 1.",
            otherwise="the measured curve of the draft, if there is one",
        )
    )
    acceptance_per_position: Annotated[tuple[float, ...], BeforeValidator(rates)] | None = (
        scenario_field(
            "Acceptance",
            "A1,A2,..",
            "That probability per draft position; the last value also applies to later positions.",
        )
    )
    accepted_fraction: Annotated[float, BeforeValidator(number)] | None = scenario_field(
        "Acceptance",
        "X",
        "Share of draft tokens accepted at the given gamma, 0 to 1 (vLLM's acceptance rate).",
    )
    accepted_drafts: Annotated[float, BeforeValidator(number)] | None = scenario_field(
        "Acceptance",
        "N",
        "Mean accepted draft tokens per round at the given gamma, 0 to gamma.",
    )
    tokens_per_round: Annotated[float, BeforeValidator(number)] | None = scenario_field(
        "Acceptance",
        "N",
        "Mean tokens per round, including the target's token, 1 to gamma+1.",
    )
    acceptance_curve: Name | None = scenario_field(
        "Acceptance",
        "FILE",
        "Acceptance curves from `calibrate fit-acceptance`; they override the catalog's.",
    )
    gpu: Name = scenario_field(
        "Machine",
        "NAME",
        "GPU: a catalog name, in its usual machine, or the path of a TOML file.",
        "h100-sxm",
    )
    machine: Name | None = scenario_field(
        "Machine", "NAME", "Machine from the catalog, instead of --gpu."
    )
    ring_hop_us: Annotated[float, BeforeValidator(number), Field(ge=1e-3, le=1e6)] | None = (
        scenario_field(
            "Machine",
            "US",
            "Latency of one hop of a ring all-reduce in microseconds (PCIe).",
            otherwise="the machine's, or the tables of its GPU",
        )
    )
    ring_gb_s: Annotated[float, BeforeValidator(number), Field(ge=1e-3, le=1e6)] | None = (
        scenario_field(
            "Machine",
            "GB/S",
            "Rate of one GPU in a ring all-reduce in GB/s (10^9 bytes).",
            otherwise="the machine's, or the tables of its GPU",
        )
    )
    tp: Count = scenario_field(
        "Machine", "N", "GPUs that share the target (tensor parallelism).", 1
    )
    ep: Count = scenario_field(
        "Machine",
        "N",
        "Groups of the target's GPUs that divide the experts (expert parallelism).",
        1,
    )
    dp: Count = scenario_field(
        "Machine",
        "N",
        "Groups of the target's GPUs that divide the sequences (data-parallel attention). All "
        "GPUs then divide the experts, and prefill is disaggregated.",
        1,
    )
    draft_tp: Count | None = scenario_field(
        "Machine",
        "N",
        "GPUs that share a draft model, at most --tp.",
        otherwise="the value of --tp",
    )
    engine: Name = scenario_field(
        "Machine", "NAME", "Engine profile: a catalog name, or the path of a TOML file.", "specroof"
    )
    host_factor: Annotated[float, BeforeValidator(number), Field(ge=0.1, le=10)] = scenario_field(
        "Machine",
        "X",
        "Host times over those of the engine profile, such as 1.6 on cores shared with others.",
        1.0,
    )
    weight_dtype: Name = scenario_field(
        "Machine",
        "DTYPE",
        "Storage type of the weights: bf16, fp16, fp8, fp8_block, int8, int4, mxfp4 or nvfp4.",
        "bf16",
        otherwise="that of the checkpoint, or bf16",
    )
    kv_dtype: Name = scenario_field(
        "Machine",
        "DTYPE",
        "Storage type of the KV cache: bf16, fp16, fp8, int8 or int4.",
        "bf16",
        otherwise="that of the checkpoint, or bf16",
    )
    draft_dtype: Name | None = scenario_field(
        "Machine",
        "DTYPE",
        "Storage type of the draft's weights, such as int4 for a quantised self-draft.",
        otherwise="that of the target (of a head bf16, or fp8), or of the draft's checkpoint",
    )
    draft_kv_dtype: Name | None = scenario_field(
        "Machine",
        "DTYPE",
        "Storage type of the draft's KV cache.",
        otherwise="that of the target",
    )
    batch: Count = scenario_field("Workload", "N", "Sequences decoded together.", 64)
    prompt_tokens: Count = scenario_field(
        "Workload", "TOKENS", "Prompt tokens per sequence, all of them cached.", 32_000
    )
    output_tokens: Count = scenario_field(
        "Workload", "TOKENS", "Tokens to generate per sequence.", 256
    )
    prefill: Name = scenario_field(
        "Workload",
        "shared|disaggregated",
        "Where prompts are computed: in chunks on the same GPUs, or on others (not counted).",
        "shared",
    )
    prefix_hit_rate: Annotated[float, BeforeValidator(number), Field(ge=0, lt=1)] = scenario_field(
        "Workload", "X", "Share of each prompt that is already in the prefix cache.", 0.0
    )
    slo: str = scenario_field(
        "Workload", "LIMITS", 'Limits, such as "ttft<2s; tpot<25ms; memory<90%".', ""
    )
