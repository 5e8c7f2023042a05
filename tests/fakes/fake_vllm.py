"""A fake of vLLM's public interface with a simulated clock, hence with known step times.

It is written to a folder as the package `vllm`, and the adapter script imports it in a subprocess.
A round takes `ROUND_MS` milliseconds plus `SEQUENCE_MS` per sequence, and a prefill 1 ms per token.
In calls of `generate` whose numbers FAKE_VLLM_COMPILES lists, round 20 takes a second longer; in
those of FAKE_VLLM_SLOW, all rounds take 1.7 times as long. A fixed loop takes FAKE_VLLM_LOOP_MS.
With FAKE_VLLM_RAMP, a request is added per step. The first request has no drafts in its first
FAKE_VLLM_MISSES rounds.
"""

from pathlib import Path

ROUND_MS, SEQUENCE_MS = 5.0, 0.125

SOURCE = """
import json, os, time
__version__ = "0.26.0"
_clock = [time.perf_counter()]
time.perf_counter = time.monotonic = lambda: _clock[0]
def _sleep(seconds):
    _clock[0] += seconds + 1e-6
time.sleep = _sleep
_cpu = [0.0]
def _process_time():
    _cpu[0] += 1e-3 * float(os.environ.get("FAKE_VLLM_LOOP_MS", "1"))
    return _cpu[0]
time.process_time = _process_time
KNOWN = {"model", "load_format", "skip_tokenizer_init", "max_model_len", "tensor_parallel_size",
         "disable_log_stats", "speculative_config", "cudagraph_capture_sizes", "max_num_seqs",
         "max_num_batched_tokens", "gpu_memory_utilization"}
SPECULATIVE = {"method", "model", "num_speculative_tokens", "rejection_sample_method",
               "synthetic_acceptance_rates", "draft_tensor_parallel_size",
               "prompt_lookup_max", "prompt_lookup_min"}


class SamplingParams:
    def __init__(self, *, temperature, max_tokens, ignore_eos, detokenize, min_tokens=0):
        assert temperature == 0.0 and ignore_eos and min_tokens in (0, max_tokens)
        self.tokens = max_tokens


class _Metric:
    def __init__(self, name, **values):
        self.name, self.labels = name, {}
        self.__dict__.update(values)


class _Output:
    def __init__(self, name, tokens):
        self.request_id, self.finished = name, True
        self.outputs = [type("O", (), {"token_ids": list(range(tokens))})()]


class _Engine:
    # Serves all requests together: a pass prefills what is new, and decodes one round.

    def __init__(self, llm, config):
        self.llm, self.vllm_config, self.active = llm, config, {}

    def add_request(self, name, inputs, sampling):
        self.active[name] = [len(inputs["prompt_token_ids"]), sampling.tokens, 0, 0.0]

    def has_unfinished_requests(self):
        return bool(self.active)

    def step(self):
        llm = self.llm
        running = [r for r in self.active.values() if r[2]]
        fresh = [r for r in self.active.values() if not r[2]]
        _clock[0] += 1e-3 * sum(r[0] for r in fresh)
        seconds = (ROUND_MS + SEQUENCE_MS * len(running)) / 1e3 if running else 0.0
        llm.rounds += bool(running)
        seconds *= 1.7 if _listed(llm.calls, "FAKE_VLLM_SLOW") else 1.0
        seconds += llm.rounds == 20 and _listed(llm.calls, "FAKE_VLLM_COMPILES")
        _clock[0] += seconds
        llm.latency = [llm.latency[0] + seconds * len(running), llm.latency[1] + len(running)]
        for request in fresh:
            request[2], request[3] = 1, _clock[0]
        for name, request in self.active.items():
            if request in fresh:
                continue
            misses = name == "0" and llm.rounds <= int(os.environ.get("FAKE_VLLM_MISSES", 0))
            taken = min(1 if misses else llm.gamma + 1, request[1] - request[2])
            llm.accepted += taken - 1
            llm.drafts += bool(llm.gamma) and not misses
            request[2] += taken
        done = []
        for name in [name for name, r in self.active.items() if r[2] == r[1]]:
            request = self.active.pop(name)
            output = _Output(name, request[1])
            output.metrics = type("M", (), {"first_token_ts": request[3],
                                            "last_token_ts": _clock[0]})()
            done.append(output)
        return done


def _listed(call, name):
    return str(call) in os.environ.get(name, "").split()


class LLM:
    def __init__(self, **arguments):
        unknown = set(arguments) - KNOWN
        assert not unknown, f"unknown argument {unknown}"
        spec = arguments.get("speculative_config")
        self.gamma = 0
        if spec:
            assert not set(spec) - SPECULATIVE, f"unknown key {set(spec) - SPECULATIVE}"
            self.gamma = spec["num_speculative_tokens"]
            rates = spec["synthetic_acceptance_rates"]
            assert len(rates) == self.gamma and rates == sorted(rates, reverse=True)
            assert spec["rejection_sample_method"] == "synthetic"
        for folder in (arguments["model"], (spec or {}).get("model")):
            if folder:
                json.load(open(os.path.join(folder, "config.json")))
        if os.environ.get("FAKE_VLLM_REFUSES") == str(self.gamma):
            raise RuntimeError("no such luck")
        self.longest = arguments["max_model_len"]
        self.calls, self.rounds, self.accepted, self.drafts = 0, 0, 0, 0
        self.latency = [0.0, 0]
        _clock[0] += 90.0
        scheduler = type("S", (), {"async_scheduling": self.gamma == 0})()
        graphs = type("C", (), {"max_cudagraph_capture_size": 512})()
        config = type("V", (), {"scheduler_config": scheduler, "compilation_config": graphs})()
        self.llm_engine = _Engine(self, config)

    def generate(self, requests, sampling, use_tqdm):
        batch, length = len(requests), len(requests[0]["prompt_token_ids"])
        assert length + sampling.tokens <= self.longest
        assert len({tuple(r["prompt_token_ids"]) for r in requests}) == batch
        if os.environ.get("FAKE_VLLM_FAILS") == str(batch):
            raise RuntimeError("out of luck at this batch")
        self.calls, self.rounds = self.calls + 1, 0
        engine, left, done = self.llm_engine, list(enumerate(requests)), []
        at_once = 1 if os.environ.get("FAKE_VLLM_RAMP") else batch
        while left or engine.has_unfinished_requests():
            for number, request in left[:at_once]:
                engine.add_request(str(number), request, sampling)
            left = left[at_once:]
            done += engine.step()
        return done

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


INPUTS = """
def tokens_input(tokens):
    return {"type": "token", "prompt_token_ids": tokens}
"""

SAMPLING = """
class RequestOutputKind:
    FINAL_ONLY = 2
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
    (folder / "vllm" / "inputs").mkdir()
    for name, source in {"inputs/engine": INPUTS, "sampling_params": SAMPLING}.items():
        (folder / "vllm" / f"{name}.py").write_text(source, encoding="utf-8")
    return folder
