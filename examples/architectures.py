"""Print the tables of docs/results/architectures.md: mixtures of experts, MLA and windows.

python examples/architectures.py
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import specroof
from calibration.engines.reading import read_engine_records
from calibration.validate.served import faster_groups, served_groups
from perfmodel import RoundEstimate, catalog, estimate, speedup_interval
from perfmodel.passes.forward import forward_pass
from perfmodel.passes.parts import GROUPS
from perfmodel.passes.rank import Rank
from perfmodel.specs.layers import Experts
from perfmodel.speculation import target_rank
from perfmodel.speculation.uncertainty.intervals import SKEW, alpha_interval

MIXTURE, DENSE = "qwen3-30b-a3b", "llama-3.2-3b"  # 3.4 and 3.2 billion active parameters
BATCHES, CONTEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256), (1000, 4000, 16_000, 64_000)
H100, H200 = {"gpu": "h100-sxm"}, {"gpu": "h200"}
TARGETS: list[tuple[str, dict[str, Any], str]] = [
    ("deepseek-v3", H200 | {"tp": 8}, "mtp"),
    ("deepseek-v3", H200 | {"tp": 8}, "eagle3"),
    ("deepseek-v3", H200 | {"tp": 8, "ep": 8}, "mtp"),
    ("deepseek-v3", H200 | {"tp": 8, "ep": 8, "dp": 8}, "mtp"),
    ("qwen3-30b-a3b", H100 | {"tp": 1}, "eagle3"),
    ("qwen3-30b-a3b", H100 | {"tp": 4}, "eagle3"),
    ("gpt-oss-120b", H100 | {"tp": 1}, "eagle3"),
    ("gpt-oss-120b", H100 | {"tp": 4}, "eagle3"),
    ("gemma-3-27b", H100 | {"tp": 1}, "eagle3"),
    ("gemma-3-27b", H100 | {"tp": 1}, "self"),
]
POINTS = ((1, 3), (32, 1), (32, 3))  # batch, γ
MEASURED = Path(__file__).parents[1] / "calibration" / "measured"
PUBLISHED = Path(__file__).parents[1] / "tests" / "perfmodel" / "specs" / "published_sizes.csv"
NAMES = {"VLLM": "vLLM", "TRTLLM": "TensorRT-LLM"}


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def header(*names: str) -> list[str]:
    return [row(*names), row(*["---"] * len(names))]


def ratio(point: RoundEstimate) -> float:
    """T_V over T_T."""
    return float(point.verify.total_s / point.target_step.total_s)


def skewed(point: RoundEstimate) -> RoundEstimate:
    """The same with experts that are chosen unequally."""
    target = point.scenario.target
    assert target.experts is not None
    experts = replace(target.experts, skew=SKEW)
    return estimate(replace(point.scenario, target=replace(target, experts=experts)))


def sizes() -> Iterator[str]:
    """Sizes of all models of the catalog, and which of them are published."""
    published: dict[str, dict[str, str]] = {}
    for line in csv.DictReader(PUBLISHED.read_text(encoding="utf-8").splitlines()):
        published.setdefault(line["model"], {})[line["quantity"]] = line["source"]
    columns = "parameters (billion)", "active", "KV bytes per token", "transformers' cache after"
    yield from header("model", *columns, "published", "source of the published KV")
    for name in catalog.model_names():
        spec, found = catalog.model(name), published.get(name, {})
        yield row(
            name,
            f"{1e-9 * spec.parameters:.3f}",
            f"{1e-9 * spec.active_parameters:.3f}",
            f"{spec.kv_bytes_per_token_per_rank(1):,.0f}",
            "1 token" if spec.linear else "1 and 9,000 tokens",
            ", ".join("KV" if quantity == "kv" else quantity for quantity in found),
            found.get("kv", ""),
        )


def verification() -> Iterator[str]:
    """The experts read and T_V over T_T, by batch."""
    ratios = f"T_V/T_T {MIXTURE}", "of which experts", "if skewed", DENSE
    yield from header("batch", "experts read by T_T", "by T_V", *ratios)
    for batch in BATCHES:
        at = H100 | {"batch": batch, "prompt_tokens": 4000, "draft": "eagle3", "gamma": 3}
        mixed, dense = (specroof.predict(t, **at, acceptance=0.7) for t in (MIXTURE, DENSE))
        experts = mixed.scenario.target.experts
        assert experts is not None
        read = (f"{float(experts.read(batch * tokens)):.0f}" for tokens in (1, 4))
        step, verify = mixed.target_step, mixed.verify
        added = verify.part("experts").seconds - step.part("experts").seconds
        share = f"+{float(added / step.total_s):.2f}"
        both = ratio(skewed(mixed)), ratio(dense)
        yield row(batch, *read, f"{ratio(mixed):.2f}", share, *(f"{r:.2f}" for r in both))


def break_even() -> Iterator[str]:
    """α at which EAGLE-3 breaks even at γ = 3, by batch and context, of both models."""
    yield from header("batch", *(f"{tokens:,}" for tokens in CONTEXTS))
    for batch in BATCHES:
        cells = []
        for tokens in CONTEXTS:
            at = H100 | {"batch": batch, "prompt_tokens": tokens, "draft": "eagle3", "gamma": 3}
            both = (specroof.predict(t, **at, acceptance=0.7) for t in (MIXTURE, DENSE))
            cells.append(" / ".join(f"{float(point.break_even_alpha):.2f}" for point in both))
        yield row(batch, *cells)


def one_expert() -> Iterator[str]:
    """The time of a mixture's only expert over that of a dense MLP of its shape, by rows."""
    rows = (1, 16, 128, 512)
    yield from header("GPU", *(f"{n} row{'s' if n > 1 else ''}" for n in rows), "source")
    for gpu in ("a100-sxm-80gb", "h100-sxm", "h200", "l40s", "b200"):
        point = specroof.predict("llama-3.1-8b", gpu=gpu, engine="kernels", draft="none", batch=1)
        dense = target_rank(point.scenario)
        width = dense.spec.ffn_hidden
        experts = Experts(layers=dense.spec.layers, count=1, top_k=1, width=width)
        mixture = replace(dense, spec=replace(dense.spec, experts=experts))
        ratios = []
        for batch in rows:
            mlp, mixed = (
                forward_pass(rank, batch=batch, context_tokens=1000) for rank in (dense, mixture)
            )
            of_mlp = mlp.part("gate_up_proj").seconds + mlp.part("down_proj").seconds
            ratios.append(f"{float(mixed.part('experts').seconds / of_mlp):.1f}")
        yield row(gpu, *ratios, shortened(curve_sources(mixture)["experts"]))


