"""Run baseline, standalone draft and self-speculation on 8 and 4 GPUs, and sums over their ranks.

    python scripts/eight_gpus.py --tp 8 --tp 4 --out DIR --seconds 540
    python scripts/eight_gpus.py --tp 8 --out DIR --stand-in      # two gloo ranks, tiny shapes

Runs stand in order of value; each has its own limit, and what time is left bounds it too. After
every run `DIR/runs.jsonl` is whole: one line a run with its command, machine and report. A run that
stands there is not run again. Needs torch, numpy and this checkout, nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LEAST_S = 10.0  # no run is begun with less time left
GRACE_S = 15.0
GPU_FLAGS = ("--device", "cuda", "--dtype", "bfloat16", "--chunk-tokens", "4096")
STAND_IN_FLAGS = ("--dtype", "float32")
RATE = "0.8"  # injected acceptance per position; times do not depend on it but through lengths
TINY = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2,
    "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "intermediate_size": 48, "vocab_size": 101, "max_position_embeddings": 512,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One run: what it is called, what it runs, and the most seconds it may take."""

    name: str
    tp: int
    limit_s: float
    tier: int  # 1 is run first
    mode: str  # a mode of runtime.bench, or "all-reduce"
    model: str = ""
    draft: str = ""
    draft_tp: int = 0
    batch: int = 1
    prefix: int = 0
    gamma: int = 0
    policy: str = "streamingllm"
    budget: int = 0

    def command(self, *, stand_in: Path | None) -> list[str]:
        """The words to run, relative to the checkout; tiny on two gloo ranks with a stand-in."""
        if self.mode == "all-reduce":
            where = ["--ranks", str(self.tp), "--device", "cuda"]
            if stand_in is not None:
                where = ["--ranks", "2", "--max-bytes", "32768", "--repeats", "3"]
            return [sys.executable, "scripts/all_reduce_sweep.py", *where]
        tiny = stand_in is not None
        words = [sys.executable, "-m", "runtime.bench", self.mode]
        words += ["--model", _folder(self.model, stand_in), "--random-weights", "--ignore-eos"]
        words += ["--tp", str(2 if tiny else self.tp)]
        words += ["--batch", str(min(2, self.batch) if tiny else self.batch)]
        words += ["--prefix-tokens", str(60 if tiny else self.prefix)]
        words += ["--gen-tokens", str(8 if tiny else 64), "--json"]
        if self.mode != "baseline":
            words += ["--gamma", str(self.gamma), "--draft-policy", self.policy]
            words += ["--kv-budget", str(32 if tiny else self.budget)]
            words += ["--acceptance", ",".join([RATE] * self.gamma)]
            words += ["--snapkv-window", "8"] if tiny else []
        if self.mode == "standalone":
            draft_tp = (1 if self.draft_tp < self.tp else 2) if tiny else self.draft_tp
            words += ["--draft", _folder(self.draft, stand_in), "--draft-tp", str(draft_tp)]
        return [*words, *(STAND_IN_FLAGS if tiny else GPU_FLAGS)]


def cases(tp: int) -> list[Case]:
    """The runs at one TP degree."""
    llama, target = "llama-3.1-8b", "llama-2-7b-32k"
    wide: dict[str, Any] = {"tp": tp, "batch": 64, "prefix": 16_000}
    plain: dict[str, Any] = {"mode": "baseline", "tp": tp}
    small: dict[str, Any] = {
        **wide, "mode": "standalone", "model": target, "draft": "tinyllama-1.1b",
        "draft_tp": 1 if tp == 2 else 4, "gamma": 3,
    }  # fmt: skip
    large: dict[str, Any] = {
        "mode": "standalone", "model": "llama-3.1-70b", "draft": llama, "tp": tp, "batch": 32,
        "prefix": 16_000, "gamma": 3, "budget": 512, "tier": 2, "limit_s": 120,
    }  # fmt: skip
    return [
        *(Case(name=f"all-reduce-{n}", mode="all-reduce", tp=n, tier=1, limit_s=60)
          for n in sorted({2, tp})),
        Case(name=f"selfspec-streamingllm-256-tp{tp}", mode="selfspec", model=llama, gamma=3,
             budget=256, tier=1, limit_s=90, **wide),
        Case(name=f"baseline-8b-b64-32k-tp{tp}", model=llama, batch=64, prefix=32_000, tier=1,
             limit_s=90, **plain),
        # Plain decoding at the batch and prefix of the speculative runs: their speedup's divisor.
        Case(name=f"baseline-8b-b64-16k-tp{tp}", model=llama, batch=64, prefix=16_000, tier=1,
             limit_s=60, **plain),
        Case(name=f"standalone-tinyllama-256-tp{tp}", budget=256, tier=1, limit_s=90, **small),
        Case(name=f"baseline-7b-b64-16k-tp{tp}", model=target, batch=64, prefix=16_000, tier=1,
             limit_s=60, **plain),
        Case(name=f"baseline-8b-b1-4k-tp{tp}", model=llama, batch=1, prefix=4_000, tier=2,
             limit_s=60, **plain),
        *(Case(name=f"standalone-70b-8b-draft{n}-tp{tp}", draft_tp=n, **large)
          for n in (8, 4) if tp == 8),
        Case(name=f"standalone-tinyllama-512-tp{tp}", budget=512, tier=2, limit_s=90, **small),
        Case(name=f"selfspec-snapkv-2049-tp{tp}", mode="selfspec", model=llama, tp=tp, batch=41,
             prefix=100_000, gamma=7, policy="snapkv", budget=2_049, tier=3, limit_s=200),
    ]  # fmt: skip


