"""Valid inputs of every kind that users give, each with the command that reads it."""

import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

from fuzz_inputs import (
    CONFIG,
    CONFIGS,
    DRAFT_SCENARIO,
    EXPERTS,
    LATENCIES,
    NOT_OF_FAMILY,
    PROMPTS,
    QUANTISED,
    REPORTS,
    ROWS,
    SCENARIO,
    STEPS,
    TIMED,
    TRACES,
    TRTLLM_BENCH,
)
from mutations import NUMBERS, WORDS, mutated

ROOT = Path(__file__).parents[2]
PREDICT = "predict --json --tp 8"
SMALL = "--tp 8 --draft self --draft-policy streamingllm --kv-budget 256 --gamma 3 --acceptance 0.8"
SIMULATE = f"simulate {SMALL} --json"


@dataclass(frozen=True)
class Case:
    """A command line in which FILE is the mutated file, DIR its folder and OUT an output."""

    name: str
    command: str
    file: str  # name of the mutated file
    content: str
    weight: int = 40  # inputs per turn; less for slow commands
    others: tuple[tuple[str, bytes], ...] = ()  # further files, which are not mutated
    read: Callable[[Path], object] | None = None  # instead of a command
    change: Callable[[str, Random], bytes] = mutated
    exit_code: int = 0  # without mutations


def cases() -> list[Case]:
    """All cases; some read files of measurements in this repository."""
    return [*_scenarios(), *_models(), *_reports(), *_tables(), *_records(), *_flags()]


def _scenarios() -> Iterator[Case]:
    for name, text in (("self", SCENARIO), ("draft", DRAFT_SCENARIO)):
        for command in ("predict --json", "export --to specroof"):
            yield Case(f"scenario {name}, {command}", f"{command} --scenario FILE", "s.toml", text)
    method = (
        'target = "llama-3.1-8b"\ntp = 8\nbatch = 4\ndraft = "llama-3.2-1b"\n'
        'draft_policy = "full"\ngamma = 3\n'
    )
    for engine in ("vllm", "sglang", "tensorrt-llm"):
        yield Case(f"export to {engine}", f"export --to {engine} --scenario FILE", "s.toml", method)
    yield Case("sweep", "sweep --json --gamma 1:3 --scenario FILE", "s.toml", SCENARIO, 20)
    yield Case(
        "recommend",
        "recommend --json --tp 8 --kv-budget 256 --scenario FILE",
        "s.toml",
        SCENARIO.replace("gamma = 3\n", ""),
        10,
    )
    yield Case("simulate", "simulate --json --scenario FILE", "s.toml", SCENARIO, 20)
    yield Case("rows", "predict --from FILE", "rows.csv", ROWS, 20)
    catalog = ROOT / "perfmodel/catalog"
    for policy in ("snapkv", "streamingllm"):
        curve = (catalog / f"acceptance/llama-3.1-8b--self--{policy}.toml").read_text()
        command = f"{PREDICT} --draft self --draft-policy {policy} --acceptance-curve FILE"
        yield Case(f"curve {policy}", command, "c.toml", curve)
    for engine in ("specroof", "magicdec"):
        text = (catalog / f"engines/{engine}.toml").read_text()
        yield Case(f"engine {engine}", f"{PREDICT} --draft self --engine FILE", "e.toml", text)


