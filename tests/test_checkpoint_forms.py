"""Forms that checkpoints come in: quantised by others, wrapped by frameworks, damaged."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_checkpoint import configuration, hf_model

from utils.checkpoints.checkpoint import CheckpointError, open_checkpoint

LAYER = "transformer.h.1.mlp.dense_h_to_4h"
Tensors = dict[str, torch.Tensor]


def write(folder: Path, tensors: Tensors, **settings) -> Path:
    """A folder with these tensors and `hf_model`'s settings."""
    hf_model().config.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors")
    return folder


def plain() -> Tensors:
    return {n: t.clone() for n, t in hf_model().state_dict().items() if n != "lm_head.weight"}


def checked(folder: Path):
    checkpoint = open_checkpoint(folder)
    checkpoint.check_against(configuration())
    return checkpoint


# --- damage, each in one line ---


def changed(name: str, change) -> Tensors:
    tensors = plain()
    tensors[name] = change(tensors[name])
    return tensors


def without(part: str) -> Tensors:
    return {name: tensor for name, tensor in plain().items() if part not in name}


EMBEDDING = "transformer.word_embeddings.weight"
WEIGHT = f"{LAYER}.weight"
DAMAGED = {
    "a layer is missing": (lambda: without(".h.1."), r"lacks tensor h\.1\..* and 11 others"),
    "a tensor is missing": (lambda: without("ln_f.bias"), r"lacks tensor ln_f\.bias$"),
    "transposed": (lambda: changed(WEIGHT, lambda t: t.T), r"\(32, 128\).*\(128, 32\).*transposed"),
    "ZeRO-3 leftovers": (lambda: changed(WEIGHT, lambda t: t[:0, :0]), r"shape \(0, 0\)"),
    "ZeRO-3 leftovers of one axis": (lambda: changed(WEIGHT, lambda t: t[:0]), r"shape \(0, 32\)"),
    "an embedding of fewer rows": (lambda: changed(EMBEDDING, lambda t: t[:90]), r"\(90, 32\)"),
    "an embedding of more rows": (
        lambda: changed(EMBEDDING, lambda t: torch.cat([t, t[:3]])),
        r"\(104, 32\)",
    ),
    "a head of fewer rows": (
        lambda: plain() | {"lm_head.weight": torch.zeros(100, 32)},
        r"lm_head\.weight in .*\(100, 32\)",
    ),
    "integers": (
        lambda: changed(WEIGHT, lambda t: t.to(torch.int8)),
        "of type int8, not of floats",
    ),
    "float8": (lambda: changed(WEIGHT, lambda t: t.to(torch.float8_e4m3fn)), "float8_e4m3fn"),
    "LoRA that is not merged": (
        lambda: without(WEIGHT) | {f"base_model.model.{LAYER}.base_layer.weight": plain()[WEIGHT]},
        "LoRA adapter that is not merged",
    ),
    "two names for one": (
        lambda: plain() | {f"module.{WEIGHT}": plain()[WEIGHT]},
        "mean the same one",
    ),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_checkpoint_is_one_line_when_it_is_opened(damage, tmp_path):
    make, line = DAMAGED[damage]
    with pytest.raises(CheckpointError, match=line) as error:
        checked(write(tmp_path, make()))
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value) or damage == "two names for one"


def test_a_git_lfs_pointer_is_called_that(tmp_path):
    write(tmp_path, plain())
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    (tmp_path / "model.safetensors").write_bytes(pointer)
    with pytest.raises(CheckpointError, match="Git LFS pointer"):
        open_checkpoint(tmp_path)


def test_tensors_that_nobody_uses_are_told_in_one_line(tmp_path, caplog):
    others = {f"score.{n}": torch.zeros(2) for n in ("weight", "bias")}
    others |= {"x.lora_A.weight": torch.zeros(2), "strange": torch.zeros(1)}
    with caplog.at_level(logging.WARNING):
        checked(write(tmp_path, plain() | others))
    (line,) = [record.getMessage() for record in caplog.records]
    assert "4 tensors" in line
    assert "2 of other heads" in line
    assert "1 of LoRA" in line
    assert "strange" in line


