"""A pasted line that starts a server is read as its engine and the shell read it."""

from typing import Any

import pytest

pytest.importorskip("streamlit")


from app.explorer.inputs.serve_line import quantised_id, serve_values
from perfmodel import ConfigError, parse_scenario
from perfmodel.reports import ExportPlan, export_plan, exportability

LINE = (
    "CUDA_VISIBLE_DEVICES=0,1 vllm serve Qwen/Qwen3-32B \\\n  -tp 2 --max-num-seqs=32 "
    "--kv-cache-dtype fp8_e4m3 --trust-remote-code --quantization fp8"
)


@pytest.mark.parametrize(
    "plan",
    [
        {"draft": "none"},
        {"draft": "llama-3.2-1b", "draft_policy": "full", "gamma": 3},
        {"draft": "eagle3", "gamma": 2, "weight_dtype": "fp8", "kv_dtype": "fp8"},
        {"draft": "p-eagle", "gamma": 5},
        {"draft": "mtp", "gamma": 1, "weight_dtype": "fp16", "kv_dtype": "fp16"},
        {"draft": "ngram", "gamma": 4},
    ],
)
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_an_exported_line_is_read_back(plan: dict[str, Any], engine: str) -> None:
    stated = parse_scenario({"target": "llama-3.1-8b", "tp": 4, "batch": 16, **plan})
    head = "" if stated.draft == "llama-3.2-1b" else "me/head"
    exported = ExportPlan(scenario=stated.scenario(), draft_checkpoint=head)
    if exportability(exported)[engine] is not None:
        assert engine == "sglang" and stated.draft == "p-eagle"
        return
    values, _, served, _, named = serve_values(export_plan(engine=engine, plan=exported))
    assert served == engine
    assert named == ("" if stated.draft in ("none", "ngram") else head)
    read = parse_scenario({"gpu": "h100-sxm", "kv_dtype": stated.kv_dtype} | values)
    assert read.scenario() == stated.scenario()


def test_other_spellings_of_a_line() -> None:
    values, ignored, engine, *_ = serve_values(LINE)
    assert values == {
        "target": "qwen3-32b",
        "tp": 2,
        "batch": 32,
        "kv_dtype": "fp8",
        "weight_dtype": "fp8",
        "draft": "none",
    }
    assert ignored == ["--trust-remote-code"] and engine == "vllm"
    dotted = (
        "python -m vllm.entrypoints.openai.api_server --model meta-llama/Llama-3.1-70B -tp 8 "
        "--speculative-config.model meta-llama/Llama-3.2-1B "
        "--speculative-config.num_speculative_tokens 4 --enable-expert-parallel"
    )
    values = serve_values(dotted).values
    assert (values["draft"], values["gamma"], values["draft_tp"]) == ("llama-3.2-1b", 4, 8)
    assert values["ep"] == 8
    replicas, ignored, *_ = serve_values(
        "vllm serve Qwen/Qwen3-32B -tp 2 -pp 1 --data-parallel-size=4"
    )
    assert replicas["tp"] == 2 and any("one of the 4 replicas" in one for one in ignored)


QWEN = "vllm serve Qwen/Qwen3-32B"


