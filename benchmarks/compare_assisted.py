"""Compare tokens per second of transformers' assisted generation and of this engine.

    python benchmarks/compare_assisted.py --model DIR --draft DIR --input book.txt --device cuda
    python benchmarks/compare_assisted.py --random tiny            # seeded weights, any machine

Both decode one sequence greedily, with the same weights, prompt and number of tokens. transformers
runs plain decoding and assisted generation; the engine runs plain decoding, the assistant as a
standalone draft, and self-speculation over a StreamingLLM cache. transformers chooses the number of
drafts per round, unless --gamma fixes it. Without --draft, the target is also the assistant. Times
exclude the prompt; for transformers, the time of generating one token is subtracted. The results
are printed at the end, and as they arrive on stderr if that is a terminal.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # `runtime` lies beside this folder, installed or not


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A target with seeded weights, whose first `draft_layers` layers are the draft.

    Later layers change the result only a little (`damping`), so the two often agree, as trained
    models do and independent random ones would not.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    draft_layers: int
    damping: float = 0.1


SHAPES = {
    "tiny": Shape(layers=3, hidden=64, heads=4, kv_heads=2, ffn=96, vocab=256, draft_layers=1),
    "1b": Shape(
        layers=16, hidden=2048, heads=32, kv_heads=8, ffn=8192, vocab=128256, draft_layers=2
    ),
    "8b": Shape(
        layers=32, hidden=4096, heads=32, kv_heads=8, ffn=14336, vocab=128256, draft_layers=4
    ),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """Tokens of one method, and the seconds for all of them but the first."""

    who: str
    tokens: list[int]
    decode_s: float
    note: str = ""

    @property
    def tokens_per_s(self) -> float:
        """Decoded tokens per second."""
        return (len(self.tokens) - 1) / self.decode_s


# ---- transformers ------------------------------------------------------------------------------


def assisted(options: argparse.Namespace, folders: list[Path], prompt: list[int]) -> list[Outcome]:
    """transformers, with plain decoding and with the assistant."""
    import torch
    import transformers

    dtype = getattr(torch, options.dtype)
    target, draft = (
        transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        .to(options.device)
        .eval()
        for folder in folders
    )
    inputs = torch.tensor([prompt], device=options.device)

    def generate(count: int, **more: Any) -> list[int]:
        with torch.inference_mode():
            said = target.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                pad_token_id=0,
                **more,
            )
        return [int(token) for token in said[0, len(prompt) :]]

    _say("weights loaded, transformers runs")
    found = [_timed("transformers, plain", generate, options)]
    with_draft = partial(generate, assistant_model=draft)
    found.append(_timed("transformers, assisted", with_draft, options))
    draft.generation_config.num_assistant_tokens = options.gamma
    draft.generation_config.num_assistant_tokens_schedule = "constant"
    draft.generation_config.assistant_confidence_threshold = 0.0
    who = f"transformers, assisted, {options.gamma} drafts"
    found.append(_timed(who, with_draft, options))
    return found


def _timed(who: str, generate: Callable[[int], list[int]], options: argparse.Namespace) -> Outcome:
    """The shortest time for all tokens, minus the shortest for one token."""
    generate(2)  # warm
    first = min(_seconds(lambda: generate(1), options.device)[0] for _ in range(options.repeats))
    runs = [
        _seconds(lambda: generate(options.gen_tokens), options.device)
        for _ in range(options.repeats)
    ]
    whole, tokens = min(runs, key=lambda run: run[0])
    return _found(Outcome(who, tokens, whole - first))


def _found(outcome: Outcome) -> Outcome:
    _say(f"{outcome.who}: {outcome.tokens_per_s:.1f} tokens/s")
    return outcome


def _say(line: str) -> None:
    """Print progress if stderr is a terminal."""
    if sys.stderr.isatty():
        print(line, file=sys.stderr, flush=True)


def _seconds(work: Callable[[], list[int]], device: str) -> tuple[float, list[int]]:
    import torch

    begun = time.perf_counter()
    tokens = work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun, tokens


# ---- the engine --------------------------------------------------------------------------------


def ours(options: argparse.Namespace, folders: list[Path], prompt: list[int]) -> list[Outcome]:
    """This engine: plain decoding, with a standalone draft, and with self-speculation."""
    import torch

    from runtime import ALONE, BatchShape, EngineSetup, Model, Ranks, build_engine, read_config
    from runtime.bench.plan import DraftPlan

    models = [Model(config=read_config(folder), folder=folder) for folder in folders]
    device = torch.device(options.device)
    ways = {
        "specroof, plain": ("none", "full"),
        "specroof, standalone draft": ("standalone", "full"),
        "specroof, self-draft StreamingLLM": ("self", "streamingllm"),
    }
    found = []
    for who, (draft, policy) in ways.items():
        plan = DraftPlan(
            draft=draft,
            policy=policy,
            gamma=0 if draft == "none" else options.gamma,
            kv_budget_tokens=None if policy == "full" else options.kv_budget,
            sink_tokens=16,
            draft_tp=None,
        )
        setup = EngineSetup(
            target=models[0],
            draft=models[-1] if draft == "standalone" else None,
            plan=plan,
            dtype=getattr(torch, options.dtype),
            device=device,
        )
        shape = BatchShape([len(prompt)], [options.gen_tokens])
        engine = build_engine(setup, Ranks(ALONE, ALONE), shape)
        runs = [engine.generate([prompt], [options.gen_tokens]) for _ in range(1 + options.repeats)]
        result = min(runs[1:], key=lambda run: run.decode_s)  # the first one warms
        rates = " ".join("-" if r is None else f"{r:.2f}" for r in result.acceptance_per_position)
        tokens = list(result.sequences[0].generated)
        found.append(_found(Outcome(who, tokens, result.decode_s, rates)))
    return found


# ---- weights and prompt ------------------------------------------------------------------------


def seeded_folders(scratch: Path, shape: Shape, options: argparse.Namespace) -> list[Path]:
    """Target and draft with seeded weights, as transformers saves them."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    fields = {
        "hidden_size": shape.hidden, "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads, "intermediate_size": shape.ffn,
        "vocab_size": shape.vocab, "max_position_embeddings": 131_072, "eos_token_id": None,
        "initializer_range": shape.hidden**-0.5, "dtype": options.dtype,
    }  # fmt: skip
    torch.manual_seed(options.seed)
    torch.set_default_dtype(getattr(torch, options.dtype))
    try:
        with torch.device(options.device):
            target = LlamaForCausalLM(LlamaConfig(num_hidden_layers=shape.layers, **fields))
            draft = LlamaForCausalLM(LlamaConfig(num_hidden_layers=shape.draft_layers, **fields))
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for layer in target.model.layers[shape.draft_layers :]:
            layer.self_attn.o_proj.weight.mul_(shape.damping)
            layer.mlp.down_proj.weight.mul_(shape.damping)
    kept = draft.state_dict().keys()
    draft.load_state_dict({k: v for k, v in target.state_dict().items() if k in kept})
    folders = [scratch / "target", scratch / "draft"]
    for folder, model in zip(folders, (target, draft), strict=True):
        model.save_pretrained(folder)
    return folders


