"""`predict` and `run` interpret a `config.json` in the same way as transformers.

Each case is written to a folder and read three times: by `AutoConfig` as a tiny random model, by
`perfmodel` and by `runtime`. Either shapes, bytes, end tokens and logits are equal, or both
packages refuse the config with a one-line error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import hf_config

from perfmodel import ConfigError, ModelSpec, catalog
from perfmodel.specs.checkpoint import config_fields as predicted
from runtime import ALONE, BatchShape, DraftPlan, EngineSetup, Model, Ranks, build_engine
from runtime import config_fields as run
from runtime.attention import PassLayout
from runtime.config import DecoderConfig, config_of_shape, read_config
from runtime.contracts import ModelShape
from runtime.errors import InputError

transformers = pytest.importorskip("transformers", reason="transformers is the reference here")
torch.set_num_threads(1)

LEFT_OUT = object()
SIZES = {
    "num_hidden_layers": 3, "hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2,
    "intermediate_size": 80, "vocab_size": 131, "max_position_embeddings": 512,
}  # fmt: skip
TOKENS = 70
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
SLIDING, FULL = "sliding_attention", "full_attention"
SLIDES = {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 0}


def case(model_type: str = "llama", /, **fields: Any) -> dict[str, Any]:
    """The fields of a config.json; LEFT_OUT drops one."""
    written = {"model_type": model_type} | SIZES | fields
    return {name: value for name, value in written.items() if value is not LEFT_OUT}


# ---- what is read -------------------------------------------------------------------------------

READ = {
    "llama": case(),
    "llama as the hub has it": case(
        architectures=["LlamaForCausalLM"], attention_bias=False, mlp_bias=False,
        attention_dropout=0.0, bos_token_id=1, eos_token_id=2, hidden_act="silu",
        initializer_range=0.02, pretraining_tp=1, rms_norm_eps=1e-5, rope_scaling=None,
        rope_theta=500000.0, tie_word_embeddings=False, torch_dtype="bfloat16",
        transformers_version="4.44.0", use_cache=True,
    ),
    "llama, switched off or of no effect": case(
        use_mrope=False, is_llama_config=True, rope_interleaved=False, unsloth_version="2025.9",
        _name_or_path="a/b", max_length=4096, temperature=0.6, tokenizer_class="T", top_k=50,
    ),
    "llama, one KV head a query head": case(num_key_value_heads=LEFT_OUT),
    "llama, KV heads null": case(num_key_value_heads=None),
    "llama, one KV head": case(num_key_value_heads=1),
    "llama, its own head_dim": case(head_dim=12),
    "llama, head_dim null": case(head_dim=None),
    "llama, tied": case(tie_word_embeddings=True),
    "llama, eps of the class": case(rms_norm_eps=LEFT_OUT),
    "llama, large eps": case(rms_norm_eps=0.01),
    "llama, every layer full": case(layer_types=[FULL] * 3),
    "llama, factors of one": case(residual_multiplier=1.0, logits_scaling=1, logit_scale=1.0),
    "llama, features off": case(num_experts=0, attn_logit_softcapping=None, sliding_window=None),
    "llama, whole rotary": case(partial_rotary_factor=1.0),
    "end tokens, a list": case(eos_token_id=[3, 5]),
    "end tokens, null": case(eos_token_id=None),
    "end tokens, of the class": case("mistral"),
    "rope of transformers 4": case(rope_theta=1e6),
    "rope of transformers 4, a whole number": case(rope_theta=500000),
    "rope of transformers 5": case(rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
    "rope of transformers 5, base above": case(rope_parameters={"rope_type": "default"},
                                               rope_theta=1e6),
    "rope, empty": case(rope_scaling={}, rope_theta=5e5),
    "rope, both spellings": case(rope_scaling={"type": "linear", "factor": 2.0},
                                 rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
    "rope, type default": case(rope_scaling={"type": "default"}),
    "linear, old key": case(rope_scaling={"type": "linear", "factor": 4.0}),
    "linear, new key": case(rope_scaling={"rope_type": "linear", "factor": 4}),
    "linear of transformers 5": case(rope_parameters={"rope_type": "linear", "factor": 4.0,
                                                      "rope_theta": 5e4}),
    "linear, its original context": case(rope_scaling={
        "type": "linear", "factor": 4.0, "original_max_position_embeddings": 128}),
    "llama3 of transformers 4": case(rope_scaling=LLAMA3, rope_theta=5e5),
    "llama3 of transformers 5": case(rope_parameters=LLAMA3 | {"rope_theta": 5e5}),
    "llama3 without original": case(rope_scaling={
        key: value for key, value in LLAMA3.items() if not key.startswith("original")}),
    "llama3, tied": case(rope_scaling=LLAMA3, tie_word_embeddings=True),
    **{f"{kind}, bounds of yarn": case(rope_scaling=LLAMA3 | {
        "rope_type": kind, "beta_fast": 0.5}) for kind in ("default", "linear", "llama3")},
    "yarn, old key": case("qwen2", rope_theta=1e6, rope_scaling={
        "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}),
    "yarn on qwen3": case("qwen3", head_dim=16, rope_scaling=YARN, rope_theta=1e6),
    "yarn on llama": case(rope_scaling=YARN),
    "yarn on mistral": case("mistral", rope_scaling=YARN),
    "yarn of transformers 5": case("qwen3", rope_parameters=YARN | {"rope_theta": 1e6}),
    "yarn without original": case("qwen2", rope_scaling={"type": "yarn", "factor": 2.0}),
    "yarn, factor of attention": case(rope_scaling=YARN | {"attention_factor": 0.7}),
    "yarn, its own bounds": case(rope_scaling=YARN | {"beta_fast": 8, "beta_slow": 2.0}),
    "yarn, bounds not rounded": case(head_dim=32, rope_scaling=YARN | {
        "truncate": False, "beta_fast": 3.0}),
    "yarn, two scales": case(rope_scaling=YARN | {"mscale": 0.8, "mscale_all_dim": 0.5}),
    "yarn, null options": case(rope_scaling=YARN | {"attention_factor": None, "beta_fast": None}),
    "yarn at factor 1": case(rope_scaling=YARN | {"factor": 1.0}),
    "mistral, window of 4096": case("mistral", sliding_window=LEFT_OUT),
    "mistral, window": case("mistral", sliding_window=20),
    "mistral, no window": case("mistral", sliding_window=None),
    "mistral, eight KV heads": case("mistral", num_key_value_heads=LEFT_OUT, hidden_size=64,
                                    num_attention_heads=8),
    "mistral, head_dim null": case("mistral", head_dim=None),
    "mistral, its own head_dim": case("mistral", head_dim=16),
    "mistral, heads that do not divide": case("mistral", hidden_size=50, head_dim=8),
    "qwen2": case("qwen2"),
    "qwen2, 32 KV heads": case("qwen2", num_key_value_heads=LEFT_OUT, num_attention_heads=32,
                               hidden_size=64),
    "qwen2, KV heads null": case("qwen2", num_key_value_heads=None),
    "qwen2, tied": case("qwen2", tie_word_embeddings=True),
    "qwen2, window switched off": case("qwen2", sliding_window=20, use_sliding_window=False,
                                       max_window_layers=0),
    "qwen2, all layers slide": case("qwen2", **SLIDES),
    "qwen2, no layer slides": case("qwen2", **SLIDES | {"max_window_layers": 3}),
    "qwen2, window from layer 28 on": case("qwen2", **SLIDES | {"max_window_layers": LEFT_OUT}),
    "qwen2, all layers listed as sliding": case("qwen2", **SLIDES, layer_types=[SLIDING] * 3),
    "qwen2, all layers listed as full": case("qwen2", **SLIDES, layer_types=[FULL] * 3),
    "qwen2, window null": case("qwen2", **SLIDES | {"sliding_window": None}),
    "qwen3, head_dim of 128": case("qwen3"),
    "qwen3": case("qwen3", head_dim=16, tie_word_embeddings=True),
    "qwen3, heads that do not divide": case("qwen3", hidden_size=50, head_dim=16),
    "qwen3, all layers slide": case("qwen3", head_dim=8, **SLIDES),
    "qwen3 as transformers 5 writes it": case(
        "qwen3", head_dim=8, dtype="float32", layer_types=[FULL] * 3, max_window_layers=28,
        rope_parameters={"rope_theta": 1e6, "rope_type": "default"}, sliding_window=None,
        use_sliding_window=False, attention_bias=False, eos_token_id=None, pad_token_id=None,
        transformers_version="5.23.0",
    ),
    "labels, most": case(num_labels=10_000),
    "remote code that is not needed": case(auto_map={"AutoConfig": "configuration.Mine"}),
}  # fmt: skip

# ---- what is refused ----------------------------------------------------------------------------

REFUSED = {
    "no model_type": case(model_type=LEFT_OUT),
    "model_type null": case(model_type=None),
    "model_type a list": case(model_type=["llama"]),
    **{kind: case(kind) for kind in ("gemma2", "deepseek_v32", "mamba")},
    "another architecture": case(architectures=["LlamaForSequenceClassification"]),
    "architectures, a text": case(architectures="LlamaForCausalLM"),
    "a wrapper": {"model_type": "llava", "text_config": case("opt")},
    "a wrapper of a known type": case(text_config=case()),
    "quantised by bitsandbytes": case(quantization_config={"quant_method": "bitsandbytes"}),
    "quantised by compressed-tensors": case(compression_config={"format": "int-quantized"}),
    "experts": case("qwen3", num_experts=128),
    "attention bias": case(attention_bias=True),
    "attention bias of qwen3": case("qwen3", attention_bias=True),
    "attention bias, a number": case(attention_bias=1),
    "MLP bias": case(mlp_bias=True),
    "capped attention": case(attn_logit_softcapping=30.0),
    "capped logits": case(final_logit_softcapping=30.0),
    "scaled logits": case(logits_scaling=8.0),
    "half rotary": case(partial_rotary_factor=0.5),
    "half rotary inside": case(rope_parameters={"rope_type": "default", "rope_theta": 1e4,
                                                "partial_rotary_factor": 0.5}),
    "layers without rotary": case(no_rope_layers=[1, 1, 0]),
    "another activation": case(hidden_act="gelu"),
    "activation null": case(hidden_act=None),
    "llama with a window": case(sliding_window=20),
    "mistral, layers that differ": case("mistral", sliding_window=16,
                                        layer_types=[FULL, SLIDING, FULL]),
    "mistral, layers listed": case("mistral", layer_types=[SLIDING] * 3),
    "qwen2, layers that differ": case("qwen2", **SLIDES, layer_types=[FULL, SLIDING, FULL]),
    "qwen2, window from layer 1 on": case("qwen2", **SLIDES | {"max_window_layers": 1}),
    "qwen2, sliding without window": case("qwen2", layer_types=[SLIDING] * 3),
    "qwen2, linear attention": case("qwen2", layer_types=["linear_attention"] * 3),
    "layer_types too short": case("qwen2", layer_types=[FULL] * 2),
    "layer_types, a text": case("qwen2", layer_types=FULL),
    "window of 0": case("mistral", sliding_window=0),
    "window, a text": case("mistral", sliding_window="20"),
    "window negative": case("qwen2", **SLIDES | {"sliding_window": -1}),
    **{f"rope {kind}": case(rope_scaling={"type": kind, "factor": 2.0})
       for kind in ("dynamic", "longrope", "mrope", "su", "", None, 7)},
    "rope, a text": case(rope_scaling="linear"),
    "rope, a list": case(rope_parameters=[]),
    "rope, for each kind of layer": case("qwen2", rope_parameters={
        FULL: {"rope_type": "default", "rope_theta": 1e6}}),
    "linear without factor": case(rope_scaling={"type": "linear"}),
    "linear, factor null": case(rope_scaling={"type": "linear", "factor": None}),
    "linear, factor a text": case(rope_scaling={"type": "linear", "factor": "4"}),
    "linear, factor below 1": case(rope_scaling={"type": "linear", "factor": 0.5}),
    "llama3 without bounds": case(rope_scaling={"rope_type": "llama3", "factor": 8.0}),
    "llama3, bounds turned round": case(rope_scaling=LLAMA3 | {"low_freq_factor": 4.0}),
    "yarn, factor null": case(rope_scaling=YARN | {"factor": None}),
    "yarn, original null": case(rope_scaling=YARN | {"original_max_position_embeddings": None}),
    "yarn, original a text": case(rope_scaling=YARN | {"original_max_position_embeddings": "32"}),
    "yarn, original beside it": case(rope_scaling=YARN, original_max_position_embeddings=64),
    "yarn, attention negative": case(rope_scaling=YARN | {"attention_factor": -1.0}),
    "yarn, bounds turned round": case(rope_scaling=YARN | {"beta_fast": 1, "beta_slow": 32}),
    **{f"rope_theta {value!r}": case(rope_theta=value)
       for value in (None, "10000", 0, -1.0, 1, True, float("nan"), float("inf"))},
    "rope_theta null inside": case(rope_parameters={"rope_type": "default", "rope_theta": None}),
    **{f"rms_norm_eps {value!r}": case(rms_norm_eps=value)
       for value in (None, "1e-5", -1e-5, 0.0, 1, float("nan"))},
    **{f"{field} missing": case(**{field: LEFT_OUT})
       for field in SIZES if field != "num_key_value_heads"},
    **{f"{field} null": case(**{field: None}) for field in SIZES if field != "num_key_value_heads"},
    **{f"hidden_size {value!r}": case(hidden_size=value)
       for value in (0, -48, 48.0, "48", True, [48], 10**30)},
    **{f"{kind}, an unknown field": case(kind, sparse_attention=4)
       for kind in ("llama", "mistral", "qwen2", "qwen3")},
    "llama, factors of gpt-oss": case(swiglu_limit=7.0),
    "a thousand million layers": case("qwen2", num_hidden_layers=10**9),
    "KV heads 1.5": case(num_key_value_heads=1.5),
    "KV heads 0": case(num_key_value_heads=0),
    "KV heads that do not divide": case(num_key_value_heads=4),
    "mistral, KV heads null": case("mistral", num_key_value_heads=None),
    "head_dim 0": case(head_dim=0),
    "head_dim odd": case(head_dim=15),
    "qwen2, head_dim null": case("qwen2", head_dim=None),
    "qwen3, head_dim null": case("qwen3", head_dim=None),
    "llama, heads that do not divide": case(hidden_size=50, head_dim=8),
    "mistral, no head_dim for odd heads": case("mistral", hidden_size=50),
    "tied, a text": case(tie_word_embeddings="false"),
    "tied, null": case(tie_word_embeddings=None),
    "end token, a text": case(eos_token_id="2"),
    "begin token, a text": case(bos_token_id="1"),
    "padding token, a list": case("qwen3", pad_token_id=[0]),
    **{f"dropout {value!r}": case(attention_dropout=value)
       for value in ("a", True, -0.1, 2, float("inf"))},
    "dropout beyond floats": case(attention_dropout=10**400),
    **{f"rope, {name} beyond floats": case(rope_scaling=LLAMA3 | {name: 10**400})
       for name in ("factor", "high_freq_factor", "beta_fast", "mscale")},
    "dropout null": case("qwen2", attention_dropout=None),
    **{f"initializer_range {value!r}": case(initializer_range=value)
       for value in (1, 2.0, -0.02, None, "0.02")},
    "use_cache null": case(use_cache=None),
    **{f"labels {value!r}": case(num_labels=value)
       for value in ("x", True, False, None, -1, 2.0, 10_001, 3_000_000, 10**30)},
    **{f"causal {value!r}": case(is_causal=value) for value in (False, 1, 1.0, None, "true")},
    **{f"remote code {value!r}": case(auto_map=value)
       for value in (None, 64, "x", [], {"AutoConfig": 64}, {"AutoConfig": None})},
    "one label of several": case(num_labels=1, problem_type="single_label_classification"),
    "labels without numbers": case(id2label={"a": 1}),
    "pretraining_tp, a text": case(pretraining_tp="x"),
    **{f"{name} is not a field": case(**{name: {}})
       for name in ("attribute_map", "to_dict", "__class__")},
    "no such dtype": case(torch_dtype="bf16"),
    "dtype of 8 bits": case(dtype="float8_e4m3fn"),
}  # fmt: skip


def write(folder: Path, fields: Mapping[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def both(folder: Path) -> tuple[ModelSpec | str, DecoderConfig | str]:
    """What each half makes of a folder: a model, or its refusal in one line."""
    spec: ModelSpec | str
    config: DecoderConfig | str
    try:
        spec = catalog.model(str(folder))
    except ConfigError as error:
        spec = str(error)
    try:
        config = read_config(folder)
    except InputError as error:
        config = str(error)
    for refusal in (spec, config):
        if isinstance(refusal, str):
            assert refusal.isprintable() and len(refusal) < 500
    return spec, config


def shape(model: ModelShape) -> dict[str, Any]:
    return {name: getattr(model, name) for name in vars(ModelShape) if name[0] != "_"}


@pytest.mark.parametrize("name", READ)
def test_what_is_read_is_the_model_that_transformers_builds(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", READ[name])
    torch.manual_seed(0)
    stated = transformers.AutoConfig.from_pretrained(folder)
    stated.initializer_range = 0.15
    stated._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(stated, dtype=torch.float32).eval()
    for parameter in model.parameters():  # biases and norms away from 0 and 1
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    spec, config = both(write(folder, READ[name]))
    assert not isinstance(spec, str) and not isinstance(config, str), (spec, config)
    assert shape(spec) == shape(config)
    assert spec.parameters == model.num_parameters()
    assert config.eos_tokens == tokens_of(model.generation_config.eos_token_id)
    tokens = torch.randint(0, 131, (TOKENS,)).tolist()
    with torch.inference_mode():
        expected = model(torch.tensor([tokens])).logits[0]
        found = all_logits(folder, config, spec, tokens, pieces=(40, 1, 5, 24))
    assert float(expected.std()) > 0.1
    assert float((found - expected).abs().max()) <= 1e-4 * float(expected.abs().max())


def all_logits(
    folder: Path,
    config: DecoderConfig,
    spec: ModelSpec,
    tokens: Sequence[int],
    pieces: Sequence[int],
) -> torch.Tensor:
    """Logits after every token, fed in pieces through the paged cache; bytes are the predicted."""
    plan = DraftPlan(
        draft="none", policy="full", gamma=0, kv_budget_tokens=None, sink_tokens=0, draft_tp=None
    )
    setup = EngineSetup(
        target=Model(config=config, folder=folder), draft=None, plan=plan, page_tokens=4
    )
    engine = build_engine(setup, Ranks(ALONE, ALONE), BatchShape([len(tokens)], [1]))
    assert engine.target.weights.bytes == 2 * spec.weight_bytes_per_rank(1)  # float32, not bf16
    assert engine.cache.token_bytes == 2 * spec.kv_bytes_per_token_per_rank(1)
    pages = engine.cache.allocate(-(-len(tokens) // 4))
    logits, start = [], 0
    for count in pieces:
        layout = PassLayout(
            page_tables=[pages],
            kv_tokens=[start + count],
            query_tokens=[count],
            window_tokens=config.sliding_window_tokens,
        )
        hidden = engine.target.forward(
            torch.tensor(tokens[start : start + count]),
            torch.arange(start, start + count),
            engine.backend.plan(layout),
        )
        logits.append(engine.target.logits(hidden))
        start += count
    return torch.cat(logits)


def tokens_of(value: int | list[int] | None) -> tuple[int, ...]:
    return () if value is None else tuple(value) if isinstance(value, list) else (value,)


@pytest.mark.parametrize("name", REFUSED)
def test_what_one_refuses_the_other_refuses(name: str, tmp_path: Path) -> None:
    spec, config = both(write(tmp_path / "model", REFUSED[name]))
    assert isinstance(spec, str) and isinstance(config, str), (spec, config)


@pytest.mark.parametrize("kind", ["granite", "mixtral", "deepseek_v3", "gemma3_text", "ministral"])
def test_the_engine_says_that_no_step_supports_a_prediction(kind: str, tmp_path: Path) -> None:
    spec, config = both(write(tmp_path / "model", case(kind)))
    assert isinstance(spec, ModelSpec) and spec.family == kind
    assert isinstance(config, str) and kind in config and "no step of it was measured" in config
    with pytest.raises(InputError, match="no step of it was measured"):
        config_of_shape(spec)


@pytest.mark.parametrize("name", catalog.model_names())
def test_the_engine_refuses_every_other_family_in_one_line(name: str) -> None:
    spec = catalog.model(name)
    if not spec.family:
        assert config_of_shape(spec).layers == spec.layers
        return
    with pytest.raises(InputError, match="no step of it was measured") as caught:
        config_of_shape(spec)
    line = str(caught.value)
    assert name in line and spec.family in line and line.isprintable()
    assert spec.family not in run.FAMILIES


def test_both_refuse_the_same_fields() -> None:
    assert set(run.REFUSED_FIELDS) == set(predicted.REFUSED_FIELDS)
    assert set(run.NEUTRAL_AT_ONE) == predicted.NEUTRAL_AT_ONE
    assert run.NOT_FIELDS == predicted.NOT_FIELDS
    assert run.HARMLESS_FIELDS == predicted.HARMLESS_FIELDS
    assert run.HARMLESS_STARTS == predicted.HARMLESS_STARTS
    assert run.HARMLESS_ENDS == predicted.HARMLESS_ENDS


ATTRIBUTES = sorted({
    name for model_type in run.FAMILIES
    for name in dir(transformers.CONFIG_MAPPING[model_type]) if not name.startswith("__")
})  # fmt: skip


@pytest.mark.parametrize("value", [None, True, 1, "x", [1], {"a": 1}])
@pytest.mark.parametrize("kind", run.FAMILIES)
def test_the_name_of_an_attribute_is_no_reason_to_disagree(
    kind: str, value: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in set(ATTRIBUTES) - SIZES.keys() | {"self"}:
        spec, config = both(write(tmp_path / "model", case(kind, **{name: value})))
        assert isinstance(spec, str) == isinstance(config, str), (name, spec, config)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", sorted(run.NOT_FIELDS))
def test_a_name_that_is_not_a_field_is_refused_with_advice(name: str, tmp_path: Path) -> None:
    for message in both(write(tmp_path / "model", case(**{name: None}))):
        assert isinstance(message, str) and name in message and "remove it" in message


@pytest.mark.parametrize("field", run.REFUSED_FIELDS)
@pytest.mark.parametrize("value", [True, 2, 0.5, "x", {"a": 1}, [1]])
def test_a_field_that_changes_the_mathematics_is_named(
    field: str, value: Any, tmp_path: Path
) -> None:
    for message in both(write(tmp_path / "model", case(**{field: value}))):
        assert isinstance(message, str) and field in message


def test_all_unknown_fields_are_named_at_once(tmp_path: Path) -> None:
    odd = {f"odd_{i}": i for i in range(1, 4)}
    for message in both(write(tmp_path / "few", case(**odd))):
        assert isinstance(message, str)
        assert all(f"{field}={value}" in message for field, value in odd.items())
    many = {f"odd_{i}": i for i in range(1, 31)}
    for message in both(write(tmp_path / "many", case(**many))):
        assert isinstance(message, str) and "odd_20=20 and 10 more" in message


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\x80\x81", b"[]", b'"llama"', b'{"hidden_size": NaN}', b'{"a": 1, "a": 2}',
     b'{"a": ' + b"[" * 100_000, b'{"a": ' + b"9" * 10_000 + b"}", b" " * 4_000_001,
     "\ufeff".encode() + json.dumps(case()).encode()],
)  # fmt: skip
def test_a_file_that_is_not_one_object_in_plain_utf8(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    assert all(isinstance(message, str) for message in both(tmp_path))


def test_both_name_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes("\ufeff".encode() + json.dumps(case()).encode())
    assert all("begins with a byte order mark" in str(message) for message in both(tmp_path))


@pytest.mark.parametrize("file", run.QUANTIZATION_FILES)
def test_a_quantisation_beside_the_config_is_read_but_not_run(file: str, tmp_path: Path) -> None:
    stated = {"quantization": {"quant_algo": "FP8"}} if "hf" in file else {"bits": 4}
    (write(tmp_path, case()) / file).write_text(json.dumps(stated))
    predicted, executed = both(tmp_path)
    assert getattr(predicted, "weight_dtype", predicted) in ("fp8", "int4")
    assert isinstance(executed, str) and file in executed


# ---- end tokens, and the way back ---------------------------------------------------------------


@pytest.mark.parametrize("stated", [None, 7, [7, 9], LEFT_OUT])
def test_end_tokens_are_those_of_the_generation_config(stated: Any, tmp_path: Path) -> None:
    write(tmp_path, case(eos_token_id=3))
    fields = {} if stated is LEFT_OUT else {"eos_token_id": stated}
    (tmp_path / "generation_config.json").write_text(json.dumps(fields))
    generation = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert read_config(tmp_path).eos_tokens == tokens_of(generation.eos_token_id)
    assert (read_config(tmp_path).eos_tokens == ()) == (stated is None or stated is LEFT_OUT)


@pytest.mark.parametrize("content", ["{", "[]", '{"eos_token_id": "2"}', '{"eos_token_id": [1.5]}'])
def test_a_broken_generation_config_is_one_line(content: str, tmp_path: Path) -> None:
    write(tmp_path, case())
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(InputError, match=r"generation_config\.json|eos_token_id") as caught:
        read_config(tmp_path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", READ)
def test_a_config_survives_being_written(name: str, tmp_path: Path) -> None:
    first = read_config(write(tmp_path / "model", READ[name]))
    assert read_config(write(tmp_path / "model", hf_config(first))) == first


@pytest.mark.parametrize(
    "name", [name for name in catalog.model_names() if not catalog.model(name).family]
)
def test_a_catalog_model_survives_being_written(name: str, tmp_path: Path) -> None:
    spec = catalog.model(name)
    again = both(write(tmp_path / name, hf_config(spec)))
    assert [shape(model) for model in again] == [shape(spec)] * 2
    assert read_config(tmp_path / name) == config_of_shape(spec)


# ---- any value at all ---------------------------------------------------------------------------

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.integers(0, 64) | st.text(max_size=9)
    | st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.5, 1.0, 2.0, 1e-5, 1e6])
    | st.sampled_from(["silu", "linear", "llama3", "yarn", "default", FULL, SLIDING, "float16"])
)  # fmt: skip
ROPE_KEYS = [
    *LLAMA3,
    "type",
    "rope_theta",
    "beta_fast",
    "beta_slow",
    "mscale",
    "attention_factor",
    "truncate",
    FULL,
]
ROPES = st.dictionaries(st.sampled_from(ROPE_KEYS), SCALARS)
FIELDS = st.sampled_from(
    [*SIZES, "head_dim", "rope_theta", "rope_scaling", "rope_parameters", "sliding_window",
     "use_sliding_window", "max_window_layers", "layer_types", "architectures", "torch_dtype",
     "tie_word_embeddings", "hidden_act", "rms_norm_eps", "eos_token_id", "bos_token_id",
     "pad_token_id", "attention_dropout", "initializer_range", "use_cache", "pretraining_tp",
     "num_labels", "id2label", "is_causal", "auto_map", *ATTRIBUTES, *run.REFUSED_FIELDS]
)  # fmt: skip


@settings(max_examples=300, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(
    kind=st.sampled_from(["llama", "mistral", "qwen2", "qwen3"]),
    fields=st.dictionaries(FIELDS, SCALARS | ROPES | st.lists(SCALARS, max_size=4), max_size=3),
)
def test_any_fields_are_read_alike_or_refused_by_both(
    kind: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    spec, config = both(write(tmp_path / "model", case(kind, **fields)))
    if isinstance(spec, str) or isinstance(config, str):
        assert isinstance(spec, str) and isinstance(config, str), (spec, config)
    else:
        assert shape(spec) == shape(config)