@pytest.mark.parametrize(
    ("line", "stated"),
    [
        (QWEN, {"tp": 1}),
        ("vllm serve -tp 4 Qwen/Qwen3-32B", {"tp": 4}),
        ("vllm serve --trust-remote-code Qwen/Qwen3-32B -tp 2", {"tp": 2}),
        ("vllm serve --a-new-switch Qwen/Qwen3-32B -tp 2", {"tp": 2}),
        (f"cd /srv && A=1 nohup {QWEN} -tp=4 > log 2>&1 &", {"tp": 4}),
        (f"{QWEN} -tp 2 && vllm bench serve --model me/other -tp 8", {"tp": 2}),
        ("docker run -p 80:80 vllm/vllm-openai:v1 --model Qwen/Qwen3-32B -tp 2", {"tp": 2}),
        (f"{QWEN} \\\r\n  -tp 2 \\\n  --max-num-seqs 8 \\", {"tp": 2, "batch": 8}),
        (f"{QWEN} \\   -tp 2 \\ --max-num-seqs 8", {"tp": 2, "batch": 8}),  # in a box of one line
        (f"{QWEN} -q awq --dtype half", {"weight_dtype": "int4"}),
        (
            f"{QWEN} -tp 2 -dp 2 -pp 1 --quantization modelopt_fp4",
            {"tp": 2, "weight_dtype": "nvfp4"},
        ),
        (
            f"{QWEN} -tp 2 --speculative-model [ngram] --num-speculative-tokens 5",
            {"tp": 2, "draft": "ngram", "gamma": 5},
        ),
        (
            f"{QWEN} -tp 2 --speculative-model=Qwen/Qwen3-8B --num_speculative_tokens=3 "
            "--speculative-draft-tensor-parallel-size 1",
            {"tp": 2, "draft": "qwen3-8b", "gamma": 3, "draft_tp": 1},
        ),
    ],
)
def test_a_line_is_read_as_vllm_and_the_shell_read_it(line: str, stated: dict[str, Any]) -> None:
    values = serve_values(line).values
    if values["draft"] != "none":
        assert values.pop("draft_policy") == "full"
    assert values == {"target": "qwen3-32b", "tp": 1, "draft": "none"} | stated


@pytest.mark.parametrize(
    ("named", "stated"),
    [
        ("Qwen/Qwen3-32B-FP8 --quantization fp8", {"weight_dtype": "fp8_block"}),
        ("JunHowie/Qwen3-32B-GPTQ-Int8 -q gptq --dtype half", {"weight_dtype": "int8"}),
        ("me/Qwen3-32B-bf16 -q fp8 --dtype bfloat16", {"weight_dtype": "fp8"}),
        ("deepseek-ai/DeepSeek-V3 --quantization fp8 --dtype bfloat16", {}),
        ("openai/gpt-oss-120b --quantization mxfp4", {}),
    ],
)
def test_a_quantised_checkpoint_keeps_its_type(named: str, stated: dict[str, str]) -> None:
    model = named.split()[0]
    values, ignored, *_ = serve_values(f"vllm serve {named}")
    assert not ignored
    assert {k: v for k, v in values.items() if k.endswith("dtype")} == stated
    kept = quantised_id(model, values["target"], values.get("weight_dtype", ""))
    assert kept == ("" if model.endswith("bf16") else model)


def test_a_quantisation_that_is_not_the_checkpoints_is_named() -> None:
    values, ignored, *_ = serve_values("vllm serve Qwen/Qwen3-32B-AWQ --quantization fp8")
    assert values["weight_dtype"] == "int4" and len(ignored) == 1
    assert "--quantization fp8" in ignored[0] and "int4" in ignored[0]


SGLANG = "python3 -m sglang.launch_server --model-path"