def _folder(model: str, stand_in: Path | None) -> str:
    return str(stand_in) if stand_in is not None else f"scripts/shapes/{model}"


class Results:
    """`runs.jsonl`: every run that ended well, replaced whole after each."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "runs.jsonl"
        text = self.file.read_text(encoding="utf-8") if self.file.exists() else ""
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]

    def __contains__(self, name: str) -> bool:
        return any(row["name"] == name for row in self.rows)

    def add(self, row: dict[str, Any]) -> None:
        """Put one more run on disk."""
        self.rows.append(row)
        whole = self.file.with_suffix(".writing")
        whole.write_text("".join(json.dumps(row) + "\n" for row in self.rows), encoding="utf-8")
        whole.replace(self.file)


def run_case(case: Case, command: Sequence[str], limit_s: float) -> dict[str, Any]:
    """Run one case to its end or limit: its report, or `error` in one line."""
    begun = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            out, err = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            return {"error": f"took more than {limit_s:.0f} s"}
        finally:
            _end(process)
    if process.returncode:
        last = (err.strip().splitlines() or ["no message"])[-1]
        return {"error": f"exit code {process.returncode}: {last}"}
    report = _report(case, out)
    return {"wall_s": round(time.monotonic() - begun, 1), "report": report}


def _end(process: subprocess.Popen[str]) -> None:
    """End the launcher, which ends its ranks; kill what is left of it after a while."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
        process.kill()


def _report(case: Case, out: str) -> dict[str, Any]:
    """What a run printed, without the tokens that it generated."""
    rows = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    if case.mode == "all-reduce":
        return {**rows[0], "rows": rows[1:]}
    report: dict[str, Any] = rows[-1]
    for field in ("sequences", "texts"):
        report.pop(field, None)
    return report


def machine() -> dict[str, Any]:
    """GPUs and driver as nvidia-smi says, nothing where there is none."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return {"gpus": []}
    return {"gpus": done.stdout.strip().splitlines()}


def run_all(options: argparse.Namespace, listed: Sequence[Case], stand_in: Path | None) -> int:
    """Run what is not done yet while time lasts; 1 if anything is missing at the end."""
    results, missing = Results(options.out), {}
    found = machine()
    for case in listed:
        left = options.deadline - time.monotonic()
        if case.name in results:
            continue
        if left < LEAST_S:
            missing[case.name] = "no time left"
            continue
        print(f"{case.name}: {left:.0f} s left", file=sys.stderr, flush=True)
        command = case.command(stand_in=stand_in)
        outcome = run_case(case, command, min(case.limit_s, left))
        if "error" in outcome:
            missing[case.name] = outcome["error"]
            print(f"{case.name}: {outcome['error']}", file=sys.stderr, flush=True)
            continue
        results.add(
            {
                "name": case.name,
                "command": ["python", *command[1:]],
                "ended": datetime.now(UTC).isoformat(timespec="seconds"),
                "commit": options.commit,
                "stand_in": stand_in is not None,
                "machine": found,
                **outcome,
            }
        )
    _print_table(results.rows, missing)
    return 1 if missing else 0


def _print_table(rows: Sequence[dict[str, Any]], missing: dict[str, str]) -> None:
    print(f"{'run':<36}{'wall s':>8}{'TPOT ms':>9}{'tokens/s':>10}  phases, mean ms")
    for row in rows:
        report = row["report"]
        line = f"{row['name']:<36}{row['wall_s']:>8.1f}"
        if "rows" in report:
            print(f"{line}{len(report['rows']):>19} figures")
            continue
        phases = report["phase_s"].items()
        means = "  ".join(f"{name} {1e3 * time['mean']:.2f}" for name, time in phases)
        tpot, rate = report["tpot_s"] or 0.0, report["tokens_per_s"] or 0.0
        print(f"{line}{1e3 * tpot:>9.2f}{rate:>10.1f}  {means}")
    for name, why in missing.items():
        print(f"{name:<36}not run: {why}")


def listed_cases(degrees: Sequence[int], only: str | None) -> list[Case]:
    """The runs at all degrees in order of value, without repeats."""
    found = {case.name: case for tp in degrees for case in cases(tp)}
    chosen = [case for name, case in found.items() if only is None or only in name]
    return sorted(chosen, key=lambda case: case.tier)


def main() -> int:
    """Run the list, or show it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tp", type=int, action="append", choices=(2, 4, 8), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=540.0, help="For everything together.")
    parser.add_argument("--only", metavar="TEXT", help="Runs whose name holds this.")
    parser.add_argument("--commit", help="Commit of this checkout, where there is no git.")
    parser.add_argument("--dry-run", action="store_true", help="Print the commands.")
    parser.add_argument("--stand-in", action="store_true", help="Tiny, on two gloo ranks.")
    options = parser.parse_args()
    options.deadline = time.monotonic() + options.seconds
    listed = listed_cases(options.tp, options.only)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `_end` runs
    with tempfile.TemporaryDirectory(prefix="specroof-tiny-") as folder:
        (Path(folder) / "config.json").write_text(json.dumps(TINY), encoding="utf-8")
        stand_in = Path(folder) if options.stand_in else None
        if options.dry_run:
            for case in listed:
                print(shlex.join(["python", *case.command(stand_in=stand_in)[1:]]))
            return 0
        try:
            return run_all(options, listed, stand_in)
        except KeyboardInterrupt:
            return 130


if __name__ == "__main__":
    sys.exit(main())
