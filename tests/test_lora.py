"""LoRA adapters: merged as PEFT merges them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from test_checkpoint import configuration, hf_model

from utils.checkpoints.checkpoint import CheckpointError, open_checkpoint
from utils.checkpoints.memmap.fingerprint import fingerprint

LINEAR = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]


def adapter(folder: Path, seed: int = 0, **settings) -> Path:
    """A folder with a random adapter of `hf_model`, as PEFT saves it."""
    config = LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": LINEAR} | settings)
    model = get_peft_model(hf_model(), config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad or "bias" in name:
                parameter.normal_()
    model.save_pretrained(folder)
    return folder


def assert_equal_to_pefts(base: Path, adapters: list[Path]) -> None:
    model = hf_model()
    for folder in adapters:
        model = PeftModel.from_pretrained(model, folder).merge_and_unload()
    checkpoint = open_checkpoint(base, lora=[str(folder) for folder in adapters])
    checkpoint.check_against(configuration())
    plain = hf_model().state_dict()
    changed = 0
    for name, wanted in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        torch.testing.assert_close(checkpoint.tensor(name), wanted, rtol=1e-5, atol=1e-5)
        changed += not torch.equal(wanted, plain[name])
    torch.testing.assert_close(checkpoint.lm_head(), model.lm_head.weight, rtol=1e-5, atol=1e-5)
    assert changed


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    hf_model().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"target_modules": ["query_key_value"], "r": 1},
        {"alpha_pattern": {"dense": 9}, "rank_pattern": {"query_key_value": 2}},
        {"alpha_pattern": {"h.1.mlp.dense_h_to_4h": 17}},
        {"bias": "lora_only"},
        {"modules_to_save": ["ln_f"]},
    ],
    ids=str,
)
def test_an_adapter_is_merged_as_by_peft(settings, base, tmp_path):
    assert_equal_to_pefts(base, [adapter(tmp_path / "one", **settings)])


def test_where_linear_layers_lie_is_not_the_adapters_to_say(base, tmp_path):
    """PEFT goes by the layer, also where a square matrix would fit either way."""
    folder = adapter(tmp_path, fan_in_fan_out=True, target_modules=["dense"])
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"fan_in_fan_out": True}))
    assert_equal_to_pefts(base, [folder])


@pytest.mark.parametrize("rank", [3, None, "4"])
def test_a_rank_that_is_not_that_of_the_matrices_is_refused(rank, base, tmp_path):
    folder = adapter(tmp_path)
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"r": rank}))
    with pytest.raises(CheckpointError, match=r"r is .*of rank 4"):
        open_checkpoint(base, lora=[str(folder)])


def test_several_adapters_are_merged_in_order(base, tmp_path):
    folders = [adapter(tmp_path / str(n), seed=n, r=n + 1) for n in range(2)]
    assert_equal_to_pefts(base, folders)


def test_a_weight_scales_the_change(base, tmp_path):
    folder = adapter(tmp_path / "one")
    name = "h.0.mlp.dense_h_to_4h.weight"
    plain, full, half, off = (
        open_checkpoint(base, lora=lora).tensor(name)
        for lora in ([], [str(folder)], [f"{folder}=0.5"], [f"{folder}=0"])
    )
    torch.testing.assert_close(half, (plain + full) / 2, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(off, plain)


def edit(folder: Path, **settings) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def test_another_kind_of_adapter_is_refused(base, tmp_path):
    folder = adapter(tmp_path / "one")
    edit(folder, peft_type="LOHA")
    with pytest.raises(CheckpointError, match="of the kind LOHA"):
        open_checkpoint(base, lora=[str(folder)])
    edit(folder, peft_type="LORA", use_dora=True)
    with pytest.raises(CheckpointError, match="DoRA"):
        open_checkpoint(base, lora=[str(folder)])


def test_an_adapter_of_another_model_is_refused(base, tmp_path):
    folder = adapter(tmp_path / "one")
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(n for n in tensors if "h.0.mlp.dense_4h_to_h.lora_A" in n)
    save_file(tensors | {name: torch.zeros(4, 64)}, path)
    with pytest.raises(CheckpointError, match=r"shape \(32, 64\), the checkpoint of \(32, 128\)"):
        open_checkpoint(base, lora=[str(folder)])
    save_file({n.replace("h.2", "h.7"): t for n, t in tensors.items()}, path)
    with pytest.raises(CheckpointError, match=r"changes h\.7\..* which is missing"):
        open_checkpoint(base, lora=[str(folder)])


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_folder_that_is_no_adapter_is_named(missing, base, tmp_path):
    folder = adapter(tmp_path / "one")
    (folder / missing).unlink()
    with pytest.raises(CheckpointError, match="adapter_"):
        open_checkpoint(base, lora=[str(folder)])


def test_quantised_weights_in_the_cache_know_the_adapter(base, tmp_path):
    folders = [adapter(tmp_path / str(n), seed=n) for n in range(2)]
    lists = [[], [folders[0]], [folders[1]], [f"{folders[0]}=0.5"], folders, folders[::-1]]
    prints = [fingerprint(open_checkpoint(base, lora=[str(f) for f in fs])) for fs in lists]
    assert len(set(prints)) == len(prints)


def test_an_adapter_in_the_models_place_is_told_what_to_do(tmp_path):
    folder = adapter(tmp_path / "one")
    with pytest.raises(CheckpointError, match="is a LoRA adapter: give its base model"):
        open_checkpoint(folder)
