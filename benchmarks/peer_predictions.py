"""Predict the cases of a validation run with other tools, for `specroof validate records --peers`.

Run it in a separate virtual environment, outside the repository:

    python -m venv peers
    peers/bin/pip install aisimulate==0.13.0.dev202610270000000085 genz-llm==0.0.16
    PYTHONPATH=. peers/bin/python benchmarks/peer_predictions.py --cases cases.json --out peers.csv

With `--engine RECORDS` instead of `--cases` and `--out`, it prints each tool's errors for the plain
steps and n-gram rounds that `specroof calibrate engine` measured and held back.

It needs the case files and the catalog's datasheets. Every tool gets the same shapes, batch and
cached tokens: the context for T_T, and the draft's shape and KV budget for T_D. T_V is the tool's
prediction of a verification, and empty if it has none. Tools that are not installed are left out,
with a message.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from perfmodel import catalog
from perfmodel.units import GB, TFLOP

Times = dict[str, float | None]
PHASES = ("target_step_s", "verify_s", "draft_step_s")
Step = Callable[[str, int, int, int], float | None]  # model, batch, tokens, gamma: seconds
TABLES = {"h200": "h200_sxm", "h100-sxm": "h100_sxm"}  # of AISimulate
VLLM = "0.31.0"  # its latest tables


def aisimulate(models: dict[str, Any], gpu: str) -> Step:
    """Seconds of a decode step from AISimulate's tables; a verification is that of n-gram drafts.

    An n-gram draft costs nothing on the GPU, so its step is the verification alone.
    """
    from aisimulate_core.sdk import common, config
    from aisimulate_core.sdk.backends.factory import get_backend
    from aisimulate_core.sdk.models import get_model
    from aisimulate_core.sdk.perf_database import get_database
    from aisimulate_core.sdk.speculation import SpeculationConfig

    backend = get_backend("vllm")
    database = get_database(TABLES[gpu], "vllm", VLLM)
    folder, built = Path(tempfile.mkdtemp()), {}

    def model(name: str, gamma: int) -> Any:
        if (name, gamma) not in built:
            place = folder / name
            place.mkdir(exist_ok=True)
            (place / "config.json").write_text(json.dumps(hf_config(models[name])))
            drafts = SpeculationConfig("ngram", {"num_speculative_tokens": gamma})
            settings = config.ModelConfig(
                tp_size=1,
                gemm_quant_mode=common.GEMMQuantMode.bfloat16,
                kvcache_quant_mode=common.KVCacheQuantMode.bfloat16,
                fmha_quant_mode=common.FMHAQuantMode.bfloat16,
                speculation=drafts if gamma else None,
            )
            built[name, gamma] = get_model(str(place), settings, "vllm")
        return built[name, gamma]

    def step(name: str, batch: int, tokens: int, gamma: int) -> float:
        asked = config.RuntimeConfig(batch_size=batch, beam_width=1, isl=tokens, osl=2)
        found = backend.run_static(model(name, gamma), database, asked, mode="static_gen")
        return 1e-3 * sum(found._generation_latency_dict.values())

    return step


def genz_system(gpu: str) -> dict[str, Any]:
    """GenZ's description of a catalog GPU: TFLOP/s, GB, GB/s, and one-way GB/s of its link."""
    sheet, link = catalog.gpu(gpu), catalog.default_machine(gpu).link
    assert sheet.datasheet_memory_bytes is not None  # every file of the catalog states it
    return {
        "Flops": sheet.peak_flops / TFLOP,
        "Memory_size": sheet.datasheet_memory_bytes / GB,
        "Memory_BW": sheet.hbm_bandwidth / GB,
        "ICN": link.bandwidth / GB,
        "real_values": True,
    }


def genz(models: dict[str, Any], gpu: str) -> Step:
    """Seconds of a decode step from GenZ's roofline at full efficiency; it has no verification."""
    from GenZ import decode_moddeling
    from GenZ.Models.default_models import ModelConfig

    def config(shape: dict[str, Any]) -> Any:
        return ModelConfig(
            model=shape["name"],
            vocab_size=shape["vocab"],
            hidden_size=shape["hidden"],
            intermediate_size=shape["ffn_hidden"],
            num_ffi=2,
            num_decoder_layers=shape["layers"],
            num_attention_heads=shape["query_heads"],
            head_dim=shape["head_dim"],
            num_key_value_heads=shape["kv_heads"],
        )

    def step(name: str, batch: int, tokens: int, gamma: int) -> float | None:
        if gamma:
            return None
        found = decode_moddeling(
            model=config(models[name]),
            batch_size=batch,
            Bb=1,
            input_tokens=tokens,
            output_tokens=0,
            system_name=genz_system(gpu),
            system_eff=1,
            bits="bf16",
        )
        return 1e-3 * float(found["Latency"])

    return step