@pytest.mark.parametrize(
    ("line", "engine", "stated"),
    [
        (f"{SGLANG} Qwen/Qwen3-32B --tp 2", "sglang", {"tp": 2}),
        ("sglang serve --model-path Qwen/Qwen3-32B --tp-size=2", "sglang", {"tp": 2}),
        (
            f"docker run --gpus all lmsysorg/sglang:latest {SGLANG} Qwen/Qwen3-32B-FP8 --tp 4 "
            "--max-running-requests 16 --kv-cache-dtype fp8_e5m2 --mem-fraction-static 0.9",
            "sglang",
            {"tp": 4, "batch": 16, "kv_dtype": "fp8", "weight_dtype": "fp8_block"},
        ),
        (
            f"{SGLANG} Qwen/Qwen3-32B --speculative-algorithm EAGLE3 --speculative-num-steps 3 "
            "--speculative-draft-model-path me/head --speculative-eagle-topk 1 "
            "--speculative-num-draft-tokens 4 --trust-remote-code",
            "sglang",
            {"draft": "eagle3", "gamma": 3},
        ),
        (
            f"{SGLANG} Qwen/Qwen3-32B --speculative-algorithm NGRAM "
            "--speculative-num-draft-tokens 6",
            "sglang",
            {"draft": "ngram", "gamma": 5},
        ),
        (
            f"{SGLANG} deepseek-ai/DeepSeek-V3 --tp 8 --ep 8 --speculative-algorithm EAGLE",
            "sglang",
            {"target": "deepseek-v3", "tp": 8, "ep": 8, "draft": "mtp"},
        ),
        (
            f"{SGLANG} Qwen/Qwen3-32B --speculative-algorithm STANDALONE "
            "--speculative-draft-model-path Qwen/Qwen3-8B-AWQ --speculative-num-steps 4 --tp 2",
            "sglang",
            {"tp": 2, "draft": "qwen3-8b", "draft_tp": 2, "gamma": 4, "draft_dtype": "int4"},
        ),
        (
            "trtllm-serve Qwen/Qwen3-32B --tp_size 4 --max_batch_size 32 --backend pytorch",
            "tensorrt-llm",
            {"tp": 4, "batch": 32},
        ),
        (
            "mpirun -n 1 trtllm-serve serve /models/Qwen3-32B --tp_size 4 --config plan.yaml",
            "tensorrt-llm",
            {"tp": 4},
        ),
        (
            "vllm serve RedHatAI/Qwen3-32B-quantized.w4a16 --dtype half -tp 2",
            "vllm",
            {"tp": 2, "weight_dtype": "int4"},
        ),
    ],
)
def test_a_line_of_each_server_is_read(line: str, engine: str, stated: dict[str, Any]) -> None:
    values, _, served, *_ = serve_values(line)
    if values["draft"] != "none":
        assert values.pop("draft_policy") == "full"
    assert served == engine
    assert values == {"target": "qwen3-32b", "tp": 1, "draft": "none"} | stated


def test_what_a_line_of_another_server_leaves_open_is_named() -> None:
    tree = "--speculative-algorithm EAGLE3 --speculative-num-steps 3 --speculative-eagle-topk 4"
    assert any("not trees" in one for one in serve_values(f"{SGLANG} Qwen/Qwen3-8B {tree}").ignored)
    file = "trtllm-serve Qwen/Qwen3-8B --extra_llm_api_options plan.yaml"
    assert any("file is not read" in one for one in serve_values(file).ignored)


def test_what_a_line_leaves_open_is_named() -> None:
    open_flags = serve_values(f"{QWEN} -dp 4 -q gguf --enforce-eager").ignored
    assert [flag.split()[0] for flag in open_flags] == [
        "--data-parallel-size",
        "--quantization",
        "--enforce-eager",
    ]


@pytest.mark.parametrize(
    "line",
    [
        "vllm serve",
        f"{QWEN} -pp 2",
        f"{QWEN} -dp many",
        f"{QWEN} --speculative-model me/unknown --num-speculative-tokens 3",
        "vllm serve me/unknown -tp 2",
        "vllm serve /etc/passwd -tp 2",
        "vllm serve Qwen/Qwen3-32B -tp many",
        "vllm serve Qwen/Qwen3-32B -tp 0",
        "vllm serve Qwen/Qwen3-32B --speculative-config {method:",
        'vllm serve Qwen/Qwen3-32B --speculative-config \'{"method": "medusa"}\'',
        "vllm serve Qwen/Qwen3-32B --flag 'unclosed",
        "vllm serve Qwen/Qwen3-32B -tp 2 -pp 2",
        "vllm serve deepseek-ai/DeepSeek-V3 -dp 8 --enable-expert-parallel",
        "vllm serve " + "x" * 20_000,
        "lmdeploy serve api_server Qwen/Qwen3-32B --tp 2",
        "vllm serve bartowski/Qwen3-32B-GGUF",
        f"{SGLANG} Qwen/Qwen3-32B --speculative-algorithm EAGLE",
        "trtllm-serve disaggregated -c config.yaml",
        "vllm bench serve --model Qwen/Qwen3-32B --num-prompts 100",
        "python benchmarks/benchmark_serving.py --model Qwen/Qwen3-32B",
        "python -m sglang.bench_serving --model Qwen/Qwen3-32B",
    ],
)
def test_a_line_that_cannot_be_read_is_one_message(line: str) -> None:
    with pytest.raises(ConfigError) as error:
        serve_values(line)
    assert "\n" not in str(error.value)
