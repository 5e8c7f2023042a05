"""Start the vLLM adapter script for one setup: model folders, engine arguments, the subprocess.

Weights are random (`load_format="dummy"`), so an engine only needs the `config.json` of a model,
which is written from the catalog; nothing is downloaded. Options that affect speed keep vLLM's
defaults.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from calibration.engines.plan import (
    LONG_ROUNDS,
    MOST_REPEATS,
    REPEATS,
    SHORT_ROUNDS,
    TIMED_S,
    point_scenario,
)
from calibration.engines.records import Point, Setup
from perfmodel import ConfigError, catalog
from perfmodel.catalog import model_config
from perfmodel.reports import ExportPlan
from perfmodel.specs import METHODS, ModelSpec

SCRIPT = Path(__file__).with_name("vllm_offline.py")
STOP_S = 20.0  # for an engine to end by itself
MARGIN_TOKENS = 64  # in max_model_len, in addition to prompt and output
# Room is left for the output of at least so many drafts: vLLM's compile cache depends on
# max_model_len, so setups of one target with equal prompts compile once.
LEAST_ROOM_DRAFTS = 7
NGRAM = {"prompt_lookup_max": 4, "prompt_lookup_min": 2}
METHOD_NAMES = {"draft": "draft_model"}  # names in vLLM that differ
SUPPORTED = ("draft", "eagle3", "ngram")  # methods that run with random weights


def engine_facts(python: str) -> dict[str, Any]:
    """Versions of vLLM and torch in a Python environment, and the GPU, for the header of a file.

    Raises `ConfigError` if this Python does not exist or does not have vLLM.
    """
    script = (
        "import json; from importlib.metadata import version as v; "
        "print(json.dumps({'version': v('vllm'), 'torch': v('torch')}))"
    )
    try:
        done = subprocess.run([python, "-c", script], capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(
            f"{python} cannot be run ({error}); give the Python that has vLLM with --python"
        ) from error
    if done.returncode:
        raise ConfigError(f"{python} does not have vLLM; give the Python that has it with --python")
    try:
        found = json.loads(done.stdout.splitlines()[-1])
        versions = {name: str(found[name]) for name in ("version", "torch")}
    except (LookupError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{python} is not a Python; give the Python that has vLLM with --python"
        ) from error
    return {"engine": "vllm", **versions, **gpu_facts()}


def gpu_facts() -> dict[str, Any]:
    """Name and driver of the first GPU, as printed by nvidia-smi; empty without a GPU."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(("gpu", "driver"), done.stdout.splitlines()[0].split(", "), strict=False))


def engine_arguments(setup: Setup, points: Sequence[Point], folder: Path) -> dict[str, Any]:
    """Keyword arguments of `vllm.LLM` for a setup, with room for its points.

    Raises `ConfigError` if the method cannot be started with random weights.
    """
    model = model_folder(setup.target, folder)
    room = (LONG_ROUNDS + 1) * (max(setup.gamma, LEAST_ROOM_DRAFTS) + 1) + MARGIN_TOKENS
    arguments = {
        "model": str(model),
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "max_model_len": max(point.prompt_tokens for point in points) + room,
        "tensor_parallel_size": setup.tp,
        "disable_log_stats": False,
    }
    if "text_config" in json.loads((model / "config.json").read_text(encoding="utf-8")):
        arguments["language_model_only"] = True  # no image encoder: it needs more files
    if setup.exported_graphs:
        arguments["cudagraph_capture_sizes"] = _exported_graphs(setup, points)
    speculative = speculative_config(setup, folder)
    return arguments | ({"speculative_config": speculative} if speculative else {})


def _exported_graphs(setup: Setup, points: Sequence[Point]) -> list[int]:
    """Tokens of the CUDA graphs that `export` lists for the largest batch of some points."""
    most = max(points, key=lambda point: point.batch)
    scenario = point_scenario(
        setup, gpu="h200", engine="vllm", batch=most.batch, prompt=most.prompt_tokens
    )
    return ExportPlan(scenario=scenario).graph_sizes


def speculative_config(setup: Setup, folder: Path) -> dict[str, Any] | None:
    """vLLM's speculative configuration, which accepts every draft; None for plain decoding.

    Raises `ConfigError` if the method cannot be started with random weights.
    """
    if setup.method == "plain":
        return None
    if setup.method not in SUPPORTED:
        raise ConfigError(
            f"method {setup.method!r} cannot be started with random weights; use one of "
            f"{', '.join(SUPPORTED)}, or measure a running server with --url"
        )
    config: dict[str, Any] = {
        "method": METHOD_NAMES.get(setup.method, setup.method),
        "num_speculative_tokens": setup.gamma,
        "rejection_sample_method": "synthetic",
        "synthetic_acceptance_rates": [1.0] * setup.gamma,
    }
    if setup.method == "ngram":
        return config | NGRAM
    if setup.method == "draft":
        config["model"] = str(model_folder(setup.draft, folder))
    else:
        config["model"] = str(head_folder(setup.target, setup.method, folder))
    return config | {"draft_tensor_parallel_size": setup.tp}