def gpus_of(values: dict[str, Any]) -> str:
    groups = "".join(f", {key.upper()} {values[key]}" for key in ("ep", "dp") if key in values)
    return f"{values['tp']} x {values['gpu'].split('-')[0].upper()}{groups}"


def targets() -> Iterator[str]:
    """Predictions for models that the engine does not run."""
    columns = "T_T (ms)", "T_V/T_T", "T_D (ms)", "α to break even", "α", "speedup", "memory"
    yield from header("target", "GPUs", "weights, experts", "draft, γ", "batch", *columns)
    for target, values, draft in TARGETS:
        for batch, gamma in POINTS:
            at = {**values, "batch": batch, "prompt_tokens": 8000, "draft": draft, "gamma": gamma}
            point = specroof.predict(target, **at)
            types = point.scenario.target_types
            known, gain = alpha_interval(point.scenario), "unknown"
            if known is not None:
                interval = speedup_interval(point.scenario)
                assert interval is not None
                gain = f"{interval.value:.2f} ({interval.low:.2f}-{interval.high:.2f})"
            yield row(
                target,
                gpus_of(values),
                f"{types.weights}, {types.experts}",
                f"{draft}, {gamma}",
                batch,
                f"{1e3 * float(point.target_step.total_s):.2f}",
                f"{ratio(point):.2f}",
                f"{1e3 * float(point.draft_step_s):.2f}",
                f"{float(point.break_even_alpha):.2f}",
                "unknown" if known is None else f"{known[1]:.2f} ({known[0]:.2f}-{known[2]:.2f})",
                gain,
                f"{float(point.memory.fraction):.0%}",
            )


def sources() -> Iterator[str]:
    """Where the curves of each target come from, and the origin of the predicted times."""
    yield from header("target", "GPUs", "dense layers", "experts", "attention", "between GPUs")
    for target, values in {(t, gpus_of(v)): (t, v) for t, v, _ in TARGETS}.values():
        point = specroof.predict(target, **values, batch=32, prompt_tokens=8000, draft="none")
        found = curve_sources(target_rank(point.scenario))
        cells = []
        for group in ("linear", "experts", "attention", "comm"):
            origins = {
                part.origin_at() for part in point.target_step.parts if GROUPS[part.name] == group
            }
            text = f"{shortened(found[group])}, {' and '.join(sorted(origins))}"
            cells.append(text if origins else "")
        yield row(target, gpus_of(values), *cells)


