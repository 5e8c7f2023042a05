"""Run ragged batches on this GPU: unequal prompts, sequences that end early, injected acceptance.

`python -m calibration.ragged_run --out FILE.jsonl --seconds N` draws scenarios with a seed and
plays each through the runtime's engine, on random weights and a random cache. It needs torch and
the runtime, neither pydantic nor the catalog. `calibration.ragged_compare` then plays the same
scenarios in the simulator and compares.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from calibration.microbench import provenance

TARGETS = ("llama-3.1-8b", "llama-2-7b", "tinyllama-1.1b")
KV_TOKENS = {"llama-3.1-8b": 700_000, "llama-2-7b": 170_000, "tinyllama-1.1b": 2_000_000}
MOST_CONTEXT = {"llama-3.1-8b": 65_536, "llama-2-7b": 16_384, "tinyllama-1.1b": 32_768}
SINK_TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class RaggedScenario:
    """One batch: a prompt and an output length a sequence, and StreamingLLM self-speculation."""

    target: str
    prompt_tokens: tuple[int, ...]
    output_tokens: tuple[int, ...]
    gamma: int  # 0 is plain decoding
    kv_budget_tokens: int
    rates: tuple[float, ...]
    seed: int


def draw(count: int, seed: int) -> list[RaggedScenario]:
    """Scenarios by seed: lengths log-uniform over a factor of 16, outputs over one of 8."""
    source = random.Random(seed)
    found = []
    for index in range(count):
        target = TARGETS[index % len(TARGETS)]
        batch = source.choice([4, 8, 16, 32, 64])
        most = min(MOST_CONTEXT[target], KV_TOKENS[target] // batch)
        prompts = [round(most * 16 ** -source.random()) for _ in range(batch)]
        outputs = [round(256 * 8 ** -source.random()) for _ in range(batch)]
        gamma = source.choice([0, 2, 3, 4, 5])
        first = source.uniform(0.6, 0.95)
        found.append(
            RaggedScenario(
                target=target,
                prompt_tokens=tuple(prompts),
                output_tokens=tuple(outputs),
                gamma=gamma,
                kv_budget_tokens=source.choice([256, 512, 1024]),
                rates=tuple(round(first * 0.97**position, 4) for position in range(gamma)),
                seed=seed + index,
            )
        )
    return found


class RaggedRun:
    """Plays scenarios, each target loaded once."""

    def __init__(self, shapes: Path, *, device: str = "cuda", dtype: str = "bfloat16") -> None:
        self.shapes, self.device, self.dtype = shapes, device, dtype
        self.loaded: tuple[str, Any, Any] | None = None  # name, model, decoder

    def play(self, scenario: RaggedScenario, rounds: int = 2) -> dict[str, Any]:
        """Play a scenario twice, so that the second finds every graph captured; its times."""
        import torch

        from runtime import (
            ALONE,
            BatchShape,
            EngineSetup,
            Ranks,
            RunPlan,
            SamplingParams,
            assemble,
            pretend_prefilled,
        )

        model, decoder = self._target(scenario.target)
        device, dtype = torch.device(self.device), getattr(torch, self.dtype)
        plan = RunPlan(
            draft="self" if scenario.gamma else "none",
            policy="streamingllm",
            gamma=scenario.gamma,
            kv_budget_tokens=scenario.kv_budget_tokens,
            sink_tokens=SINK_TOKENS,
            draft_tp=None,
        )
        setup = EngineSetup(
            target=model,
            draft=None,
            plan=plan,
            sampling=SamplingParams(seed=scenario.seed),
            rates=scenario.rates,
            dtype=dtype,
            device=device,
        )
        new = [count + 1 for count in scenario.output_tokens]  # the prefill's own token beside them
        shape = BatchShape(scenario.prompt_tokens, new)
        engine = assemble(setup, Ranks(ALONE, ALONE), shape, decoder, None)
        prompts = [[1] * count for count in scenario.prompt_tokens]
        with torch.inference_mode():
            for _ in range(rounds):
                pretend_prefilled(engine, prompts, new)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                times = _to_the_end(engine)
        return {"op": "ragged", "scenario": asdict(scenario), "unit": "s", **times}

    def _target(self, name: str) -> tuple[Any, Any]:
        import torch

        from runtime import ALONE, Model, read_config

        if self.loaded is None or self.loaded[0] != name:
            self.loaded = None
            model = Model(config=read_config(self.shapes / name))
            dtype = getattr(torch, self.dtype)
            decoder = model.load(ALONE, dtype, torch.device(self.device))
            self.loaded = name, model, decoder
        return self.loaded[1], self.loaded[2]


def _to_the_end(engine: Any) -> dict[str, Any]:
    """All rounds; when each ended and when each sequence did [s], and what was accepted."""
    finished: dict[int, float] = {}
    ended, accepted = [], []
    start = time.perf_counter()
    while engine.active:
        record = engine.round()
        now = time.perf_counter() - start
        ended.append(now)
        accepted.append(list(record.accepted))
        for sequence in engine.sequences:
            if sequence.finish is not None:
                finished.setdefault(sequence.index, now)
    return {
        "makespan_s": ended[-1],
        "round_ended_s": [round(value, 6) for value in ended],
        "finished_s": [round(finished[index], 6) for index in sorted(finished)],
        "accepted": accepted,
    }


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Play ragged batches on this GPU.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--count", type=int, default=15)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--shapes", type=Path, default=Path("scripts/shapes"))
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds
    runner = RaggedRun(options.shapes)
    scenarios = sorted(
        enumerate(draw(options.count, options.seed)), key=lambda pair: (pair[1].target, pair[0])
    )
    with options.out.open("w", encoding="utf-8") as file:
        header = provenance(f"python -m calibration.ragged_run --seed {options.seed}")
        file.write(json.dumps(header) + "\n")
        for index, scenario in scenarios:
            if time.monotonic() > deadline:
                print(f"out of time before scenario {index}", file=sys.stderr)
                break
            result = {"index": index, **runner.play(scenario)}
            file.write(json.dumps(result) + "\n")
            file.flush()
            print(f"{index}: {scenario.target} {result['makespan_s']:.3f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
