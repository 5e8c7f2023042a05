"""Compare speculative with plain greedy decoding on random cases, for a number of tokens.

    python tests/soak/lossless.py --tokens 100000 --dtype float32

Exits with 1 at the first token that differs, and prints the target's two largest logits there.
"""

import argparse
import random
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from tiny_models import (  # noqa: E402
    DRAFTS,
    FAMILIES,
    VOCAB,
    Case,
    build,
    random_prompts,
    run,
)

from runtime.engine.results import GenerationResult  # noqa: E402


def random_case(source: random.Random, dtype: torch.dtype) -> Case:
    """A random family, draft, γ, budget, page size, lengths and end tokens."""
    batch = source.randint(1, 16)
    return Case(
        family=source.choice(list(FAMILIES)),
        prompts=random_prompts(
            [source.randint(1, 160) for _ in range(batch)], source.randrange(1 << 30)
        ),
        new_tokens=[source.randint(1, 160) for _ in range(batch)],
        draft=source.choice(DRAFTS),
        gamma=source.randint(1, 8),
        budget=source.randint(16, 96),
        page_tokens=source.choice((1, 2, 4, 8)),
        seed=source.randrange(1 << 20),
        chunk_tokens=source.choice((16, 50, 256)),
        dtype=dtype,
        eos=frozenset(source.sample(range(VOCAB), source.choice((0, 0, 1, 2)))),
    )


def show_difference(case: Case, plain: GenerationResult, speculative: GenerationResult) -> None:
    """Print the first token that differs, and the target's two largest logits there."""
    for index, (a, b) in enumerate(zip(plain.sequences, speculative.sequences, strict=True)):
        pairs = list(zip(a.generated, b.generated, strict=False))
        at = next((i for i, pair in enumerate(pairs) if pair[0] != pair[1]), None)
        if at is not None:
            text = [*case.prompts[index], *a.generated[:at]]
            print(f"DIFFERS: sequence {index} token {at}: {best_two(case, text)}\n{case}")
            return


def best_two(case: Case, text: list[int]) -> list[float]:
    """The target's two largest logits after a text."""
    engine = build(replace(case.plain, prompts=[text], new_tokens=[1]))
    seen: list[torch.Tensor] = []
    verify = engine.sampler.verify_tokens
    engine.sampler.verify_tokens = lambda d, q, x: seen.append(x) or verify(d, q, x)  # type: ignore
    engine.start([text], [1])
    return [float(value) for value in seen[0][0, 0].topk(2).values]


def main() -> int:
    """Run cases until enough tokens have been compared."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    options = parser.parse_args()
    torch.set_num_threads(1)
    source, counts = random.Random(options.seed), Counter[str]()
    begun = time.monotonic()
    while counts["tokens"] < options.tokens:
        case = random_case(source, getattr(torch, options.dtype))
        plain, speculative = run(case.plain), run(case)
        if plain.sequences != speculative.sequences:
            show_difference(case, plain, speculative)
            return 1
        counts["tokens"] += speculative.generated_tokens
        counts["cases"] += 1
        counts[f"family {case.family}"] += 1
        counts[f"draft {case.draft}"] += 1
        counts[f"gamma {case.gamma}"] += 1
        counts["sequences ended by an end token"] += sum(
            s.finish == "eos" for s in speculative.sequences
        )
        for record in speculative.rounds:
            pairs = list(zip(record.accepted, record.kept_tokens, strict=True))
            counts["rounds of sequences"] += len(pairs)
            counts["all drafts accepted"] += sum(n == record.gamma for n, _ in pairs)
            counts["none accepted"] += sum(n == 0 for n, _ in pairs)
            counts["ended inside a round"] += sum(kept <= n for n, kept in pairs)
    for name, count in sorted(counts.items()):
        print(f"{name:<34}{count:>10,}")
    print(f"equal, {options.dtype}, {time.monotonic() - begun:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
