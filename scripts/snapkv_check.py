"""Where a SnapKV draft on a GPU leaves what the policy says, step by step.

    python scripts/snapkv_check.py --model DIR --input TEXT [--device cuda] [--batch 8] ...

Verification hides a bad draft: outputs stay right and only fewer tokens a round come out. This
prints, in the order of the steps, how far each is from float32 and plain torch on the same device:
the window's queries, the tokens that they choose, the pages gathered, one round of drafts by every
way of running it, whether verification leaves the drafts alone, and the tokens a round as
generation goes on. The first that is off is the fault.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `runtime`, installed or not

from runtime import (
    ALONE,
    BatchShape,
    EngineSetup,
    Model,
    PagedCache,
    PageTable,
    Ranks,
    ReferenceAttention,
    RunPlan,
    WindowQueries,
    build_engine,
    pages_for,
    read_config,
)
from runtime.dataset import TextTokenizer, read_prompts
from runtime.passes import EagerPasses
from runtime.prefill import PromptJob, prefill
from runtime.snapkv import kept_tokens, prompt_scores

POOL, WINDOW = 1, 32


def engine_for(options: argparse.Namespace, prompts: list[list[int]]) -> Any:
    """An engine with a SnapKV draft, as a run builds it."""
    plan = RunPlan(draft="self", policy="snapkv", gamma=options.gamma, sink_tokens=0,
                   kv_budget_tokens=options.kv_budget, draft_tp=None)  # fmt: skip
    setup = EngineSetup(
        target=Model(config=read_config(options.model), folder=options.model),
        draft=None,
        plan=plan,
        dtype=getattr(torch, options.dtype),
        device=torch.device(options.device),
        snapkv_window=WINDOW,
        snapkv_pool=POOL,
    )
    shape = BatchShape([len(p) for p in prompts], [options.gen_tokens] * len(prompts))
    return build_engine(setup, Ranks(ALONE, ALONE), shape)


def reference_prefill(
    options: argparse.Namespace, prompt: list[int]
) -> tuple[list[Tensor], list[Tensor]]:
    """Per layer, the window's queries and the prompt's keys, in float32 and plain torch."""
    config, device = read_config(options.model), torch.device(options.device)
    decoder = Model(config=config, folder=options.model).load(ALONE, torch.float32, device)
    cache = PagedCache(config, kv_heads=decoder.kv_heads, pages=pages_for(len(prompt), 16),
                       page_tokens=16, dtype=torch.float32, device=device)  # fmt: skip
    seen, job = WindowQueries([len(prompt)], config.layers, WINDOW), PromptJob(prompt, PageTable())
    prefill(decoder, cache, ReferenceAttention(cache), [job], chunk_tokens=2048, observer=seen)
    slots = _slots(list(job.table.pages), 16, len(prompt), device)
    keys = [cache.slots(layer)[0][slots] for layer in range(config.layers)]
    return seen.of(0), keys


@torch.inference_mode()
def check(options: argparse.Namespace) -> None:
    """Every step, a line each."""
    tokens = options.prefix_tokens
    if options.input.suffix == ".npy":
        text = np.load(options.input)
        starts = np.linspace(0, len(text) - tokens, options.batch).astype(int)
        prompts = [text[start : start + tokens].tolist() for start in starts]
    else:
        prompts = read_prompts(options.input, batch=options.batch, prefix_tokens=tokens,
                               tokenizer=TextTokenizer(options.model))  # fmt: skip
    engine = engine_for(options, prompts)
    policy, queries = engine.drafter.policy, {}
    admit = policy.admit

    def watched(sequence: Any, found: list[Tensor]) -> None:
        queries[sequence.index] = found
        admit(sequence, found)

    policy.admit = watched
    engine.start(prompts, [options.gen_tokens] * len(prompts))
    check_choice(options, engine, policy, queries, prompts)
    check_drafts(engine, options.gamma)
    changed = watch_verification(engine)
    rounds: list[float] = []
    while engine.active:
        rounds.append(statistics.fmean(n + 1 for n in engine.round().accepted))
    quarters = [part for part in np.array_split(np.array(rounds), 4) if len(part)]
    shown = ", ".join(f"{part.mean():.2f}" for part in quarters)
    print(f"rounds whose verification changed the drafts: {sum(changed)} of {len(changed)}")
    print(f"tokens a round, a quarter of the rounds each: {shown}")


def watch_verification(engine: Any) -> list[bool]:
    """Whether each round to come leaves other drafts behind than it was given."""
    changed: list[bool] = []
    verify = engine.passes.verify

    def watched(layout: Any, last: Any, drafts: Tensor) -> Tensor:
        before = drafts.clone()
        logits: Tensor = verify(layout, last, drafts)
        changed.append(not torch.equal(drafts, before))
        return logits

    engine.passes.verify = watched
    return changed


def check_choice(
    options: argparse.Namespace,
    engine: Any,
    policy: Any,
    queries: dict[int, list[Tensor]],
    prompts: list[list[int]],
) -> None:
    """Queries and choice of the first and last prompt against float32, pages of all exactly."""
    cache, same = engine.cache, True
    for index in sorted({0, len(prompts) - 1}):
        wanted, wanted_keys = reference_prefill(options, prompts[index])
        errors, shared = [], []
        for layer, query in enumerate(queries[index]):
            gap = (query.float() - wanted[layer]).norm() / wanted[layer].norm()
            errors.append(float(gap))
            ours = _kept(query, _prompt_keys(engine, index, layer), engine, policy)
            theirs = _kept(wanted[layer], wanted_keys[layer], engine, policy)
            both = [np.isin(a, b).mean() for a, b in zip(ours.cpu(), theirs.cpu(), strict=True)]
            shared.append(float(np.mean(both)))
        print(
            f"prompt {index}: queries off by {max(errors):.3f} at most; tokens chosen as in "
            f"float32: {min(shared):.3f} of a layer at least, {np.mean(shared):.3f} in the mean"
        )
    for sequence in engine.active:
        front = list(policy.view(sequence).front)
        gathered = _slots(front, cache.page_tokens, len(front) * cache.page_tokens, cache)
        for layer, query in enumerate(queries[sequence.index]):
            keys = _prompt_keys(engine, sequence.index, layer)
            kept = _kept(query, keys, engine, policy)
            heads = torch.arange(keys.shape[1], device=keys.device)
            same &= torch.equal(cache.slots(layer)[0][gathered], keys[kept.T, heads])
    print(f"gathered pages hold the chosen keys: {same}")


def check_drafts(engine: Any, gamma: int) -> None:
    """One round of drafts by the engine's passes, step by step, and by plain attention."""
    active, drafter = engine.active, engine.drafter
    for sequence in active:
        engine.cache.reserve(sequence.table, gamma + 1)
    usual = drafter.passes
    found = {"as the engine runs": drafter.propose(active, gamma).tokens.clone()}
    for name, backend in (
        ("step by step", engine.backend),
        ("plain attention", ReferenceAttention(engine.cache)),
    ):
        drafter.passes = EagerPasses(engine.target, backend)
        found[name] = drafter.propose(active, gamma).tokens.clone()
    drafter.passes = usual
    plain = found.pop("plain attention")
    for name, tokens in found.items():
        share = (tokens == plain).float().mean(0).tolist()
        print(f"drafts {name}, equal to plain attention's: " + ", ".join(f"{x:.2f}" for x in share))