# --- names ---


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "base_model.model.", "model.", "module.model."]
)
def test_prefixes_of_frameworks_are_understood(prefix, tmp_path):
    checkpoint = checked(write(tmp_path, {prefix + name: t for name, t in plain().items()}))
    assert torch.equal(checkpoint.tensor(WEIGHT), plain()[WEIGHT])


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "module"])
def test_a_state_dict_inside_of_a_bin_file_is_found(wrapper, tmp_path):
    write(tmp_path, plain())
    (tmp_path / "model.safetensors").unlink()
    torch.save({wrapper: plain(), "epoch": 3}, tmp_path / "pytorch_model.bin")
    assert torch.equal(checked(tmp_path).tensor(WEIGHT), plain()[WEIGHT])


# --- bitsandbytes' int8 ---


def int8_tensors() -> Tensors:
    """As bitsandbytes stores it: rows by their largest magnitude / 127."""
    tensors = plain()
    for name in [n for n in tensors if n.endswith(".weight") and tensors[n].ndim == 2]:
        if "embeddings" in name:
            continue
        weight = tensors[name]
        scale = weight.abs().amax(1)
        tensors[name] = torch.round(weight * 127 / scale[:, None]).to(torch.int8)
        tensors[name.removesuffix("weight") + "SCB"] = scale
        tensors[name.removesuffix("weight") + "weight_format"] = torch.tensor(0, dtype=torch.uint8)
    return tensors


INT8 = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}


@pytest.mark.parametrize("settings", [INT8, {}], ids=["said", "not said"])
def test_int8_of_bitsandbytes_is_dequantised(settings, tmp_path):
    checkpoint = checked(write(tmp_path, int8_tensors(), **settings))
    for name, tensor in plain().items():
        step = tensor.abs().max() / 127 if tensor.ndim == 2 else 0.0
        torch.testing.assert_close(checkpoint.tensor(name), tensor, rtol=0, atol=float(step))
    stored = int8_tensors()
    wanted = stored[WEIGHT].double() * stored[f"{LAYER}.SCB"].double()[:, None] / 127
    torch.testing.assert_close(checkpoint.tensor(WEIGHT).double(), wanted, rtol=1e-6, atol=0)


def test_other_methods_are_refused_in_one_line(tmp_path):
    write(tmp_path, plain(), quantization_config={"quant_method": "awq", "bits": 4})
    with pytest.raises(CheckpointError, match="quantised by awq"):
        open_checkpoint(tmp_path)


# --- GPTQ ---


