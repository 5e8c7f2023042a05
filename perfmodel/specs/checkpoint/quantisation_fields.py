"""The fields that a `quantization_config` may have, by its method.

They are those that `quantisation.py` reads, and those that change neither the bytes nor the kernels
that are priced.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from perfmodel.errors import ConfigError, shown
from perfmodel.specs.checkpoint.config_fields import has_no_effect

COMMON_FIELDS = (
    "quant_method modules_to_not_convert ignore exclude_modules ignored_layers kv_cache_scheme fmt "
    "dequantize bits w_bit num_bits weight_bits wbits producer quant_library version "
    "activation_scheme provider"
)
_GPTQ = (
    "group_size q_group_size zero_point sym desc_act static_groups true_sequential damp_percent "
    "damp_auto_increment act_group_aware lm_head dynamic meta format checkpoint_format "
    "pack_dtype quantizer model_file_base_name model_name_or_path tokenizer dataset backend "
    "exllama_config use_exllama use_cuda_fp16 disable_exllama max_input_length model_seqlen "
    "batch_size pad_token_id block_name_to_quantize module_name_preceding_first_block "
    "cache_block_outputs modules_in_block_to_quantize is_marlin_format hyb_act mse adapter "
    "offload_to_disk do_fuse fuse_max_seq_len modules_to_fuse quant_type data_type iters "
    "enable_quanted_input seqlen nsamples autoround_version packing_format desc"
)
FIELDS_OF_METHOD = {
    "fp8": "weight_block_size scale_fmt weight_scale_fmt use_ue8m0",
    "fbgemm_fp8": "activation_scale_ub",
    "compressed-tensors": "config_groups format quantization_status global_compression_ratio "
    "run_compressed sparsity_config transform_config use_optimized_inference",
    "awq": _GPTQ,
    "gptq": _GPTQ,
    "mxfp4": "",
    "modelopt": "quantization quant_algo kv_cache_quant_algo group_size has_zero_point "
    "pre_quant_scale config_groups quantized_layers kv_cache_bits awq_block_size",
}
# Of a group of modules in compressed-tensors, and of its weights.
GROUP_FIELDS = "targets weights input_activations output_activations format"
WEIGHTS_FIELDS = (
    "num_bits type symmetric group_size strategy block_structure dynamic actorder observer "
    "observer_kwargs scale_dtype zp_dtype"
)
# Layouts of compressed-tensors with all weights; others leave out those that are 0.
LAYOUTS = (
    "dense pack-quantized int-quantized float-quantized naive-quantized nvfp4-pack-quantized "
    "mxfp4-pack-quantized mixed-precision"
)


def check_fields(fields: Mapping[str, Any], known: str, where: str) -> None:
    """Refuse a field that is not in the list `known`, unless it has no effect."""
    names = known.split()
    for field, value in fields.items():
        if field in names or field.startswith("_") or has_no_effect(field, value):
            continue
        near = get_close_matches(field, names, n=1)
        hint = f"did you mean {near[0]}?" if near else "remove it if it changes no weights"
        raise ConfigError(
            f"{where}: {shown(field)[1:-1]}={shown(value)} is not supported in this format; {hint}"
        )