def read_prompt(options: argparse.Namespace, folder: Path) -> list[int]:
    """The tokens of the prompt: from the text, or random ones."""
    from runtime import read_config
    from runtime.model.prompts import TextTokenizer, random_prompts, read_prompts

    lengths = {"batch": 1, "prompt_tokens": options.prefix_tokens}
    vocab = read_config(folder).vocab
    if options.input is None:
        return random_prompts(**lengths, vocab=vocab, seed=options.seed)[0]
    tokenizer = TextTokenizer(folder)
    return read_prompts(options.input, **lengths, tokenizer=tokenizer, vocab=vocab)[0]


def compare(options: argparse.Namespace, folders: list[Path]) -> dict[str, Any]:
    """Run both engines on the same prompt, and check whether their tokens agree."""
    from runtime.bench.provenance import provenance

    prompt = read_prompt(options, folders[0])
    found = [*assisted(options, folders, prompt), *ours(options, folders, prompt)]
    plain = found[0].tokens
    rows = []
    for outcome in found:
        pairs = zip(plain, outcome.tokens, strict=True)
        parted = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        rows.append(
            {
                "who": outcome.who,
                "tokens_per_s": outcome.tokens_per_s,
                "acceptance_per_position": outcome.note,
                "same_tokens": parted is None,
                "parts_at": parted,
            }
        )
    options_said = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    command = ["benchmarks/compare_assisted.py", *sys.argv[1:]]
    return {"options": options_said, "provenance": provenance(command), "rows": rows}


def main() -> int:
    """Compare, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", type=Path, help="Folder with config.json and safetensors.")
    source.add_argument("--random", choices=SHAPES, help="Use random weights of this shape.")
    parser.add_argument("--draft", type=Path, help="Draft model. Default: the target.")
    parser.add_argument("--input", type=Path, help="Text file. Default: random tokens.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--prefix-tokens", type=int, default=256)
    parser.add_argument("--gen-tokens", type=int, default=64)
    parser.add_argument("--gamma", type=int, default=4)
    parser.add_argument("--kv-budget", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.gen_tokens < 2:
        parser.error("--gen-tokens must be at least 2: the first one is the prompt's")
    import transformers

    from runtime import EngineError

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="specroof-random-") as scratch:
        folders = [options.model, options.draft or options.model]
        try:
            if options.random is not None:
                folders = seeded_folders(Path(scratch), SHAPES[options.random], options)
            report = compare(options, folders)
        except EngineError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code
    if options.json:
        print(json.dumps(report))
        return 0
    print(f"{'':<36}{'tokens/s':>10}  {'same tokens':<14}acceptance per position")
    for row in report["rows"]:
        same = "yes" if row["same_tokens"] else f"to token {row['parts_at']}"
        rates = row["acceptance_per_position"]
        print(f"{row['who']:<36}{row['tokens_per_s']:>10.1f}  {same:<14}{rates}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
