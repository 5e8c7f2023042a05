"""Where speculative and plain greedy decoding part in 16 bits, and how near the target's tie was.

    python scripts/near_ties.py --model DIR --input TEXT [--device cuda] [--batch 16] ...

In exact arithmetic both give the same tokens. In bfloat16 a verification of several tokens rounds
otherwise than single steps do, so that where the target's two best logits are nearly equal the two
may choose differently. For every sequence that parts, this prints both tokens and the gap between
the target's two best logits there, in the place where they part first, beside the gaps everywhere.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `runtime`, installed or not

from runtime import (
    ALONE,
    BatchShape,
    EngineSetup,
    Model,
    Ranks,
    RunPlan,
    build_engine,
    read_config,
)
from runtime.dataset import TextTokenizer, random_prompts, read_prompts
from runtime.passes import EagerPasses
from runtime.prefill import PromptJob, prefill
from runtime.provenance import provenance

POLICIES = ("none", "streamingllm", "snapkv", "full")


def plan(policy: str, options: argparse.Namespace) -> RunPlan:
    """Self-speculation by one policy, or plain decoding."""
    return RunPlan(
        draft="none" if policy == "none" else "self",
        policy="full" if policy == "none" else policy,
        gamma=0 if policy == "none" else options.gamma,
        kv_budget_tokens=None if policy in ("none", "full") else options.kv_budget,
        sink_tokens=16,
        draft_tp=None,
    )


def engine_for(policy: str, prompts: list[list[int]], options: argparse.Namespace) -> Any:
    """A fresh engine for one policy."""
    setup = EngineSetup(
        target=Model(
            config=read_config(options.model),
            folder=None if options.random_weights else options.model,
        ),
        draft=None,
        plan=plan(policy, options),
        dtype=getattr(torch, options.dtype),
        device=torch.device(options.device),
    )
    shape = BatchShape([len(prompt) for prompt in prompts], [options.gen_tokens] * len(prompts))
    return build_engine(setup, Ranks(ALONE, ALONE), shape)


@torch.inference_mode()
def gaps(engine: Any, tokens: list[int], start: int) -> torch.Tensor:
    """The target's two best tokens and their logits' gap after each token from `start` on: (n, 3).

    Teacher-forced over `tokens`, by a prefill up to `start` and one pass over what follows.
    """
    job = PromptJob(tokens[:start], type(engine.sequences[0].table)())
    prefill(engine.target, engine.cache, engine.backend, [job], chunk_tokens=2048)
    after = len(tokens) - start
    engine.cache.reserve(job.table, after)
    layout = _layout(job.table, start, after)
    drafts = torch.tensor([tokens[start + 1 :]], dtype=torch.long, device=engine.target.device)
    passes = EagerPasses(engine.target, engine.backend)
    logits = passes.verify(layout, [tokens[start]], drafts)[0].float()
    engine.cache.release(job.table)
    best = logits.topk(2, dim=-1)
    gap = best.values[:, :1] - best.values[:, 1:]
    return torch.cat((best.indices.float(), gap), dim=1).cpu()


def _layout(table: Any, start: int, after: int) -> Any:
    from runtime.attention import PassLayout

    return PassLayout(page_tables=[table.pages], kv_tokens=[start + after], query_tokens=[after])


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Every policy against plain decoding."""
    config = read_config(options.model)
    lengths = {"batch": options.batch, "prefix_tokens": options.prefix_tokens}
    if options.input is None:
        prompts = random_prompts(**lengths, vocab=config.vocab, seed=0)
    elif options.input.suffix == ".npy":
        prompts = token_windows(np.load(options.input), **lengths)
    else:
        prompts = read_prompts(options.input, **lengths, tokenizer=TextTokenizer(options.model))
    new = [options.gen_tokens] * len(prompts)
    plain_engine = engine_for("none", prompts, options)
    plain = plain_engine.generate(prompts, new)
    everywhere = torch.cat(
        [
            gaps(plain_engine, [*prompt, *sequence.generated[:-1]], len(prompt) - 1)
            for prompt, sequence in zip(prompts, plain.sequences, strict=True)
        ]
    )
    quantiles = torch.quantile(everywhere[:, 2], torch.tensor([0.01, 0.05, 0.5]))
    report: dict[str, Any] = {
        "gap_quantiles": {"1%": float(quantiles[0]), "5%": float(quantiles[1]),
                          "50%": float(quantiles[2])},
        "policies": {},
    }  # fmt: skip
    for policy in POLICIES[1:]:
        found = engine_for(policy, prompts, options).generate(prompts, new)
        parted = [
            parting(plain_engine, prompt, a.generated, b.generated)
            for prompt, a, b in zip(prompts, plain.sequences, found.sequences, strict=True)
        ]
        report["policies"][policy] = {
            "sequences": len(prompts),
            "tokens": found.generated_tokens,
            "tokens_per_round": found.tokens_per_round,
            "parted": [place for place in parted if place is not None],
        }
    return report


def token_windows(tokens: Any, *, batch: int, prefix_tokens: int) -> list[list[int]]:
    """Windows spread evenly over a text that is tokens already."""
    starts = np.linspace(0, len(tokens) - prefix_tokens, batch).astype(int)
    return [tokens[start : start + prefix_tokens].tolist() for start in starts]


def parting(
    engine: Any, prompt: list[int], plain: tuple[int, ...], other: tuple[int, ...]
) -> dict[str, Any] | None:
    """The first place where two continuations differ, and the target's choice there."""
    place = next((i for i, (a, b) in enumerate(zip(plain, other, strict=False)) if a != b), None)
    if place is None:
        return None
    tokens = [*prompt, *plain[:place]]
    first, second, gap = gaps(engine, tokens, len(tokens) - 1)[-1].tolist()
    best_two = {int(first), int(second)}
    return {
        "after": place,
        "gap": gap,
        "both_are_the_best_two": {plain[place], other[place]} == best_two,
    }


def show(report: dict[str, Any]) -> None:
    """One line a policy."""
    print("gaps of the two best logits everywhere:", report["gap_quantiles"])
    for policy, found in report["policies"].items():
        parted = found["parted"]
        line = f"{policy}: {found['tokens']} tokens, {len(parted)} of {found['sequences']} part"
        if parted:
            values = [place["gap"] for place in parted]
            ties = sum(place["both_are_the_best_two"] for place in parted)
            line += (
                f"; gap there median {statistics.median(values):.4f}, largest {max(values):.4f}; "
                f"both tokens the target's best two in {ties}"
            )
        print(line)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", type=Path, required=True)
    add("--random-weights", action="store_true")
    add("--input", type=Path, help="Text, JSON lines, or a .npy of tokens; random without.")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--dtype", default="bfloat16")
    add("--batch", type=int, default=16)
    add("--prefix-tokens", type=int, default=1024)
    add("--gen-tokens", type=int, default=256)
    add("--gamma", type=int, default=4)
    add("--kv-budget", type=int, default=256)
    add("--output", type=Path, help="JSON with provenance")
    options = parser.parse_args()
    report = compare(options)
    show(report)
    if options.output:
        facts = {"provenance": provenance(sys.argv[1:]), **report}
        options.output.write_text(json.dumps(facts) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