def model_folder(name: str, folder: Path) -> Path:
    """A folder with the `config.json` of a catalog model; `name` itself if it is a folder."""
    if Path(name).is_dir():
        return Path(name)
    return _written(folder / name, model_config(name))


def head_folder(target: str, method: str, folder: Path) -> Path:
    """A folder with the `config.json` of a target's EAGLE-3 head."""
    make = METHODS[method].spec
    assert make is not None
    return _written(folder / f"{method}-of-{Path(target).name}", eagle3_config(make, target))


def eagle3_config(make: Any, target: str) -> dict[str, Any]:
    """The Hugging Face config of the EAGLE-3 head of a target."""
    spec = catalog.model(target)
    head: ModelSpec = make(spec)
    return {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
        "rms_norm_eps": 1e-5,
        "rope_theta": head.rope_theta,
        "num_hidden_layers": head.layers,
        "hidden_size": head.hidden,
        "intermediate_size": head.ffn_hidden,
        "num_attention_heads": head.query_heads,
        "num_key_value_heads": head.kv_heads,
        "head_dim": head.head_dim,
        "vocab_size": spec.vocab,
        "draft_vocab_size": head.vocab,
        "max_position_embeddings": head.max_context_tokens,
        "tie_word_embeddings": False,
    }


def job(setup: Setup, points: Sequence[Point], folder: Path) -> dict[str, Any]:
    """The input of the adapter script, described in its module docstring."""
    return {
        "engine": engine_arguments(setup, points, folder),
        "tokens_per_round": setup.gamma + 1,
        "short_rounds": SHORT_ROUNDS,
        "long_rounds": LONG_ROUNDS,
        "repeats": REPEATS,
        "most_repeats": MOST_REPEATS,
        "timed_s": TIMED_S,
        "points": [
            {"id": p.id, "batch": p.batch, "prompt_tokens": p.prompt_tokens} for p in points
        ],
    }


def start(python: str, setup: Setup, points: Sequence[Point], folder: Path) -> Process:
    """Start the adapter for a setup; its model folders, job, output and log are put in `folder`.

    Raises `ConfigError` if this Python does not exist.
    """
    return launch(python, job(setup, points, folder), folder, setup.key.replace("/", "-"))


def launch(python: str, work: Mapping[str, Any], folder: Path, name: str) -> Process:
    """Start the adapter for a job, whose files in `folder` are named `name`.

    Raises `ConfigError` if this Python does not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {kind: folder / f"{name}.{kind}" for kind in ("json", "jsonl", "log")}
    files["json"].write_text(json.dumps(work), encoding="utf-8")
    files["jsonl"].write_text("", encoding="utf-8")
    # A copy, so that modules in the folder of the script do not shadow those of the engine.
    script = folder / SCRIPT.name
    shutil.copyfile(SCRIPT, script)
    command = [python, str(script), str(files["json"]), str(files["jsonl"])]
    with files["log"].open("w", encoding="utf-8") as log:
        try:
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            raise ConfigError(
                f"{python} cannot be run ({error.strerror or error}); give the Python that has "
                f"vLLM with --python"
            ) from error
    return Process(process, files["jsonl"], files["log"])


class Process:
    """A running adapter: its new output lines, and the reason of a failure.

    Its process id is that of its process group, too.
    """

    def __init__(self, process: subprocess.Popen[bytes], out: Path, log: Path) -> None:
        self.pid = process.pid
        self._process, self._out, self._log, self._read = process, out, log, 0

    def lines(self) -> list[dict[str, Any]]:
        """The complete lines that were written since the last call."""
        with self._out.open("rb") as file:
            file.seek(self._read)
            whole, end, _ = file.read().rpartition(b"\n")
        self._read += len(whole + end)
        return [json.loads(line) for line in whole.splitlines() if line]

    @property
    def ended(self) -> bool:
        """Whether the process is no longer running."""
        return self._process.poll() is not None

    @property
    def failure(self) -> str:
        """The last line of the log with an error, or its last line; "" after success."""
        if self._process.returncode == 0:
            return ""
        lines = self._log.read_text(encoding="utf-8", errors="replace").split("\n")
        lines = [line.strip() for line in lines if line.strip()]
        errors = [line for line in lines if "Error" in line]
        reason = (errors or lines or [f"exit code {self._process.returncode}"])[-1]
        return f"{reason} (full log: {self._log})"

    def stop(self) -> None:
        """Stop the process and its children, and wait until it has ended."""
        for sign in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, sign)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=STOP_S)


def _written(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
