"""Valid files of every kind that users give; `fuzz_cases` names the command of each."""

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
