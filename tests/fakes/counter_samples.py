"""Counters of engines with known rates, in the forms that vLLM writes."""

METRICS = """# HELP vllm:spec_decode_num_drafts_total Number of spec decoding drafts.
vllm:spec_decode_num_drafts_total{engine="0",model_name="m"} 600.0
vllm:spec_decode_num_drafts_total{engine="1",model_name="m"} 400.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="0"} 500.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="1",position="0"} 300.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="1"} 6.0e+02
"""


def page(
    drafts: float, accepted: list[float], *, draft_tokens: float | None = None, model: str = "m"
) -> str:
    """vLLM's counters of one engine."""
    labels = f'engine="0",model_name="{model}"'
    lines = [f"vllm:spec_decode_num_drafts_total{{{labels}}} {drafts}"]
    if draft_tokens is not None:
        lines.append(f"vllm:spec_decode_num_draft_tokens_total{{{labels}}} {draft_tokens}")
    for position, count in enumerate(accepted):
        series = f'{labels},position="{position}"'
        lines.append(f"vllm:spec_decode_num_accepted_tokens_per_pos_total{{{series}}} {count}")
    return "\n".join(lines) + "\n"


LINE = (
    "INFO SpecDecoding metrics: Mean acceptance length: {}, Accepted: {} tokens, "
    "Drafted: {} tokens, Per-position acceptance rate: {}, Avg Draft acceptance rate: {}%\n"
)
RIGHT = ("2.40", 420, 600, "0.800, 0.600", "70.0")  # 300 rounds


def bench(model: str, rounds: int = 1000) -> dict[str, object]:
    return {"model_id": model, "spec_decode_num_drafts": rounds,
            "spec_decode_draft_tokens": 2 * rounds,
            "spec_decode_per_position_acceptance_rates": [0.8, 0.6]}  # fmt: skip


def metrics(model: str) -> list[dict[str, object]]:
    """The metrics of vLLM's `LLM.get_metrics` as JSON."""
    labels = {"model_name": model, "engine": "0"}
    return [
        {"name": "vllm:spec_decode_num_drafts", "labels": labels, "value": 1000},
        {"name": "vllm:spec_decode_num_accepted_tokens_per_pos", "labels": labels,
         "values": [800, 600]},
    ]  # fmt: skip
