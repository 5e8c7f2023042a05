"""Valid inputs of every kind that users give, each with the command that reads it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

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


SCENARIO = """target = "llama-3.1-8b"
gpu = "h100-sxm"
tp = 8
batch = 4
prompt_tokens = 4096
output_tokens = 64
draft = "self"
draft_policy = "snapkv"
kv_budget = 512
gamma = 3
acceptance_per_position = [0.9, 0.8, 0.7]
weight_dtype = "bf16"
kv_dtype = "fp8"
engine = "specroof"
slo = "ttft<2s; tpot<25ms; memory<90%"
"""
DRAFT_SCENARIO = """# A separate draft over PCIe.
target = "llama-2-13b"
draft = "llama-68m"
draft_policy = "full"
machine = "8xa10"
ring_hop_us = 5.0
ring_gb_s = 10
tp = 4
draft_tp = 1
gamma = 2
tokens_per_round = 2.1
batch = 2
prompt_tokens = 2_000
"""
ROWS = """target,batch,tp,draft,draft_policy,kv-budget,gamma,acceptance
llama-3.1-8b,4,8,self,streamingllm,256,3,0.8
llama-3.1-8b,16,8,none,,,,
"qwen3-8b",1,4,self,snapkv,512,2,0.9
"""
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096,
    "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "hidden_act": "silu",
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                     "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "bos_token_id": 128000,
    "eos_token_id": [128001, 128009], "attention_bias": False, "mlp_bias": False,
}  # fmt: skip
CONFIGS = {
    "llama": CONFIG,
    "mistral": CONFIG | {
        "architectures": ["MistralForCausalLM"], "model_type": "mistral",
        "sliding_window": 4096, "rope_scaling": None, "head_dim": 128,
    },
    "qwen2": CONFIG | {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "use_sliding_window": False,
        "max_window_layers": 28, "sliding_window": 32768,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    },
    "qwen3": CONFIG | {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 128,
        "layer_types": ["full_attention"] * 32, "rope_scaling": None, "dtype": "bfloat16",
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    },
}  # fmt: skip
for _config in (CONFIGS["qwen2"], CONFIGS["qwen3"]):
    del _config["attention_bias"], _config["mlp_bias"]
EXPERTS = CONFIG | {
    "num_local_experts": 8, "num_experts_per_tok": 2, "num_experts": 16, "n_routed_experts": 16,
    "n_shared_experts": 1, "moe_intermediate_size": 512, "kv_lora_rank": 512, "q_lora_rank": 768,
    "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128, "sliding_window": 128,
    "layer_types": ["full_attention"] * 32, "attention_chunk_size": 8192,
    "sliding_window_pattern": 2, "intermediate_size_mlp": 512, "first_k_dense_replace": 1,
    "linear_num_key_heads": 16, "linear_num_value_heads": 32, "full_attention_interval": 4,
    "mlp_only_layers": [0], "decoder_sparse_step": 2, "shared_expert_intermediate_size": 512,
}  # fmt: skip
del EXPERTS["attention_bias"], EXPERTS["mlp_bias"]
NOT_OF_FAMILY = {
    "qwen3_moe": ("shared_expert_intermediate_size",),
    "qwen3_vl_moe_text": ("shared_expert_intermediate_size",),
    "qwen3_5_moe_text": ("decoder_sparse_step", "mlp_only_layers"),
    "hunyuan_v1_moe": ("moe_intermediate_size",),
    "minimax_m2": ("sliding_window",),
}
QUANTISED = {
    "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128],
            "modules_to_not_convert": ["lm_head"]},
    "compressed": {"quant_method": "compressed-tensors", "ignore": ["lm_head"],
                   "config_groups": {"g": {"weights": {"num_bits": 4, "type": "int"},
                                           "input_activations": None}},
                   "kv_cache_scheme": {"num_bits": 8, "type": "float"}},
    "modelopt": {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "FP8"},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128},
}  # fmt: skip
VLLM = """# HELP vllm:spec_decode_num_drafts_total Number of spec decoding drafts.
# TYPE vllm:spec_decode_num_drafts_total counter
vllm:spec_decode_num_drafts_total{engine="0",model_name="a,b=\\"c\\""} 600.0
vllm:spec_decode_num_draft_tokens_total{engine="0",model_name="a,b=\\"c\\""} 1200.0
vllm:spec_decode_num_accepted_tokens_total{engine="0",model_name="a,b=\\"c\\""} 850.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="0"} 5e+02
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="1"} 350.0
"""
VLLM_V0 = """vllm:spec_decode_draft_acceptance_rate{model_name="m"} 0.642
vllm:spec_decode_num_accepted_tokens_total{model_name="m"} 8547.0
vllm:spec_decode_num_draft_tokens_total{model_name="m"} 13311.0
vllm:spec_decode_num_emitted_tokens_total{model_name="m"} 10616.0
"""
LOG = (
    "INFO 05-21 21:11:56 [metrics.py:101] SpecDecoding metrics: Mean acceptance length: {}, "
    "Accepted throughput: 3.87 tokens/s, Drafted throughput: 5.72 tokens/s, Accepted: {} tokens, "
    "Drafted: {} tokens, Per-position acceptance rate: {}, Avg Draft acceptance rate: {}%\n"
)
REPORTS = {
    "page": VLLM,
    "two scrapes": VLLM + VLLM.replace("600.0", "690.0").replace("1200.0", "1380.0"),
    "v0": VLLM_V0,
    "log": LOG.format("2.40", 420, 600, "0.800, 0.600", "70.0")
    + LOG.format(1.5, 50, 200, "0.400, 0.100", "25.0"),
    "early log": LOG.replace("Per-position acceptance rate: {}, ", "").format(2.4, 420, 600, 70.0),
    "v0 log": "Speculative metrics: Draft acceptance rate: 0.642, System efficiency: 0.665, Number "
    "of speculative tokens: 5, Number of accepted tokens: 8547, Number of draft tokens: 13311, "
    "Number of emitted tokens: 10616.\n",
    "printed": "num_drafts: 300\nnum_draft_tokens: 600\nnum_accepted_tokens: 420\nmean acceptance "
    "length: 2.40\nacceptance at token 0: 0.80\nacceptance at token 1: 0.60\n",
    "bench means": '{"spec_decode_acceptance_rate": 70.0, "spec_decode_acceptance_length": 2.4}',
    "counters": '{"num_drafts": 1000, "num_draft_tokens": 3000, '
    '"num_accepted_tokens_per_pos": [800, 600, 420]}',
    "metrics": '[{"name": "vllm:spec_decode_num_drafts", "value": 1000}, {"name": '
    '"vllm:spec_decode_num_accepted_tokens_per_pos", "values": [800, 600]}]',
    "bench": '{"backend": "vllm", "spec_decode_acceptance_rate": 72.0, "spec_decode_num_drafts": '
    '1800, "spec_decode_draft_tokens": 5400, "spec_decode_accepted_tokens": 3890, '
    '"spec_decode_per_position_acceptance_rates": [0.85, 0.71, 0.59]}',
    "sglang page": 'sglang:spec_accept_length{dp_rank="0",model_name="m"} 3.0\n'
    'sglang:spec_accept_length{dp_rank="1",model_name="m"} 0.0\n',
    "sglang log": "Decode batch. #running-req: 1, accept len: 3.05, cuda graph: True\n" * 2,
    "sglang bench": '{"backend": "sglang", "accept_length": 2.6}',
    "tensorrt-llm": '{"iter": 1, "specDecodingStats": {"numDraftTokens": 30, '
    '"numAcceptedTokens": 20, "numRequestsWithDraftTokens": 10, "acceptanceLength": 3.0}}\n' * 2,
    "llama.cpp": "slot print_timing: id 0 | draft acceptance rate = 0.57576 "
    "(  171 accepted /  297 generated)\n",
    "llama-speculative": "n_draft   = 4\nn_predict = 100\nn_drafted = 120\nn_accept  = 80\n",
    "run": '{"round": {"gamma": 2, "accepted": [2, 1], "kept_tokens": [3, 2]}}\n'
    '{"round": {"gamma": 2, "accepted": [0, 2], "kept_tokens": [1, 3]}}\n',
}  # fmt: skip
LATENCIES = """vllm:inter_token_latency_seconds_sum{engine="0",model_name="m"} 10.5
vllm:inter_token_latency_seconds_count{engine="0",model_name="m"} 1000
vllm:inter_token_latency_seconds_sum{engine="0",model_name="m"} 30.25
vllm:inter_token_latency_seconds_count{engine="0",model_name="m"} 3000
"""
STEPS = (
    "INFO [loggers.py:259] Engine 000: Avg prompt throughput: 0.0 tokens/s, Avg generation "
    "throughput: 1000.5 tokens/s, Running: 8 reqs, Waiting: 0 reqs, GPU KV cache usage: 5%\n"
)
TIMED = '{"backend": "vllm", "max_concurrency": 8, "mean_tpot_ms": 9.5, "completed": 64}'
TRTLLM_BENCH = """{
 "engine": {"model": "m", "version": "1.2.0", "backend": "Pytorch"},
 "machine": {"name": "NVIDIA H200"}, "world_info": {"tp_size": 1, "pp_size": 1},
 "request_info": {"num_requests": 64, "avg_num_concurrent_requests": 8.0,
  "avg_input_length": 4096.0, "avg_output_length": 256.0},
 "streaming_metrics": {"avg_ttft_ms": 80.0, "avg_tpot_ms": 6.0}
}"""
TALK = '[{"from": "human", "value": "How are you?"}, {"from": "gpt", "value": "Fine, thanks"}]'
TRACES = {
    "own.csv": "arrival_s,prompt_tokens,output_tokens\n0,100,3\n1.5,200,2\n2,50,20\n",
    "azure.csv": "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n"
    "2023-11-16 18:15:50.9951690,396,109\n",
    "burstgpt.csv": "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,472,18,490,Conversation log\n45,GPT-4,1087,0,1087,API log\n",
    "splitwise.csv": "request_id,arrival_timestamp,prompt_size,token_size\n0,0.1,374,44\n1,4,3,1\n",
    "vidur.csv": "arrived_at,num_prefill_tokens,num_decode_tokens\n0.1,374,44\n1.25,396,10\n",
    "mooncake.jsonl": '{"timestamp": 27482, "input_length": 675, "output_length": 52, '
    '"hash_ids": [46, 47]}\n{"timestamp": 30535, "input_length": 73, "output_length": 2, '
    '"hash_ids": [4]}\n',
    "bailian.jsonl": '{"chat_id": 1, "parent_chat_id": -1, "timestamp": 61.114, "input_length": '
    '521, "output_length": 13, "type": "text", "turn": 1, "hash_ids": [1]}\n',
    "talks.jsonl": f'{{"id": "a", "conversations": {TALK}}}\n' * 2,
    "sharegpt.json": f'[\n  {{"id": "a", "conversations": {TALK}}},\n'
    f'  {{"conversations": {TALK}}}\n]\n',
}  # fmt: skip
PROMPTS = '{"tokens": [1, 2, 3, 4, 5]}\n{"tokens": [7, 8, 9, 10]}\n'


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
