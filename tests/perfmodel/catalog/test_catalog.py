"""The catalog agrees with published figures and refuses invalid files."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from perfmodel import catalog
from perfmodel.catalog import gpu_from_toml, machine_from_toml, model_from_toml
from perfmodel.errors import ConfigError
from perfmodel.units import GB, GIB, MIB, TB, TFLOP

FOLDER = Path(catalog.__file__).parent
GPU_TEXT = (FOLDER / "gpus/h200.toml").read_text()
MACHINE_TEXT = (FOLDER / "machines/hgx-h200.toml").read_text()
MODEL_TEXT = (FOLDER / "models/qwen3-8b.toml").read_text()

# Totals of the published safetensors files, as the models' own pages state them.
PUBLISHED_PARAMETERS = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-7b-32k": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.3-70b": 70_553_706_496,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "tinyllama-1.1b": 1_100_048_384,
    "mistral-7b-v0.1": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen3-8b": 8_190_735_360,
    "qwen3-32b": 32_762_123_264,
    "llama-3.1-405b": 405_853_388_800,
    "qwen2.5-72b": 72_706_203_648,
    "ministral-8b": 8_019_808_256,
    "mistral-large-2-123b": 122_610_069_504,
    "mistral-nemo-12b": 12_247_782_400,
}


# ---- models ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name, parameters", PUBLISHED_PARAMETERS.items())
def test_a_model_has_its_published_parameters(name: str, parameters: int) -> None:
    assert catalog.model(name).parameters == parameters


def test_every_other_dense_model_has_the_size_in_its_name() -> None:
    millions = {"llama-68m": 68, "smollm2-135m": 135}
    dense = {name for name in catalog.model_names() if not catalog.model(name).family}
    assert dense - set(PUBLISHED_PARAMETERS) == set(millions)
    for name, size in millions.items():
        assert round(catalog.model(name).parameters / 1e6) == size


def test_a_model_is_found_by_its_name_and_every_hub_id_in_any_case() -> None:
    llama = catalog.model("llama-3.1-8b")
    assert catalog.model("Llama-3.1-8B") is llama
    for hub_id in (
        llama.hub_id,
        "meta-llama/Llama-3.1-8B-Instruct",
        "meta-llama/Meta-Llama-3.1-8B",
    ):
        named = replace(llama, hub_id=hub_id, checkpoint=hub_id)
        assert catalog.model(hub_id.upper()) == named
    for name in catalog.model_names():
        hub_id = catalog.model(name).hub_id
        assert catalog.model(hub_id) == replace(catalog.model(name), checkpoint=hub_id)


def test_windows_and_contexts_are_those_of_the_models() -> None:
    assert catalog.model("mistral-7b-v0.1").sliding_window_tokens == 4096
    assert catalog.model("mistral-7b-v0.3").sliding_window_tokens is None
    assert catalog.model("qwen2.5-7b").sliding_window_tokens is None
    assert catalog.model("llama-2-7b").max_context_tokens == 4096
    assert catalog.model("llama-2-7b-32k").max_context_tokens == 32768
    assert catalog.model("llama-3.1-8b").max_context_tokens == 131072


# ---- GPUs and machines ----------------------------------------------------------------------


def test_datasheet_figures_are_converted_to_si() -> None:
    h200 = catalog.gpu("h200")
    assert h200.peak_flops == 989 * TFLOP
    assert h200.hbm_bandwidth == 4.8 * TB
    assert h200.datasheet_memory_bytes == 141 * GB
    assert h200.memory_bytes == 143771 * MIB
    assert h200.l2_bytes == 50 * MIB
    assert catalog.default_machine("h200").link.bandwidth == 450 * GB
    assert catalog.gpu("a100-sxm-80gb").memory_bytes == 80 * GIB


def test_the_l40_is_not_the_l40s() -> None:
    l40, l40s = catalog.gpu("l40"), catalog.gpu("l40s")
    assert l40.hbm_bandwidth == l40s.hbm_bandwidth == 864 * GB
    assert (l40.peak_flops, l40s.peak_flops) == (181.05 * TFLOP, 362.05 * TFLOP)


@pytest.mark.parametrize("name", catalog.gpu_names())
def test_the_figures_of_a_gpu_agree_with_each_other(name: str) -> None:
    gpu = catalog.gpu(name)
    assert gpu.datasheet_memory_bytes is not None
    assert 0.95 < gpu.memory_bytes / gpu.datasheet_memory_bytes < GIB / GB + 1e-9


@pytest.mark.parametrize("name", catalog.gpu_names())
def test_efficiencies_are_fitted_only_where_kernels_were_measured(name: str) -> None:
    gpu = catalog.gpu(name)
    measured = ("a100-sxm-80gb", "h100-sxm", "h200", "l40s", "b200")
    assert gpu.efficiency in measured and gpu.efficiency_reason
    assert (gpu.efficiency_origin == "fitted") == (name in measured)


def test_a_file_has_the_name_that_it_states() -> None:
    assert [catalog.gpu(name).name for name in catalog.gpu_names()] == [*catalog.gpu_names()]
    machines, models = catalog.machine_names(), catalog.model_names()
    assert [catalog.machine(name).name for name in machines] == [*machines]
    assert [catalog.model(name).name for name in models] == [*models]


@pytest.mark.parametrize("name", catalog.gpu_names())
def test_every_gpu_has_a_machine(name: str) -> None:
    assert catalog.default_machine(name).gpu is catalog.gpu(name)


@pytest.mark.parametrize("name", catalog.machine_names())
def test_a_machine_supports_as_many_ranks_as_it_has_gpus(name: str) -> None:
    machine = catalog.machine(name)
    machine.check_tp(machine.gpus_per_node)
    with pytest.raises(ConfigError, match=re.escape(f"GPUs of {name}")):
        machine.check_tp(machine.gpus_per_node + 1)


def test_pcie_is_no_faster_than_its_lanes() -> None:
    links = [catalog.machine(name).link for name in catalog.machine_names()]
    assert {link.bandwidth for link in links if link.kind == "pcie"} == {32 * GB, 64 * GB}


def test_names_are_found_in_any_case() -> None:
    assert catalog.gpu("A100-SXM-80GB") is catalog.gpu("a100-sxm-80gb")
    assert catalog.machine("HGX-H100") is catalog.machine("hgx-h100")


# ---- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message, lookup, name",
    [
        ("unknown GPU 'h100-sxn'; did you mean h100-sxm", catalog.gpu, "h100-sxn"),
        ("unknown GPU 'a100'; did you mean a10", catalog.default_machine, "a100"),
        ("unknown machine 'dgx-h100'; did you mean hgx-h100", catalog.machine, "dgx-h100"),
        ("unknown model 'qwen3-9b'; did you mean qwen3-8b", catalog.model, "qwen3-9b"),
        ("unknown model 'nobody/nothing'", catalog.model, "nobody/nothing"),
        ("unknown model ''", catalog.model, ""),
        ("unknown GPU '../gpus/h200'", catalog.gpu, "../gpus/h200"),
    ],
)  # fmt: skip
def test_an_unknown_name_is_refused_with_the_nearest(
    message: str, lookup: Callable[[str], object], name: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        lookup(name)


def edited(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1
    return text.replace(old, new)


@pytest.mark.parametrize(
    "old, new, reason",
    [
        ('unit = "TB/s"', 'unit = "TiB/s"', "unit='TiB/s' is not valid: it must be one of GB/s"),
        ('unit = "TB/s"', 'unit = "GB"', "unit='GB' is not valid: it must be one of GB/s, TB/s"),
        (', unit = "TB/s"', "", "hbm_bandwidth.unit is missing"),
        ("value = 4.8", "value = -4.8", "hbm_bandwidth.value=-4.8 is not valid: it must be"),
        ("value = 4.8", "value = 0", "value=0 is not valid: it must be greater than 0"),
        ("value = 4.8", "value = nan", "value=nan is not valid: it must be finite"),
        ("value = 4.8", "value = inf", "value=inf is not valid: it must be finite"),
        ("value = 4.8", "value = true", "value=True is not valid: it must be a number"),
        ("value = 4.8", 'value = "4.8"', "value='4.8' is not valid: it must be a number"),
        ("value = 4.8", "value = 4.8, note = 1", "hbm_bandwidth: unknown key 'note'"),
        ("value = 132", "value = 132.5",
         "sm_count.value=132.5 is not valid: it must be a whole number"),
        ("hbm_bandwidth =", "bandwidth =", "unknown key 'bandwidth'"),
        ('architecture = "hopper"', "", "architecture is missing"),
        ('architecture = "hopper"', 'architecture = " "',
         "architecture=' ' is not valid: it must not"),
        ('architecture = "hopper"', "architecture = [1]",
         "architecture=a list of 1 is not valid: it must be text"),
        ('architecture = "hopper"', "architecture = ", "not valid TOML"),
        ('architecture = "hopper"', 'architecture = "h"\nname = "h"', "not valid TOML"),
        ('origin = "fitted"', 'origin = "guess"',
         "efficiency.origin='guess' is not valid: it must be"),
        ('of = "h200"', 'of = "l40s"',
         "efficiency.origin='fitted' contradicts efficiency.of='l40s'"),
    ],
)  # fmt: skip
def test_an_invalid_gpu_file_is_refused(old: str, new: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(reason)) as caught:
        gpu_from_toml(edited(GPU_TEXT, old, new), where="gpus/h200.toml")
    assert str(caught.value).startswith("gpus/h200.toml: ") and str(caught.value).isprintable()


FIGURE_LINES = [line for line in GPU_TEXT.splitlines() if "value =" in line]


@pytest.mark.parametrize("line", FIGURE_LINES)
def test_every_figure_of_a_gpu_needs_a_source(line: str) -> None:
    key = line.split(" =")[0]
    for bare in ('source = ""', None):
        start = line.index("source =")
        spoilt = line[: start - 2] + " }" if bare is None else line[:start] + bare + " }"
        with pytest.raises(ConfigError, match=f"{key}.source"):
            gpu_from_toml(edited(GPU_TEXT, line, spoilt), where="gpu")
    with pytest.raises(ConfigError, match=f"{key}=80 is not valid: it needs a unit and a source"):
        gpu_from_toml(edited(GPU_TEXT, line, f"{key} = 80"), where="gpu")


@pytest.mark.parametrize(
    "old, new, reason",
    [
        ('gpu = "h200"', 'gpu = "h2000"', "unknown GPU 'h2000'; did you mean h200"),
        ('kind = "nvlink"', 'kind = "ethernet"',
         "kind='ethernet' is not valid: it must be 'nvlink'"),
        ('kind = "nvlink"', 'kind = "nvlink"\nlanes = 18', "link: unknown key 'lanes'"),
        ("value = 8,", "value = 8.5,",
         "gpus_per_node.value=8.5 is not valid: it must be a whole number"),
        ("[link]", "[links]", "unknown key 'links'"),
    ],
)  # fmt: skip
def test_an_invalid_machine_file_is_refused(old: str, new: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(reason)):
        machine_from_toml(edited(MACHINE_TEXT, old, new), where="machine")


@pytest.mark.parametrize(
    "old, new, reason",
    [
        (
            "hidden_size = 4096",
            'hidden_size = "4096"',
            "hidden_size='4096' is not supported; it must be a whole number",
        ),
        ("hidden_size = 4096", "num_experts = 8", "num_experts=8 is not supported"),
        ("[config]", "licence = 1\n[config]", "unknown key 'licence'"),
        (
            'hub_ids = [\n    "Qwen/Qwen3-8B",\n]',
            "hub_ids = []",
            "hub_ids=a list of 0 is not valid: it must not be empty",
        ),
        ("[config]", "[[config]]", "config=a list of 1 is not valid: it must be a table"),
    ],
)
def test_an_invalid_model_file_is_refused(old: str, new: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(reason)):
        model_from_toml(edited(MODEL_TEXT, old, new), where="model")


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=80) | st.text(alphabet='name=[]{}",.\n#1e', max_size=60))
def test_any_text_is_refused_in_one_line(text: str) -> None:
    for read in (gpu_from_toml, machine_from_toml, model_from_toml):
        with pytest.raises(ConfigError) as caught:
            read(text, where="file")
        assert str(caught.value).isprintable()


@settings(max_examples=100, deadline=None)
@given(name=st.text(max_size=40))
def test_any_name_is_refused_in_one_line(name: str) -> None:
    known = {*catalog.gpu_names(), *catalog.machine_names(), *catalog.model_names()}
    assume(name.lower() not in known)
    for lookup in (catalog.gpu, catalog.machine, catalog.model):
        with pytest.raises(ConfigError) as caught:
            lookup(name)
        assert str(caught.value).isprintable()