def _models() -> Iterator[Case]:
    from perfmodel.specs.families import _FAMILIES as FAMILIES

    for name, fields in CONFIGS.items():
        text = json.dumps(fields, indent=2)
        yield Case(f"config {name}", f"{PREDICT} --target FILE", "config.json", text)
        yield Case(f"runtime {name}", "", "config.json", text, read=_read_config)
    for kind, family in FAMILIES.items():
        fields = {k: v for k, v in EXPERTS.items() if k in family.model_fields}
        if "layer_types" in fields:  # it states the same
            fields.pop("sliding_window_pattern", None)
        if "_vl" in kind or "4v" in kind or "3_5" in kind:  # their positions have other types
            fields.pop("rope_scaling", None)
        for field in NOT_OF_FAMILY.get(kind, ()):
            fields.pop(field, None)
        text = json.dumps({"model_type": kind} | fields, indent=2)
        yield Case(f"config {kind}", f"{PREDICT} --target FILE", "config.json", text, 10)
    gemma = {"model_type": "gemma3_text", "num_hidden_layers": 26, "hidden_size": 1152,
             "intermediate_size": 6912, "sliding_window": 512}  # fmt: skip
    wrapped = json.dumps({"model_type": "gemma3", "text_config": gemma}, indent=2)
    yield Case("config gemma3", f"{PREDICT} --target FILE", "config.json", wrapped, 10)
    for form, stated in QUANTISED.items():
        text = json.dumps(CONFIG | {"quantization_config": stated}, indent=2)
        yield Case(f"quantised {form}", f"{PREDICT} --target FILE", "config.json", text, 20)
    small = json.dumps(CONFIG | {"num_hidden_layers": 2})
    draft = f"{PREDICT} --draft FILE --draft-policy full --gamma 2 --acceptance 0.7"
    yield Case("draft config", draft, "config.json", small)
    config = ("config.json", json.dumps(CONFIG).encode())
    generation = '{"eos_token_id": [2, 128009], "bos_token_id": 1, "do_sample": true}'
    yield Case(
        "generation config", "", "generation_config.json", generation, 20, (config,), _read_config
    )
    yield Case("prompts", "", "prompts.jsonl", PROMPTS, read=_read_prompts)
    yield Case("plan", "", "plan.json", _run_plan(), read=_read_plan)


def _reports() -> Iterator[Case]:
    for name, text in REPORTS.items():
        suffix = ".json" if text.startswith(("{", "[")) else ".txt"
        command = "calibrate import-acceptance FILE --json"
        if name.startswith(("sglang", "llama.cpp")) or name == "v0":
            command += " --gamma 4"
        yield Case(f"report {name}", command, f"report{suffix}", text)
    explain = (
        "explain FILE --json --target llama-3.1-8b --draft llama-3.2-1b --draft-policy full --batch"
        " 8 --prompt-tokens 4096 --gpu h200 --gamma"
    )
    for name, text in REPORTS.items():
        if name in ("page", "two scrapes", "log", "bench", "sglang page", "sglang log"):
            gamma = 4 if name.startswith("sglang") else 3 if name == "bench" else 2
            yield Case(f"explain {name}", f"{explain} {gamma}", "report.txt", text, 10)
    timed = f"{explain} 2 --acceptance 0.7"
    yield Case("explain plain page", timed, "page.txt", LATENCIES, 10)
    yield Case("explain plain log", timed, "server.log", STEPS * 2, 10)
    yield Case("explain plain bench", timed, "bench.json", TIMED, 10)
    bench = "calibrate engine --out DIR/out.jsonl --gpu h200 --method plain --import FILE"
    yield Case("trtllm-bench", bench, "report.json", TRTLLM_BENCH, 20)
    for file, text in TRACES.items():
        rate = "" if "imestamp" in text.lower() or "arriv" in text else " --rate 2"
        yield Case(f"trace {file}", f"{SIMULATE} --traffic FILE{rate}", file, text, 20)
    trace = f"{SIMULATE} --batch 2 --output-tokens 20 --acceptance-trace FILE"
    yield Case("acceptance trace", trace.replace(" --acceptance 0.8", ""), "t.txt", "3\n0\n2\n1\n")
    yield Case("chosen gamma", "recommend --json --tp 8 --draft self:streamingllm --kv-budget 256 "
               "--batch 4 --output-tokens 20 "
               "--prompt-tokens 999 --traffic FILE", "trace.csv", TRACES["own.csv"], 2)  # fmt: skip


