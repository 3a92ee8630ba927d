"""Checkpoints: every layout on disk gives transformers' tensors; damage and mismatch are named."""

import gc
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BloomConfig as HfConfig
from transformers import BloomForCausalLM

from config import BloomConfig, ExecutionConfig, ModelConfig
from utils.checkpoints.checkpoint import CheckpointError, open_checkpoint

HEADS, HIDDEN, LAYERS, VOCAB = 4, 32, 3, 101
MIB = 2**20


def hf_model(**settings) -> BloomForCausalLM:
    torch.manual_seed(7)
    shape = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "n_layer": LAYERS, "n_head": HEADS}
    model = BloomForCausalLM(HfConfig(**shape | settings))
    with torch.no_grad():  # fresh norms are ones and zeros: two of them mixed up would not show
        for parameter in model.parameters():
            parameter.normal_()
    return model


def configuration(**changes) -> BloomConfig:
    shape = {"layers": LAYERS, "hidden_size": HIDDEN, "heads": HEADS, "vocab_size": VOCAB}
    model = ModelConfig(hf_model="unused", sequence_length=8, **shape | changes)
    return BloomConfig(model, ExecutionConfig())


def save_pickled(model: BloomForCausalLM, folder: Path, shards: int = 1, **torch_save) -> Path:
    """The `.bin` layout: tied tensors stored once, an index if there are several shards."""
    model.config.save_pretrained(folder)
    tensors = list(model.state_dict().items())
    if shards == 1:
        torch.save(dict(tensors), folder / "pytorch_model.bin", **torch_save)
        return folder
    weight_map = {}
    for shard in range(shards):
        file = f"pytorch_model-{shard + 1:05d}-of-{shards:05d}.bin"
        torch.save(dict(tensors[shard::shards]), folder / file)
        weight_map |= dict.fromkeys(dict(tensors[shard::shards]), file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


def save_sharded(model: BloomForCausalLM, folder: Path) -> Path:
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 3
    return folder


def save_safetensors(model: BloomForCausalLM, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def save_without_prefix(model: BloomForCausalLM, folder: Path) -> Path:
    model.transformer.save_pretrained(folder)
    names = list(load_file(folder / "model.safetensors"))
    assert names
    assert not any(name.startswith("transformer.") for name in names)
    return folder


LAYOUTS = {
    "one safetensors file": save_safetensors,
    "sharded safetensors": save_sharded,
    "names without transformer.": save_without_prefix,
    "one .bin file": save_pickled,
    "sharded .bin": lambda model, folder: save_pickled(model, folder, shards=3),
    "old .bin file": lambda model, folder: save_pickled(
        model, folder, _use_new_zipfile_serialization=False
    ),
}


@pytest.fixture(params=LAYOUTS)
def save(request):
    return LAYOUTS[request.param]


@pytest.fixture
def forbid_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a folder was looked up on the network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)


def test_every_layout_gives_the_tensors_of_transformers(save, tmp_path, forbid_network):
    model = hf_model()
    checkpoint = open_checkpoint(save(model, tmp_path))
    expected = model.transformer.state_dict()
    assert set(checkpoint.keys()) - {"lm_head.weight"} == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(checkpoint.tensor(name), tensor), name
        assert torch.equal(checkpoint.tensor(f"transformer.{name}"), tensor), name
    assert checkpoint.tied
    assert torch.equal(checkpoint.lm_head(), model.transformer.word_embeddings.weight)
    checkpoint.check_against(configuration())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("save", [save_safetensors, save_pickled])
def test_tensors_keep_the_type_they_are_stored_in(save, dtype, tmp_path):
    checkpoint = open_checkpoint(save(hf_model().to(dtype), tmp_path))
    names = checkpoint.keys()
    assert {checkpoint.tensor(name).dtype for name in names} == {dtype}


@pytest.mark.parametrize("save", [save_safetensors, save_sharded, save_pickled])
def test_an_untied_head_is_used(save, tmp_path):
    model = hf_model(tie_word_embeddings=False)
    checkpoint = open_checkpoint(save(model, tmp_path))
    assert not checkpoint.tied
    assert torch.equal(checkpoint.lm_head(), model.lm_head.weight)
    assert torch.equal(checkpoint.module().lm_head.weight, model.lm_head.weight)
    assert not torch.equal(checkpoint.lm_head(), model.transformer.word_embeddings.weight)


def test_an_untied_head_is_used_whatever_config_json_says(tmp_path):
    model = hf_model(tie_word_embeddings=False)
    model.save_pretrained(tmp_path)
    edit_config(tmp_path, tie_word_embeddings=True)
    assert torch.equal(open_checkpoint(tmp_path).lm_head(), model.lm_head.weight)


def test_a_stored_head_that_equals_the_embedding_is_tied(tmp_path):
    save_safetensors(hf_model(), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["transformer.word_embeddings.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    assert open_checkpoint(tmp_path).tied


def test_an_untied_head_that_is_missing_is_an_error(tmp_path):
    save_safetensors(hf_model(), tmp_path)
    edit_config(tmp_path, tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight.*tie_word_embeddings is false"):
        open_checkpoint(tmp_path).lm_head()


def test_a_module_view_reads_like_the_transformers_module(save, tmp_path):
    model = hf_model()
    checkpoint = open_checkpoint(save(model, tmp_path))
    for name, tensor in model.state_dict().items():
        view = checkpoint.module()
        for part in name.split("."):
            view = view[int(part)] if part.isdigit() else getattr(view, part)
        assert torch.equal(view, tensor), name
    layer = model.transformer.h[1]
    for prefix in ("h.1", "transformer.h.1"):
        view = checkpoint.module(prefix)
        assert torch.equal(
            view.self_attention.query_key_value.weight, layer.self_attention.query_key_value.weight
        )
        assert torch.equal(view.mlp.dense_4h_to_h.bias, layer.mlp.dense_4h_to_h.bias)


def test_a_module_view_has_only_what_the_module_has(tmp_path):
    view = open_checkpoint(save_safetensors(hf_model(), tmp_path)).module()
    assert len(list(view.transformer.h)) == LAYERS
    assert hasattr(view.h[0].mlp, "dense_h_to_4h")
    assert not hasattr(view.h[0].mlp, "gate")
    with pytest.raises(CheckpointError, match=r"no tensor h\.0\.mlp\.gate"):
        _ = view.h[0].mlp.gate


def test_a_missing_tensor_is_named(tmp_path):
    checkpoint = open_checkpoint(save_safetensors(hf_model(), tmp_path))
    with pytest.raises(CheckpointError, match=r"h\.9\.input_layernorm\.weight"):
        checkpoint.tensor("h.9.input_layernorm.weight")


@pytest.mark.parametrize("save", [LAYOUTS["sharded safetensors"], LAYOUTS["sharded .bin"]])
def test_a_missing_shard_is_named(save, tmp_path):
    save(hf_model(), tmp_path)
    shard = sorted(tmp_path.glob("*-of-*"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=shard.name):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("save", [LAYOUTS["sharded safetensors"], LAYOUTS["sharded .bin"]])
def test_reading_a_tensor_touches_its_own_shard_alone(save, tmp_path):
    model = hf_model()
    save(model, tmp_path)
    (index,) = tmp_path.glob("*.index.json")
    places = json.loads(index.read_text())["weight_map"]
    kept = places["transformer.h.0.mlp.dense_4h_to_h.weight"]
    for shard in set(places.values()) - {kept}:
        (tmp_path / shard).write_bytes(b"not weights")
    checkpoint = open_checkpoint(tmp_path)
    expected = model.state_dict()
    for name in places:
        if places[name] == kept:
            assert torch.equal(checkpoint.tensor(name), expected[name])
    other = next(name for name in places if places[name] != kept)
    with pytest.raises(CheckpointError, match=places[other]):
        checkpoint.tensor(other)


@pytest.mark.parametrize("save", [LAYOUTS["sharded safetensors"], LAYOUTS["sharded .bin"]])
def test_one_shard_is_mapped_at_a_time(save, tmp_path):
    checkpoint = open_checkpoint(save(hf_model(), tmp_path))
    most, names = 0, checkpoint.keys()
    for name in names:
        checkpoint.tensor(name)
        mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
        most = max(most, sum(file.startswith(f"{tmp_path}/") for file in mapped))
    assert most == 1


@pytest.mark.parametrize("save", [save_safetensors, save_pickled])
def test_reading_all_tensors_takes_no_memory_of_our_own(save, tmp_path):
    model = hf_model(hidden_size=512, vocab_size=8192)
    size = sum(parameter.nbytes for parameter in model.parameters())
    save(model, tmp_path)
    assert size > 50 * MIB
    del model
    gc.collect()
    before = anonymous_memory()
    checkpoint = open_checkpoint(tmp_path)
    tensors = list(map(checkpoint.tensor, checkpoint.keys()))
    assert all(torch.isfinite(tensor.sum()) for tensor in tensors)
    assert anonymous_memory() - before < 10 * MIB


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("kept", [0, 5, 300, -100])
def test_a_file_that_is_cut_short_is_one_line_that_names_it(file, kept, tmp_path):
    save = save_safetensors if file.endswith("safetensors") else save_pickled
    path = save(hf_model(), tmp_path) / file
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=f"{file}.*damaged") as error:
        open_checkpoint(tmp_path)
    assert "\n" not in str(error.value)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "it ran"),)

    hf_model().config.save_pretrained(tmp_path)
    torch.save({"transformer.word_embeddings.weight": Payload()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin.*refused") as error:
        open_checkpoint(tmp_path)
    assert not (tmp_path / "it ran").exists()
    assert "\n" not in str(error.value)


def test_an_index_cannot_point_outside_its_folder(tmp_path):
    folder = save_pickled(hf_model(), tmp_path / "checkpoint", shards=2)
    shard = next(folder.glob("*.bin"))
    shard.rename(tmp_path / "outside.bin")
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(index.read_text().replace(shard.name, "../outside.bin"))
    with pytest.raises(CheckpointError, match=r"\.\./outside\.bin"):
        open_checkpoint(folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}', "{}"])
def test_a_damaged_index_is_named(text, tmp_path):
    save_sharded(hf_model(), tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        open_checkpoint(tmp_path)


def test_a_folder_without_weights_says_which_files_are_expected(tmp_path):
    hf_model().config.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*pytorch_model\.bin"):
        open_checkpoint(tmp_path)


def test_a_folder_without_config_json_is_an_error(tmp_path):
    save_safetensors(hf_model(), tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_checkpoint(tmp_path)


def test_differences_are_refused_in_one_table(tmp_path):
    save_safetensors(hf_model(), tmp_path)
    config = configuration(
        layers=6, hidden_size=64, heads=8, vocab_size=128, layer_norm_epsilon=0.5
    )
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(tmp_path).check_against(config)
    rows = [[cell.strip() for cell in line.split("|")] for line in str(error.value).splitlines()]
    assert ["setting", "configuration", "checkpoint"] in rows
    for name, ours, theirs in [
        ("layers", 6, LAYERS),
        ("hidden_size", 64, HIDDEN),
        ("heads", 8, HEADS),
        ("vocab_size", 128, VOCAB),
        ("layer_norm_epsilon", 0.5, 1e-05),
    ]:
        assert [name, str(ours), str(theirs)] in rows


def test_only_what_differs_is_in_the_table(tmp_path):
    save_safetensors(hf_model(), tmp_path)
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(tmp_path).check_against(configuration(layers=6))
    assert "layers" in str(error.value)
    assert "hidden_size" not in str(error.value)


def test_another_family_is_named(tmp_path):
    save_safetensors(hf_model(), tmp_path)
    edit_config(tmp_path, model_type="llama")
    with pytest.raises(CheckpointError, match="family llama"):
        open_checkpoint(tmp_path).check_against(configuration())


def test_a_number_that_is_a_text_is_named(tmp_path):
    save_safetensors(hf_model(), tmp_path)
    edit_config(tmp_path, vocab_size=str(VOCAB))
    with pytest.raises(CheckpointError, match=f"vocab_size must be an integer, not '{VOCAB}'"):
        open_checkpoint(tmp_path).check_against(configuration())


@pytest.mark.parametrize("setting", [{"slow_but_exact": True}, {"hidden_dropout": 0.5}])
def test_what_changes_no_result_is_accepted(setting, tmp_path):
    save_safetensors(hf_model(), tmp_path)
    edit_config(tmp_path, **setting)
    open_checkpoint(tmp_path).check_against(configuration())


def test_older_names_in_config_json_are_understood(tmp_path):
    save_safetensors(hf_model(), tmp_path)
    path = tmp_path / "config.json"
    settings = json.loads(path.read_text())
    settings["n_embed"] = settings.pop("hidden_size")
    settings["num_attention_heads"] = settings.pop("n_head")
    path.write_text(json.dumps(settings))
    open_checkpoint(tmp_path).check_against(configuration())
    with pytest.raises(CheckpointError, match=r"hidden_size +\| 64 +\| 32"):
        open_checkpoint(tmp_path).check_against(configuration(hidden_size=64))


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/model", "a/b/c", "~/nowhere"])
def test_a_path_that_does_not_exist_is_not_looked_up_on_the_hub(name, forbid_network):
    with pytest.raises(CheckpointError, match="no folder"):
        open_checkpoint(name)


def edit_config(folder: Path, **settings) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def anonymous_memory() -> int:
    """Bytes of this process that are not pages of a mapped file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
