"""`predict` and `run` interpret a `config.json` in the same way as transformers.

Each case is written to a folder and read three times: by `AutoConfig` as a tiny random model, by
`perfmodel` and by `runtime`. Either shapes, bytes, end tokens and logits are equal, or both
packages refuse the config with a one-line error.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from decoder_configs import FULL, LEFT_OUT, LLAMA3, READ, REFUSED, SIZES, SLIDING, TOKENS, case
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