def _tables() -> Iterator[Case]:
    lines = ["# Collective test starting: all_reduce_perf", "# Using devices"]
    lines += [f"#  Rank {i:2} Group  0 Pid {i + 9} on node device {i:2} [0x{i}0] NVIDIA H100 80GB "
              "HBM3" for i in range(2)]  # fmt: skip
    half = "time   algbw   busbw  #wrong"
    lines += [f"# size count type redop root {half} {half}", "# (B) (elements) (us) (GB/s)"]
    for size, time in ((65536, 20.0), (1 << 20, 30.0), (1 << 24, 100.0), (1 << 28, 1000.0)):
        half = f"{time} {size / time / 1e3:.2f} {size / time / 1e3:.2f} 0"
        lines.append(f"{size} {size // 4} float sum -1 {half} {half}")
    nccl = "\n".join([*lines, "# Out of bounds values : 0 OK", ""])
    yield Case("nccl-tests", "calibrate fit FILE --gpu h100-sxm --output OUT", "run.txt", nccl)
    names = ("gemm", "generation_attention", "context_attention", "custom_allreduce", "nccl")
    files = tuple((f"h200_sxm/{name}.parquet", _bytes(_frame(name))) for name in names)
    for table in names:
        yield Case(
            f"aiconfigurator {table}",
            "calibrate fit DIR --gpu h200 --output OUT",
            f"h200_sxm/{table}.parquet",
            table,
            5,
            files,
            change=_parquet,
            exit_code=2,  # too few cells of attention
        )


def _records() -> Iterator[Case]:
    measured = ROOT / "calibration/measured"

    def head(name: str, count: int) -> str:
        raw = (measured / name).read_bytes()
        text = (gzip.decompress(raw) if name.endswith(".gz") else raw).decode()
        return "".join(text.splitlines(keepends=True)[:count])

    yield Case("kernels", "calibrate fit FILE --output OUT", "kernels.jsonl",
               head("kernels-h200.jsonl", 60), 10, exit_code=2)  # fmt: skip
    steps, peers = head("steps-h200-seed8.jsonl", 6), head("peers-h200-seeds8-10.csv", 40)
    compare = "validate records FILE --json"
    yield Case("steps", compare, "steps.jsonl", steps, 10)
    peers = peers.replace("s10-000", "s8-000")
    yield Case("peers", "validate records DIR/steps.jsonl --json --peers FILE", "peers.csv",
               peers, 10, (("steps.jsonl", steps.encode()),))  # fmt: skip
    drawn = (measured / "cases-h200-seed8.json").read_text()
    file = json.loads(drawn)
    file["cases"] = file["cases"][:4]
    yield Case("drawn", "validate run --cases FILE --list", "cases.json", json.dumps(file), 20)
    acceptance = head("acceptance-h200-smollm2-135m.jsonl.gz", 12)
    yield Case("acceptance", "calibrate fit-acceptance FILE --output OUT", "a.jsonl", acceptance, 5)
    yield Case("report", "calibrate acceptance-report FILE --json", "a.jsonl", acceptance, 5)
    counted = head("acceptance-h200-smollm2-135m-counted.jsonl.gz", 2)
    yield Case("counted", "calibrate acceptance-report DIR/a.jsonl --counted FILE --json",
               "c.jsonl", counted, 5, (("a.jsonl", acceptance.encode()),))  # fmt: skip
    yield Case("engine records", "calibrate engine FILE --output DIR/out", "e.jsonl",
               _engine_records(), 1)  # fmt: skip


FLAGS = (
    "target", "draft", "draft-policy", "kv-budget", "ep", "dp", "draft-kv-dtype", "gamma",
    "acceptance",
    "acceptance-per-position", "accepted-fraction", "accepted-drafts", "tokens-per-round",
    "acceptance-curve", "gpu", "machine", "ring-hop-us", "ring-gb-s", "tp", "draft-tp", "engine",
    "weight-dtype", "kv-dtype", "batch", "prompt-tokens", "output-tokens", "slo",
)  # fmt: skip
LIMITS = ("tpot<30ms", "ttft<1e400s", "memory<90%", "tpot<1ms; tpot<2ms", "1:4", "1,,2",
          "64:8:x0", "1,8", "4096:1", "0.9,0.8", "0.9,,0.8", "1:2:0", "nan,1", "5%",
          "0%", "-1%", "101%", "1e-9%", "nan%", "%", "5%%", "mixtral-8x7b", "eagle3")  # fmt: skip