def packed(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Numbers `[rows * 32 / bits, columns]` in 32-bit words along the rows, the lowest first."""
    each = 32 // bits
    words = np.zeros((len(numbers) // each, numbers.shape[1]), np.uint32)
    for place in range(each):
        words |= numbers[place::each].astype(np.uint32) << np.uint32(bits * place)
    return words.view(np.int32)


def gptq(size: int, act_order: bool, symmetric: bool, bits: int = 4, shift: int = 1):
    """Tensors of a GPTQ checkpoint, and the weights that they mean by the definition."""
    rng = np.random.default_rng(0)
    tensors, meant = plain(), {}
    for name in [n for n in tensors if n.endswith(".weight") and ".h." in n and "norm" not in n]:
        outputs, inputs = tensors.pop(name).shape
        groups = inputs // size if size > 0 else 1
        index = np.arange(inputs) // (inputs // groups)
        if act_order:
            rng.shuffle(index)
        most = 2**bits
        numbers = rng.integers(0, most, (inputs, outputs))
        zeros = np.full((groups, outputs), most // 2)
        if not symmetric:
            zeros = rng.integers(shift, most, (groups, outputs))
        scales = rng.uniform(0.5, 1.5, (groups, outputs)).astype(np.float16)
        weight = np.zeros((outputs, inputs))
        for i in range(inputs):
            g = index[i]
            weight[:, i] = scales[g].astype(np.float64) * (numbers[i] - zeros[g])
        module = name.removesuffix(".weight")
        meant[name] = weight
        tensors |= {
            f"{module}.qweight": torch.from_numpy(packed(numbers, bits)),
            f"{module}.qzeros": torch.from_numpy(packed(zeros.T - shift, bits).T.copy()),
            f"{module}.scales": torch.from_numpy(scales),
            f"{module}.g_idx": torch.from_numpy(index.astype(np.int32)),
        }
    return tensors, meant


def gptq_settings(size: int, bits: int = 4, version: str = "gptq") -> dict:
    return {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": size,
        "checkpoint_format": version,
    }


@pytest.mark.parametrize("size", [16, 32, -1])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_gptq_is_dequantised_by_the_definition(size, act_order, symmetric, tmp_path):
    tensors, meant = gptq(size, act_order and size > 0, symmetric)
    checkpoint = checked(write(tmp_path, tensors, quantization_config=gptq_settings(size)))
    for name, weight in meant.items():
        np.testing.assert_allclose(checkpoint.tensor(name).numpy(), weight, rtol=1e-6)


@pytest.mark.parametrize(("bits", "version"), [(8, "gptq"), (2, "gptq"), (4, "gptq_v2")])
def test_other_widths_and_versions_of_gptq(bits, version, tmp_path):
    tensors, meant = gptq(16, True, False, bits, shift=1 if version == "gptq" else 0)
    settings = gptq_settings(16, bits, version)
    checkpoint = checked(write(tmp_path, tensors, quantization_config=settings))
    for name, weight in meant.items():
        np.testing.assert_allclose(checkpoint.tensor(name).numpy(), weight, rtol=1e-6)


def test_settings_of_gptq_may_be_in_a_file_of_their_own(tmp_path):
    tensors, meant = gptq(16, False, True)
    write(tmp_path, tensors)
    (tmp_path / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 16}))
    np.testing.assert_allclose(checked(tmp_path).tensor(WEIGHT).numpy(), meant[WEIGHT], rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "part", "line"),
    [
        ({"bits": 3}, None, "bits 3"),
        ({"group_size": 0}, None, "group_size 0"),
        ({"checkpoint_format": "marlin"}, None, "marlin"),
        ({"group_size": 8}, None, r"shape \(8, 32\).*groups of 8"),
        ({}, ".scales", "has no scales"),
        ({}, ".qzeros", "has no qzeros"),
        ({"desc_act": True}, ".g_idx", "has no g_idx"),
        ({"bits": 4.0}, None, "bits 4.0"),
    ],
)
def test_gptq_that_does_not_fit_together_is_one_line(settings, part, line, tmp_path):
    tensors, _ = gptq(16, False, True)
    if part:
        tensors.pop(f"{LAYER}{part}")
    write(tmp_path, tensors, quantization_config=gptq_settings(16) | settings)
    with pytest.raises(CheckpointError, match=line) as error:
        checked(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("part", "dtype"),
    [("qweight", "int64"), ("qzeros", "int8"), ("scales", "int32"), ("g_idx", "bool")],
)
def test_parts_of_gptq_of_another_type_are_one_line(part, dtype, tmp_path):
    tensors, _ = gptq(16, True, True)
    tensors[f"{LAYER}.{part}"] = tensors[f"{LAYER}.{part}"].to(getattr(torch, dtype))
    with pytest.raises(CheckpointError, match=f"{part} in .* is of type {dtype}, not "):
        checked(write(tmp_path, tensors, quantization_config=gptq_settings(16)))


def test_scales_of_int8_that_are_no_floats_are_one_line(tmp_path):
    tensors = int8_tensors()
    tensors[f"{LAYER}.SCB"] = tensors[f"{LAYER}.SCB"].to(torch.int8)
    with pytest.raises(CheckpointError, match="with scales int8"):
        checked(write(tmp_path, tensors, **INT8))


def test_plain_tensors_are_still_mapped_and_not_copied(tmp_path):
    checkpoint = checked(write(tmp_path, plain()))
    expected = load_file(tmp_path / "model.safetensors")[WEIGHT]
    assert torch.equal(checkpoint.tensor(WEIGHT), expected)
