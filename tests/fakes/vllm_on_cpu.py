"""Have vLLM check `vllm serve` commands on a machine without a GPU, as if it were a Hopper GPU.

`python vllm_on_cpu.py COMMANDS.json` reads a list of argument lists (after `vllm serve`) and prints
one JSON line for each: the largest CUDA graph and the graph mode that vLLM would use, or its error.
Only the GPU's properties and vLLM's compiled kernels are replaced; parsing and checks are vLLM's.
"""

import json
import sys
import types
from pathlib import Path
from typing import Any


class _Kernels(types.ModuleType):
    """Stands for a module of compiled kernels, none of which is called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_arguments, **_named: 3  # the version of FlashAttention on Hopper


def pretend_hopper() -> None:
    """Make vLLM find eight H100 GPUs."""
    for name in ("vllm._C_stable_libtorch", "vllm.vllm_flash_attn"):
        sys.modules[name] = _Kernels(name)
    import vllm.platforms as platforms
    from vllm.platforms.cuda import NonNvmlCudaPlatform
    from vllm.platforms.interface import DeviceCapability

    class Hopper(NonNvmlCudaPlatform):  # type: ignore[misc]
        get_device_capability = classmethod(lambda _, device_id=0: DeviceCapability(9, 0))
        get_device_name = classmethod(lambda _, device_id=0: "NVIDIA H100 80GB HBM3")
        get_device_total_memory = classmethod(lambda _, device_id=0: 80 << 30)
        is_fully_connected = classmethod(lambda _, device_ids: True)
        device_count = classmethod(lambda _: 8)

    platforms._current_platform = Hopper()
    import vllm._custom_ops as operations

    for kind in ("scaled_mm_supports_fp8", "scaled_mm_supports_block_fp8", "group_gemm_supported"):
        setattr(operations, f"cutlass_{kind}", lambda *_: True)
    import vllm.config.vllm as configuration

    configuration.HAS_TRITON = True  # Triton is off without a GPU; the V2 runner needs it


def checked(arguments: list[str]) -> dict[str, Any]:
    """What vLLM makes of the arguments of one `vllm serve` command."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.entrypoints.openai.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser())
    config = EngineArgs.from_cli_args(parser.parse_args(arguments)).create_engine_config()
    graphs, speculative = config.compilation_config, config.speculative_config
    per_round = config.num_speculative_tokens + 1
    if not config.use_v2_model_runner and graphs.cudagraph_mode.has_full_cudagraphs():
        graphs.adjust_cudagraph_sizes_for_spec_decode(
            per_round, config.parallel_config.tensor_parallel_size
        )
    draft = speculative and speculative.draft_model_config
    return {
        "graph_tokens": graphs.max_cudagraph_capture_size,
        "graph_mode": graphs.cudagraph_mode.name,
        "v2": config.use_v2_model_runner,
        "max_model_len": config.model_config.max_model_len,
        "method": speculative and speculative.method,
        "draft_quantization": draft and draft.quantization,
    }


def main(path: str) -> None:
    """Check the commands of a file."""
    pretend_hopper()
    for arguments in json.loads(Path(path).read_text(encoding="utf-8")):
        try:
            result = checked(arguments)
        except (Exception, SystemExit) as error:
            result = {"error": f"{type(error).__name__}: {error}"}
        print("checked " + json.dumps(result), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
