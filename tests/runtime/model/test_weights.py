"""Loading of safetensors, and one-line errors for files that do not match."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import FAMILIES, hf_config

from runtime.config import DecoderConfig, read_config
from runtime.errors import InputError
from runtime.model.layers import DecoderWeights
from runtime.model.weights import MAX_INDEX_BYTES, RandomWeights, SafetensorsFolder, load_weights
from runtime.parallel.groups import ALONE, Group

CPU = torch.device("cpu")
CONFIG = FAMILIES["qwen2.5"]


def whole_tensors(config: DecoderConfig, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The random tensors by their names in a checkpoint."""
    tensors: dict[str, torch.Tensor] = {}

    class Recorder(RandomWeights):
        def read(
            self, name: str, shape: tuple[int, ...], start: int, stop: int, *, dim: int
        ) -> torch.Tensor:
            tensors[name] = super().read(name, shape, 0, shape[dim], dim=dim)
            return tensors[name].narrow(dim, start, stop - start)

    load_weights(config, Recorder(1, dtype, CPU), ALONE)
    return tensors


def write_model(folder: Path, *, shards: int = 1, dtype: torch.dtype = torch.float32) -> None:
    (folder / "config.json").write_text(json.dumps(hf_config(CONFIG)))
    tensors = whole_tensors(CONFIG, dtype)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return
    mapping = {name: f"model-{i % shards + 1}.safetensors" for i, name in enumerate(tensors)}
    for file in set(mapping.values()):
        save_file({n: t for n, t in tensors.items() if mapping[n] == file}, folder / file)
    index = {"metadata": {}, "weight_map": mapping}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def load(folder: Path, group: Group = ALONE) -> DecoderWeights:
    config = read_config(folder)
    return load_weights(config, SafetensorsFolder(folder, torch.float32, CPU), group)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_loaded_tensors_equal_the_saved_ones(
    shards: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    write_model(tmp_path, shards=shards, dtype=dtype)
    expected = load_weights(CONFIG, RandomWeights(1, dtype, CPU), ALONE)
    for loaded, wanted in zip(load(tmp_path).tensors(), expected.tensors(), strict=True):
        assert loaded.dtype == torch.float32
        assert torch.equal(loaded, wanted.float())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_written_config_reads_back_unchanged(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(hf_config(FAMILIES[name])))
    assert replace(read_config(tmp_path), name=name) == FAMILIES[name]


@pytest.mark.parametrize("tp", [2, 4])
def test_the_slices_of_all_ranks_make_up_the_whole(tp: int, tmp_path: Path) -> None:
    write_model(tmp_path)
    whole = load(tmp_path)
    ranks = [load(tmp_path, Group(rank, tp)) for rank in range(tp)]
    assert torch.equal(torch.cat([r.embedding for r in ranks])[: CONFIG.vocab], whole.embedding)
    assert torch.equal(torch.cat([r.layers[1].down for r in ranks], 1), whole.layers[1].down)
    heads, dim = CONFIG.query_heads, CONFIG.head_dim
    query = torch.cat([r.layers[0].qkv[: heads // tp * dim] for r in ranks])
    assert torch.equal(query, whole.layers[0].qkv[: heads * dim])
    for rank, part in enumerate(ranks):  # each rank's KV head, replicated where tp exceeds them
        head = rank * CONFIG.kv_heads // tp
        start = (heads + head) * dim
        key = part.layers[0].qkv[heads // tp * dim : (heads // tp + 1) * dim]
        assert torch.equal(key, whole.layers[0].qkv[start : start + dim])


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path, shards=3)
    (tmp_path / "model-2.safetensors").unlink()
    refused(tmp_path, "model-2.safetensors: this shard is missing")


def test_a_truncated_shard_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path, shards=3)
    shard = tmp_path / "model-2.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    refused(tmp_path, "model-2.safetensors is not a valid safetensors file")


def test_a_shard_with_random_bytes_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 4096)
    refused(tmp_path, "model.safetensors is not a valid safetensors file")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_a_pickle_is_never_opened(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(hf_config(CONFIG)))
    (tmp_path / name).write_bytes(b"\x80\x04anything")
    refused(tmp_path, f"{name} is a pickle")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(hf_config(CONFIG)))
    refused(tmp_path, "no model.safetensors")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("intermediate_size", 64, "but the config says"),
        ("vocab_size", 100, "but the config says"),
        ("num_hidden_layers", 1, "does not expect"),
        ("num_hidden_layers", 3, "is missing"),
        ("model_type", "llama", "does not expect"),
        ("model_type", "gpt2", "not supported"),
    ],
)
def test_a_config_that_does_not_match_its_weights_is_refused(
    field: str, value: object, message: str, tmp_path: Path
) -> None:
    write_model(tmp_path)
    fields = {**hf_config(CONFIG), "architectures": None, field: value}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    refused(tmp_path, message)


