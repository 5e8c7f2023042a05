"""A fake of vLLM's public interface with a simulated clock, hence with known step times.

It is written to a folder as the package `vllm`, and the adapter script imports it in a subprocess.
A round takes `ROUND_MS` milliseconds plus `SEQUENCE_MS` per sequence, and a prefill 1 ms per token.
"""

from __future__ import annotations

from pathlib import Path

ROUND_MS, SEQUENCE_MS = 5.0, 0.125

SOURCE = """
import json, os, time
__version__ = "0.26.0"
_clock = [time.perf_counter()]
time.perf_counter = lambda: _clock[0]
KNOWN = {"model", "load_format", "skip_tokenizer_init", "max_model_len", "tensor_parallel_size",
         "disable_log_stats", "speculative_config"}
SPECULATIVE = {"method", "model", "num_speculative_tokens", "rejection_sample_method",
               "synthetic_acceptance_rates", "draft_tensor_parallel_size",
               "prompt_lookup_max", "prompt_lookup_min"}


class SamplingParams:
    def __init__(self, *, temperature, max_tokens, min_tokens, ignore_eos, detokenize):
        assert temperature == 0.0 and ignore_eos and max_tokens == min_tokens
        self.tokens = max_tokens


class _Metric:
    def __init__(self, name, **values):
        self.name, self.labels = name, {}
        self.__dict__.update(values)


class _Output:
    def __init__(self, tokens):
        self.outputs = [type("O", (), {"token_ids": list(range(tokens))})()]


class LLM:
    def __init__(self, **arguments):
        unknown = set(arguments) - KNOWN
        assert not unknown, f"unknown argument {unknown}"
        spec = arguments.get("speculative_config")
        self.gamma = 0
        if spec:
            assert not set(spec) - SPECULATIVE, f"unknown key {set(spec) - SPECULATIVE}"
            self.gamma = spec["num_speculative_tokens"]
            assert spec["synthetic_acceptance_rates"] == [1.0] * self.gamma
            assert spec["rejection_sample_method"] == "synthetic"
        for folder in (arguments["model"], (spec or {}).get("model")):
            if folder:
                json.load(open(os.path.join(folder, "config.json")))
        if os.environ.get("FAKE_VLLM_REFUSES") == str(self.gamma):
            raise RuntimeError("no such luck")
        self.longest = arguments["max_model_len"]
        self.seen, self.accepted, self.drafts, self.latency = 0, 0, 0, [0.0, 0]
        _clock[0] += 90.0
        scheduler = type("S", (), {"async_scheduling": self.gamma == 0})()
        graphs = type("C", (), {"max_cudagraph_capture_size": 512})()
        config = type("V", (), {"scheduler_config": scheduler, "compilation_config": graphs})()
        self.llm_engine = type("E", (), {"vllm_config": config})()

    def generate(self, requests, sampling, use_tqdm):
        batch, length = len(requests), len(requests[0]["prompt_token_ids"])
        assert length + sampling.tokens <= self.longest
        assert len({tuple(r["prompt_token_ids"]) for r in requests}) == batch
        if os.environ.get("FAKE_VLLM_FAILS") == str(batch):
            raise RuntimeError("out of luck at this batch")
        left, rounds = sampling.tokens - 1, 0
        while left > 0:
            taken = min(left, self.gamma + 1)
            self.accepted += batch * (taken - 1)
            left, rounds = left - taken, rounds + 1
        step = (ROUND_MS + SEQUENCE_MS * batch) / 1e3
        self.drafts += batch * rounds if self.gamma else 0
        self.latency = [self.latency[0] + batch * rounds * step, self.latency[1] + batch * rounds]
        _clock[0] += 1e-3 * length + rounds * step
        return [_Output(sampling.tokens) for _ in requests]

    def get_metrics(self):
        return [
            _Metric("vllm:spec_decode_num_accepted_tokens", value=self.accepted),
            _Metric("vllm:spec_decode_num_drafts", value=self.drafts),
            _Metric("vllm:inter_token_latency_seconds", sum=self.latency[0], count=self.latency[1]),
        ]
"""


TORCH = """
__version__ = "2.11.0"
class cuda:
    is_available = staticmethod(lambda: False)
"""


def write_fake_vllm(folder: Path) -> Path:
    """Write the fake package, a fake torch and their versions; return the folder for PYTHONPATH."""
    for name, source in {
        "vllm": f"ROUND_MS, SEQUENCE_MS = {ROUND_MS}, {SEQUENCE_MS}\n{SOURCE}",
        "torch": TORCH,
    }.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(source, encoding="utf-8")
        info = folder / f"{name}-{'0.26.0' if name == 'vllm' else '2.11.0'}.dist-info"
        info.mkdir()
        version = info.name.removesuffix(".dist-info").rpartition("-")[2]
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (info / "METADATA").write_text(text, encoding="utf-8")
    return folder