def _flags() -> Iterator[Case]:
    for command in (PREDICT, f"sweep --json {SMALL}", "export --to sglang --tp 8",
                    f"recommend --json {SMALL.partition(' --gamma')[0]}",
                    f"simulate {SMALL} --json --batch 2"):  # fmt: skip
        weight = 20 if command.startswith(("recommend", "simulate")) else 80
        yield Case(f"flags of {command}", f"{command} FLAGS", "unused.txt", "", weight)


def flags(source: Random) -> list[str]:
    """One to four scenario flags with valid, odd or broken values."""
    words: list[str] = []
    for name in source.sample(FLAGS, source.randint(1, 4)):
        value = source.choice(source.choice((NUMBERS, WORDS, LIMITS)))
        words += [f"--{name}={value}"] if source.random() < 0.2 else [f"--{name}", value]
    return words


# ---- readers that no command reaches without weights ---------------------------------------------


def _read_config(path: Path) -> object:
    from runtime.config import read_config

    return read_config(path.parent)


def _read_plan(path: Path) -> object:
    from runtime import RunPlan

    return RunPlan.read(path)


def _run_plan() -> str:
    from app.cli.commands.run import make_plan

    plan = make_plan("selfspec", {"model": "llama-68m", "random_weights": True, "gamma": 2})
    return json.dumps(plan.as_dict(), indent=1)


def _read_prompts(path: Path) -> object:
    from runtime.model.prompts import read_prompts

    tokenizer: Any = None  # tokens need none
    return read_prompts(path, batch=2, prompt_tokens=4, tokenizer=tokenizer, vocab=100)


def _engine_records() -> str:
    from engine_samples import HEADER, a_plan, records_of

    from calibration.records.jsonl import encode

    records, _ = records_of(a_plan(minutes=8.0))
    return "".join(map(encode, ({"header": HEADER}, *records.starts, *records.points)))


# ---- aiconfigurator's tables ---------------------------------------------------------------------


def _frame(table: str) -> Any:
    import numpy as np
    import pandas as pd

    from calibration.fit.tables.gpus import COLUMNS, TEXT_COLUMNS

    texts = {"device": "NVIDIA H200", "framework": "VLLM", "op_name": "all_reduce",
             "kernel_source": "default", "backend": "default"}  # fmt: skip
    sizes = list(product((1024, 2048, 4096, 8192), (1024, 2048, 4096, 8192), 2 ** np.arange(9)))
    frame = pd.DataFrame({"m": [m for _, _, m in sizes], "n": [n for n, _, _ in sizes],
                          "k": [k for _, k, _ in sizes]})  # fmt: skip
    for name in COLUMNS[table]:
        if name in TEXT_COLUMNS:
            frame[name] = texts.get(name, "bfloat16")
        elif name not in frame:
            frame[name] = 0.005 + 6e-10 * frame.n * frame.k if name == "latency" else frame.m * 8
    return frame[list(COLUMNS[table])]


def _parquet(table: str, source: Random) -> bytes:
    """The table with a cell, column or byte changed."""
    frame = _frame(table)
    for _ in range(source.choice((0, 1, 1, 2))):
        column = source.choice(list(frame))
        match source.randrange(6):
            case 0:
                frame = frame.drop(columns=column)
            case 1:
                frame = frame.iloc[: source.choice((0, 1, 5))]
            case 2:
                frame[column] = frame[column].astype(str)
            case 3:
                frame[column] = source.choice((None, 0, -1, 1e308, float("nan"), "x", 2**62))
            case _:
                frame[column] = frame[column].astype(object)
                values = list(frame[column])
                if values:
                    values[source.randrange(len(values))] = source.choice(
                        (None, 0, -1, 1e30, float("inf"), 2**62)
                    )
                frame[column] = values
        if frame.shape[1] == 0:
            break
    raw = bytearray(_bytes(frame))
    if source.random() < 0.3:
        for _ in range(source.randint(1, 8)):
            raw[source.randrange(len(raw))] = source.randrange(256)
    return bytes(raw[: source.randrange(len(raw))]) if source.random() < 0.1 else bytes(raw)


def _bytes(frame: Any) -> bytes:
    out = BytesIO()
    try:
        frame.to_parquet(out)
    except (ValueError, TypeError, OverflowError):  # mixed types, which Parquet cannot store
        frame.astype(str).to_parquet(out)
    return out.getvalue()