def hf_config(shape: dict[str, Any]) -> dict[str, Any]:
    """The config.json of a Llama model, or of a Qwen2 model if the projections have biases."""
    qwen = shape["qkv_bias"]
    return {
        "architectures": ["Qwen2ForCausalLM" if qwen else "LlamaForCausalLM"],
        "model_type": "qwen2" if qwen else "llama",
        "num_hidden_layers": shape["layers"],
        "hidden_size": shape["hidden"],
        "num_attention_heads": shape["query_heads"],
        "num_key_value_heads": shape["kv_heads"],
        "head_dim": shape["head_dim"],
        "intermediate_size": shape["ffn_hidden"],
        "vocab_size": shape["vocab"],
        "max_position_embeddings": shape["max_context_tokens"],
        "tie_word_embeddings": shape["tied_embeddings"],
        "rms_norm_eps": 1e-5,
        "rope_theta": shape["rope_theta"],
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
    }


def times_of(case: dict[str, Any], step: Step) -> Times:
    """T_T, T_V and T_D of one case."""
    plan, batch, tokens = case["plan"], case["batch"], case["context_tokens"]
    draft = case["target"] if plan["draft"] == "self" else plan["draft"]
    read = tokens if plan["kv_budget_tokens"] is None else plan["kv_budget_tokens"]
    return {
        "target_step_s": step(case["target"], batch, tokens, 0),
        "verify_s": step(case["target"], batch, tokens, plan["gamma"]),
        "draft_step_s": None if draft == "none" else step(draft, batch, read, 0),
    }


def engine_errors(path: Path, gpu: str) -> None:
    """Print errors in percent for measured steps of an engine: medians, and the signed worst."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    points = [line for line in lines if line.get("op") == "engine-point"]
    targets = {line["point"]["setup"]["target"] for line in points}
    models = {name: asdict(catalog.model(name)) for name in targets}
    for peer, number, make in installed():
        with contextlib.redirect_stdout(io.StringIO()):
            step, errors = make(models, gpu), dict[str, list[float]]()
            for line in points:
                setup, batch = line["point"]["setup"], line["point"]["batch"]
                held_back = line["point"]["held_back"]
                if not held_back or setup["method"] not in ("plain", "ngram"):
                    continue
                tokens = round(line["context_tokens"])
                seconds = step(setup["target"], batch, tokens, setup["gamma"])
                if seconds is not None:
                    found = 100.0 * (seconds / line["seconds"] - 1.0)
                    errors.setdefault(setup["method"], []).append(found)
        for method, found in errors.items():
            print(
                f"{peer} {number}: {method:6} {len(found)} points, median "
                f"{median(map(abs, found)):.1f} (worst {max(found, key=abs):+.1f}), "
                f"signed median {median(found):+.1f}"
            )


PEERS = {
    "AISimulate": ("aisimulate", aisimulate),
    "GenZ": ("genz-llm", genz),
}


def installed() -> Iterator[tuple[str, str, Callable[[dict[str, Any], str], Step]]]:
    """Name, version and maker of each tool; says on stderr which ones are not installed."""
    for peer, (package, make) in PEERS.items():
        try:
            yield peer, version(package), make
        except PackageNotFoundError:
            print(f"{peer}: {package} is not installed; left out", file=sys.stderr)


def main() -> int:
    """Write one line per tool and case; report on stderr what is not installed or fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cases", type=Path, nargs="+", default=[])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--engine", type=Path)
    parser.add_argument("--gpu", choices=sorted(TABLES), default="h200")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    if options.engine is not None:
        engine_errors(options.engine, options.gpu)
        return 0
    if options.out is None or not options.cases:
        parser.error("give --cases and --out, or --engine")
    files = [json.loads(path.read_text(encoding="utf-8")) for path in options.cases]
    models = {name: shape for file in files for name, shape in file["models"].items()}
    cases = [case for file in files for case in file["cases"]]
    lines, sources = [], []
    for peer, number, make in installed():
        with contextlib.redirect_stdout(io.StringIO()):  # both print as they go
            step = make(models, options.gpu)
            found, failed = {}, 0
            for case in cases:
                try:
                    found[case["id"]] = times_of(case, step)
                except Exception as error:  # whatever a peer cannot do is a hole in its column
                    failed += 1
                    print(f"{peer}, {case['id']}: {error}", file=sys.stderr)
        sources.append(f"{PEERS[peer][0]}=={number} ({len(found)} of {len(found) + failed} cases)")
        for name, times in found.items():
            cells = ["" if times[p] is None else f"{times[p]:.6g}" for p in PHASES]
            lines.append(",".join([peer, name, *cells]))
    head = [
        f"# {'; '.join(sources)}; {options.gpu} as each tool knows it, bf16, TP 1.",
        "# benchmarks/peer_predictions.py; T_V is what the tool prices for gamma extra tokens.",
        ",".join(["peer", "id", *PHASES]),
    ]
    options.out.write_text("\n".join([*head, *lines]) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