def test_an_index_may_not_point_outside_its_folder(tmp_path: Path) -> None:
    write_model(tmp_path, shards=2)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-1.safetensors", "../x.safetensors"))
    refused(tmp_path, "../x.safetensors is not the name of a safetensors file")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not a valid index"),
        ("[" * 100_000, "is not a valid index"),
        ("[]", "weight_map is not an object"),
        ("{}", "weight_map is not an object"),
        ('{"weight_map": ["model.safetensors"]}', "weight_map is not an object"),
        ('{"weight_map": {}}', "weight_map is not an object"),
        ('{"weight_map": {"a\\nb": 5}}', "the shard of a b is not a file name"),
        ('{"weight_map": {"a": ["x"]}}', "the shard of a is not a file name"),
        ('{"weight_map": {"a": "x\\ny"}}', "x y is not the name of a safetensors file"),
        (" " * (MAX_INDEX_BYTES + 1), "larger than 64,000,000 bytes"),
    ],
)
def test_a_malformed_index_is_refused(content: str, message: str, tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(content)
    refused(tmp_path, message)


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    write_model(tmp_path)
    tensors = whole_tensors(CONFIG, torch.float32)
    name = "model.layers.0.mlp.down_proj.weight"
    tensors[name] = tensors[name].to(torch.int8)
    save_file(tensors, tmp_path / "model.safetensors")
    refused(tmp_path, f"{name} is stored as I8; quantised weights are not supported")


def test_a_config_with_too_many_layers_stops_at_the_first_missing_one(tmp_path: Path) -> None:
    write_model(tmp_path)
    source = SafetensorsFolder(tmp_path, torch.float32, CPU)
    with pytest.raises(InputError, match=rf"tensor model\.layers\.{CONFIG.layers}\."):
        load_weights(replace(CONFIG, layers=10**9), source, ALONE)


def refused(folder: Path, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_random_weights_depend_on_seed_and_name_and_are_reproducible() -> None:
    shape = (8, 8)
    draws = [
        RandomWeights(seed, torch.float32, CPU).read(name, shape, 0, 8, dim=0)
        for seed, name in ((1, "a.weight"), (2, "a.weight"), (1, "b.weight"), (1, "a.weight"))
    ]
    assert torch.equal(draws[0], draws[3])
    assert not torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("name", ["model.layers.02.mlp.up_proj.weight", "extra\nname"])
def test_a_tensor_that_the_config_does_not_expect_is_refused(name: str, tmp_path: Path) -> None:
    write_model(tmp_path)
    tensors = whole_tensors(CONFIG, torch.float32) | {name: torch.zeros(1)}
    save_file(tensors, tmp_path / "model.safetensors")
    refused(tmp_path, f"does not expect 1 of its tensors, such as {' '.join(name.split())}")


def test_stored_rotary_frequencies_are_accepted(tmp_path: Path) -> None:
    write_model(tmp_path)
    tensors = whole_tensors(CONFIG, torch.float32)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(1)
    save_file(tensors, tmp_path / "model.safetensors")
    load(tmp_path)


@pytest.mark.parametrize("differs", [False, True])
@pytest.mark.parametrize("name", ["llama-3.2", "qwen3"])
def test_a_head_stored_beside_a_tied_flag_is_used_as_by_transformers(
    name: str, differs: bool, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    config = FAMILIES[name]
    (tmp_path / "config.json").write_text(json.dumps(hf_config(config)))
    tensors = whole_tensors(config, torch.float32)
    embedding = tensors["model.embed_tokens.weight"]
    tensors["lm_head.weight"] = embedding.flip(0) if differs else embedding.clone()
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    expected = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).lm_head.weight
    weights = load(tmp_path)
    assert torch.equal(weights.head, expected)
    assert (weights.head is weights.embedding) != differs
    heads = torch.cat([load(tmp_path, Group(rank, 2)).head for rank in range(2)])
    assert torch.equal(heads[: config.vocab], expected)


def test_a_stored_head_of_another_shape_is_refused(tmp_path: Path) -> None:
    config = FAMILIES["qwen3"]
    (tmp_path / "config.json").write_text(json.dumps(hf_config(config)))
    tensors = whole_tensors(config, torch.float32) | {"lm_head.weight": torch.zeros(1)}
    save_file(tensors, tmp_path / "model.safetensors")
    refused(tmp_path, "lm_head.weight has shape [1], but the config says")