def curve_sources(rank: Rank) -> dict[str, str]:
    """The source of the curves by group of parts."""
    curves, latent, weights = rank.curves, rank.latent_curve, rank.weight_dtype
    dense = curves.quantised[weights].curve if weights in curves.quantised else curves.gemm
    experts = curves.experts_curve(rank.expert_dtype)
    return {
        "linear": dense.source,
        "experts": experts.source if experts else "dense layers",
        "attention": latent.source if latent else curves.attention.source,
        "comm": curves.collectives.source,
    }


def shortened(source: str) -> str:
    """The engine or library and the GPU that a source names."""
    gpu = re.search(r"NVIDIA (\w+)", source)
    kernels = re.findall(r"(VLLM|TRTLLM|SGLang|NCCL|vLLM)", source)
    own = source.startswith(("gpu ", "sums "))
    names = ["specroof"] if own else [NAMES.get(name, name) for name in dict.fromkeys(kernels)]
    return f"{' and '.join(names)} on {gpu[1] if gpu else 'another GPU'}"


def served() -> Iterator[str]:
    """Errors against published times per output token, in percent."""
    yield from header("target", "GPUs", "engine", "rows", "signed median", "median", "worst")
    for group in served_groups():
        groups = {key: n for key, n in (("ep", group.ep), ("dp", group.dp)) if n > 1}
        gpus = gpus_of({"tp": group.tp, "gpu": group.gpu} | groups)
        errors = (
            f"{group.median_signed:+.1f}",
            f"{group.median_absolute:.1f}",
            f"{group.worst:+.1f}",
        )
        yield row(group.target, gpus, group.engine, group.rows, *errors)


def faster() -> Iterator[str]:
    """Gains that speculation may explain, and errors of the predicted gains by batch."""
    errors = "error by batch, uniform", "error by batch, skewed"
    yield from header("GPUs", "engine", "prompt / output", "gain", "α", *errors)
    for group, skewed_one in zip(faster_groups(), faster_groups(SKEW), strict=True):
        ep = {"ep": group.ep} if group.ep > 1 else {}
        yield row(
            gpus_of({"tp": group.tp, "gpu": group.gpu} | ep),
            group.engine,
            f"{group.prompt_tokens:,} / {group.output_tokens:,}",
            "-".join(f"{gain:.2f}" for gain in group.gains),
            f"{group.alpha:.2f}",
            *(
                ", ".join(f"{batch}: {error:+.0f}" for batch, error in one.errors)
                for one in (group, skewed_one)
            ),
        )


def measured() -> Iterator[str]:
    """vLLM's steps and rounds, and errors of what was predicted before they were measured."""
    rows: dict[tuple[str, int, int], dict[str, tuple[float, float, float]]] = {}
    for name in ("experts", "mxfp4-mla"):
        records = read_engine_records([MEASURED / f"engine-vllm-0.26-h200-{name}.jsonl"])
        timed = {record.point.id: record for record in records.points}
        path = MEASURED / f"predicted-vllm-0.26-h200-{name}.csv"
        for line in csv.DictReader(path.read_text(encoding="utf-8").splitlines()):
            key = f"{line['target']}/{line['method']}-none-{line['gamma']}/tp1"
            batch, prompt = int(line["batch"]), int(line["prompt_tokens"])
            if record := timed.get(f"{key}/{batch}x{prompt}"):
                passes = float(line["T_V_s"] or line["T_T_s"])
                values = record.seconds, float(line["default_graphs_s"]), passes
                by_method = rows.setdefault((line["target"], batch, prompt), {})
                by_method[record.point.setup.method] = values
    columns = "target", "batch", "prompt", "plain step (ms)", "error", "round, γ 3 (ms)", "error"
    yield from header(*columns, "T_V/T_T", "predicted")
    for (target, batch, prompt), by_method in sorted(rows.items()):
        cells: list[object] = [target, batch, f"{prompt:,}"]
        for took, predicted, _ in by_method.values():
            cells += [f"{1e3 * took:.2f}", f"{100 * (predicted / took - 1):+.1f}"]
        if "ngram" in by_method:
            (step, _, target_s), (whole, predicted, verify_s) = by_method.values()
            host_s = predicted - verify_s
            cells += [f"{(whole - host_s) / step:.2f}", f"{verify_s / target_s:.2f}"]
        yield row(*cells, *[""] * (9 - len(cells)))


def tables() -> str:
    """The tables as Markdown."""
    makers = (
        sizes,
        verification,
        break_even,
        one_expert,
        targets,
        sources,
        measured,
        served,
        faster,
    )
    return "\n\n".join("\n".join(make()) for make in makers)


if __name__ == "__main__":
    print(tables())
