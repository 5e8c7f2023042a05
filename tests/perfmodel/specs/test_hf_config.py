"""Errors for unsupported or invalid configs, and the context length after RoPE scaling.

`tests/test_config_truth.py` compares the resulting models with transformers.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfmodel import catalog
from perfmodel.catalog._config_file import MAX_CONFIG_BYTES, read_hf_config
from perfmodel.errors import ConfigError
from perfmodel.specs.checkpoint.hf_config import from_hf_config
from perfmodel.specs.model import ModelSpec

SIZES = {
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 32000,
    "max_position_embeddings": 32768,
}


def spec_of(model_type: str = "llama", *, without: str = "", **fields: Any) -> ModelSpec:
    config: dict[str, Any] = {"model_type": model_type} | SIZES | fields
    config.pop(without, None)
    return from_hf_config(config, name="mine")


def refusal(model_type: str = "llama", *, without: str = "", **fields: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        spec_of(model_type, without=without, **fields)
    return one_line(caught.value)


def one_line(error: ConfigError) -> str:
    message = str(error)
    assert message.isprintable() and len(message) < 500
    return message


# ---- what is understood ---------------------------------------------------------------------


def test_qwen2_implies_qkv_bias_and_qwen3_qk_norm() -> None:
    llama, qwen2, qwen3 = (spec_of(kind) for kind in ("llama", "qwen2", "qwen3"))
    assert qwen2.parameters - llama.parameters == 32 * (32 + 2 * 8) * 128
    assert qwen3.parameters - llama.parameters == 32 * 2 * 128


def test_linear_scaling_stretches_the_context_from_the_original() -> None:
    linear = {"type": "linear", "factor": 4.0}
    longchat = spec_of(rope_scaling=linear, max_position_embeddings=4096)
    assert longchat.max_context_tokens == 16384
    stated = spec_of(rope_scaling=linear | {"original_max_position_embeddings": 8192})
    assert stated.max_context_tokens == 32768
    assert catalog.model("llama-2-7b-32k").max_context_tokens == 32768


def test_yarn_stretches_the_context_from_the_original() -> None:
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert spec_of("qwen2", rope_scaling=yarn).max_context_tokens == 131072
    assert spec_of(rope_parameters={"rope_type": "yarn", "factor": 4}).max_context_tokens == 131072
    qwen = spec_of("qwen2", rope_scaling=yarn, max_position_embeddings=131072)
    assert qwen.max_context_tokens == 131072
    stated = spec_of(rope_scaling=yarn, max_position_embeddings=200_000)
    assert stated.max_context_tokens == 200_000
    assert "factor is missing; rope type yarn needs it" in refusal(rope_scaling={"type": "yarn"})


# ---- what is refused ------------------------------------------------------------------------


def test_a_refusal_says_what_is_supported() -> None:
    assert refusal(num_experts=128) == (
        "mine: num_experts=128 is not supported; "
        "only dense MLPs are supported, not mixtures of experts"
    )
    assert refusal(model_type="gemma2") == (
        "mine: model_type='gemma2' is not supported; use one of llama, mistral, qwen2, qwen3"
    )
    assert refusal(architectures="LlamaForCausalLM") == (
        "mine: architectures='LlamaForCausalLM' must be a list of names"
    )


@pytest.mark.parametrize("field", sorted({*SIZES, "model_type"} - {"num_key_value_heads"}))
def test_a_missing_field_is_named(field: str) -> None:
    assert f"{field} is missing" in refusal(without=field)


@pytest.mark.parametrize(
    "value", [0, -1, 1.5, 4096.0, True, "4096", None, [], {}, float("nan"), float("inf"), 10**30]
)
@pytest.mark.parametrize("field", ["hidden_size", "vocab_size", "max_position_embeddings"])
def test_an_invalid_size_is_refused(field: str, value: Any) -> None:
    assert refusal(**{field: value}).startswith(f"mine: {field}=")


def test_a_number_too_long_to_print_is_refused() -> None:
    assert "hidden_size=a whole number of 33216 bits is not" in refusal(hidden_size=10**9999)


@pytest.mark.parametrize("config", [[], {}, None, "config", 7, [{"model_type": "llama"}]])
def test_a_value_that_is_not_a_config_is_refused(config: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        from_hf_config(config, name="mine")
    one_line(caught.value)


# ---- files ----------------------------------------------------------------------------------


def write(folder: Path, content: str | bytes) -> Path:
    file = folder / "config.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def test_a_file_and_its_directory_are_the_same_model(tmp_path: Path) -> None:
    file = write(tmp_path, json.dumps({"model_type": "llama"} | SIZES))
    assert read_hf_config(file) == read_hf_config(tmp_path)
    assert catalog.model(str(file)).parameters == spec_of().parameters
    assert catalog.model(str(tmp_path)).name == tmp_path.name


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\x80\x81", "not UTF-8"),
        (b"\xef\xbb\xbf{}", "begins with a byte order mark"),
        (b"[]", "an object of fields, not a list of 0"),
        (b'"llama"', "an object of fields"),
        (b'{"hidden_size": NaN}', "NaN is not a JSON number"),
        (b'{"hidden_size": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"a": 1, "a": 2}', "key 'a' appears twice"),
        (b'{"x": {"a": 1, "a": 2}}', "key 'a' appears twice"),
        (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "limit"),
        (b" " * (MAX_CONFIG_BYTES + 1), "over 4,000,000 bytes"),
    ],
)
def test_a_hostile_config_file_is_refused_in_one_line(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        catalog.model(str(write(tmp_path, content)))
    assert reason in one_line(caught.value)


@pytest.mark.parametrize(
    "path",
    [
        "/nowhere/config.json",
        "./nowhere.json",
        ".",
        "/dev/zero",
        "a/" + "b" * 5000,
        "\0.json",
        "\ud800.json",
    ],
)
def test_a_missing_path_is_refused_in_one_line(path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        catalog.model(path)
    one_line(caught.value)


# ---- fuzz -----------------------------------------------------------------------------------

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(1, 64)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["llama", "mistral", "qwen2", "qwen3", "silu", "yarn", "full_attention"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["rope_type", "rope_theta", "factor", "type"]), inner)
    ),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    [*SIZES, "model_type", "head_dim", "rope_theta", "rope_scaling", "rope_parameters",
     "sliding_window", "use_sliding_window", "max_window_layers", "layer_types", "architectures",
     "tie_word_embeddings", "hidden_act", "num_experts", "quantization_config", "mlp_bias"]
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(config=VALUES | st.dictionaries(st.text(max_size=10), VALUES, max_size=5))
def test_any_json_value_is_a_model_or_one_line(config: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        from_hf_config(config, name="mine")
    one_line(caught.value)


@settings(max_examples=200, deadline=None)
@given(
    kind=st.sampled_from(["llama", "mistral", "qwen2", "qwen3"]),
    fields=st.dictionaries(FIELDS, VALUES, max_size=4),
)
def test_a_config_with_any_fields_spoilt_is_a_model_or_one_line(
    kind: str, fields: dict[str, Any]
) -> None:
    try:
        spec = from_hf_config({"model_type": kind} | SIZES | fields, name="mine")
    except ConfigError as error:
        one_line(error)
    else:
        assert spec.parameters > 0


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=200) | st.text(alphabet='{}[]",:0e-\\ua', max_size=60))
def test_any_file_is_a_model_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: bytes | str
) -> None:
    file = write(tmp_path_factory.getbasetemp(), content)
    with pytest.raises(ConfigError) as caught:
        catalog.model(str(file))
    one_line(caught.value)