def _prompt_keys(engine: Any, index: int, layer: int) -> Tensor:
    sequence = engine.sequences[index]
    slots = _slots(list(sequence.table.pages), engine.cache.page_tokens, sequence.prompt_tokens,
                   engine.cache)  # fmt: skip
    keys: Tensor = engine.cache.slots(layer)[0][slots]
    return keys


def _kept(query: Tensor, keys: Tensor, engine: Any, policy: Any) -> Tensor:
    """As `snapkv.gather_pages` chooses: (KV heads, kept)."""
    page, prompt = engine.cache.page_tokens, len(keys)
    tail, seen = prompt // page * page, prompt - len(query)
    count = (policy.budget_tokens - prompt % page) // page * page
    scores = prompt_scores(query, keys, POOL)[:, : min(seen, tail)]
    return kept_tokens(scores, count, range(min(seen, tail), tail))


def _slots(pages: list[int], page: int, tokens: int, where: Any) -> Tensor:
    device = where.storage.device if isinstance(where, PagedCache) else where
    place = torch.arange(tokens, device=device)
    return torch.tensor(pages, device=device)[place // page] * page + place % page


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--model", type=Path, required=True)
    add("--input", type=Path, required=True, help="Text, JSON lines, or a .npy of tokens.")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--dtype", default="bfloat16")
    add("--batch", type=int, default=8)
    add("--prefix-tokens", type=int, default=1024)
    add("--gen-tokens", type=int, default=256, help="Enough to outgrow a draft's first graph.")
    add("--gamma", type=int, default=4)
    add("--kv-budget", type=int, default=256)
    check(parser.parse_args())
    return 0


if __name__ == "__main__":
    sys.exit(main())
