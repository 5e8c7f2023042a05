"""Which modules of a quantised checkpoint keep their type, as tools name them."""

from typing import Any

import pytest
from quantised_configs import LLAMA, QWEN, compressed, stored_types

from perfmodel import ConfigError, catalog, parse_scenario
from perfmodel.specs.checkpoint.modules import Stored


@pytest.mark.parametrize(
    ("module", "kept"),
    [
        ("re:.*attn.*", True),
        ("self_attn", True),
        ("model.layers.*.self_attn", True),
        ("*self_attn*", True),
        ("model.layers.3.self_attn.q_proj", False),  # one of 92 layers
        ("re:.*linear_attn.*", False),
        ("model.layers.92.self_attn.q_proj", False),  # of the MTP head
        ("re:.*self_attn.q_norm", False),
        ("vision_tower.encoder.layers.3.self_attn.q_proj", False),
        ("re:vision_tower.*", False),
        ("lm_head", False),
    ],
)
def test_attention_is_kept_if_the_modules_that_are_left_out_are_those_of_the_decoder(
    module: str, kept: bool
) -> None:
    stated = compressed(8, "float", inputs=True) | {"ignore": ["lm_head", module]}
    found = stored_types(LLAMA | {"num_hidden_layers": 92}, stated)
    if kept:
        assert found == Stored("", "fp8", parts=(("mlp", "fp8"),))
    else:
        assert found == Stored("fp8", "fp8")


@pytest.mark.parametrize(
    ("module", "meant"),
    [
        ("lm_haed", "lm_head"),
        ("model.layers.0.self_attn.q_porj", "q_proj"),
        ("re:.*self_atn.*", "self_attn"),
        (r"re:model\.layers\.\d+\.mlp\.experst\..*", "experts"),
        ("*self_atn*", "self_attn"),
    ],
)
def test_a_misspelt_module_that_is_left_out_is_refused(module: str, meant: str) -> None:
    stated = compressed(8, "float", inputs=True) | {"ignore": [module]}
    with pytest.raises(ConfigError, match=f"matches no module; did you mean {meant}"):
        stored_types(LLAMA, stated)


@pytest.mark.parametrize("module", ["re:.*self_att.*", "re:.*router_.*", r"re:.*mlp\.gate$"])
def test_a_pattern_of_part_of_a_name_or_of_modules_that_are_not_modelled_is_read(
    module: str,
) -> None:
    stored_types(LLAMA, compressed(8, "float", inputs=True) | {"ignore": [module]})


@pytest.mark.parametrize("prefix", ["", "model.", "language_model.model.", "model.language_model."])
def test_modules_are_named_with_or_without_the_prefix_of_a_wrapper(prefix: str) -> None:
    names = [f"{prefix}layers.{i}.mlp.{m}_proj" for i in range(16) for m in ("gate", "up", "down")]
    expected = Stored("int4", "int4", parts=(("mlp", "bf16"),))
    stated = {"quant_method": "awq", "bits": 4}
    assert stored_types(LLAMA, stated | {"modules_to_not_convert": names}) == expected
    globs = [f"{prefix}layers.{i}.mlp*" for i in range(16)]
    assert stored_types(LLAMA, stated | {"modules_to_not_convert": globs}) == expected


def test_groups_name_the_modules_of_parts() -> None:
    def found(config: dict[str, Any], **groups: list[str]) -> Stored:
        stated = compressed(4, "int", group_size=128)
        (group,) = stated["config_groups"].values()
        stated["config_groups"] = {n: group | {"targets": targets} for n, targets in groups.items()}
        eight = compressed(8, "float")["config_groups"]["group_0"]
        if "fp8" in groups:
            stated["config_groups"]["fp8"] = eight | {"targets": groups["fp8"]}
        return stored_types(config, stated)

    experts = [r"re:.*mlp\.experts\..*"]
    mixture = catalog.model_config("qwen3-30b-a3b")
    assert found(QWEN, all=["Linear"]) == Stored("int4", "int4")
    assert found(mixture, all=experts) == Stored("", "int4")
    assert found(mixture, all=experts, fp8=["Linear"]) == Stored("fp8", "int4")
    with pytest.raises(ConfigError, match="67% of the weights of mlp"):
        found(QWEN, all=["re:.*down_proj"])
    with pytest.raises(ConfigError, match="targets='QwenMLP'"):
        found(QWEN, all=["QwenMLP"])


def test_a_head_is_quantised_if_a_checkpoint_says_so() -> None:
    gptq = {"quant_method": "gptq", "bits": 4}
    assert stored_types(QWEN, gptq | {"lm_head": True}).parts == (("head", "int4"),)
    assert stored_types(LLAMA, gptq | {"lm_head": True}).parts == ()  # tied to the embedding
    assert stored_types(QWEN, gptq).parts == ()


def test_types_that_differ_between_layers_are_refused() -> None:
    stated = {"quant_method": "gptq", "bits": 4, "dynamic": {"+:.*down.*": {"bits": 8}}}
    with pytest.raises(ConfigError, match="dynamic="):
        stored_types(LLAMA, stated)
    without = {"quant_method": "gptq", "bits": 4, "dynamic": {"lm_head": {}, "-:.*attn.*": {}}}
    assert stored_types(LLAMA, without) == Stored("", "int4", parts=(("mlp", "int4"),))


def test_only_the_experts_of_gpt_oss_are_quantised() -> None:
    scenario = parse_scenario({"target": "gpt-oss-120b"}).scenario()
    assert scenario.target_types == ("bf16", "mxfp4", "bf16", ())


def mixed(**kinds: Any) -> dict[str, Any]:
    """An algorithm for each module, as in nvidia's Qwen3.6 in NVFP4; `kinds` by module."""
    layers = {
        f"model.layers.{i}.{module.replace('__', '.')}": fields
        for module, fields in kinds.items()
        for i in range(LLAMA["num_hidden_layers"])
    }
    return {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": layers}


def test_modelopt_may_state_an_algorithm_for_each_module() -> None:
    fp8, fp4 = {"quant_algo": "FP8"}, {"quant_algo": "W4A16_NVFP4", "group_size": 16}
    attention = {f"self_attn__{name}_proj": fp8 for name in "qkvo"}
    mlp = {f"mlp__{name}_proj": fp4 for name in ("gate", "up", "down")}
    stored = stored_types(LLAMA, mixed(**attention, **mlp))
    assert stored.weights == "fp8" and dict(stored.parts) == {"mlp": "nvfp4"}
    assert dict(stored_types(LLAMA, mixed(**attention)).parts) == {"mlp": "bf16"}


@pytest.mark.parametrize(
    ("stated", "named"),
    [
        (mixed(), "quantized_layers"),
        (mixed(mlp__up_proj="FP8"), "mlp.up_proj"),
        (mixed(mlp__up_proj={"quant_algo": "ODD"}), "ODD"),
        (mixed(mlp__up_proj={"quant_algo": "NVFP4", "group_size": 32}), "group_size"),
        (mixed(mlp__odd_proj={"quant_algo": "FP8"}), "odd_proj"),
    ],
)
def test_broken_lists_of_modules_are_refused(stated: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        stored_types(LLAMA, stated)
    assert str(caught.value).isprintable()
