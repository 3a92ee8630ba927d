"""Small random BLOOM checkpoints for `fuzz_checkpoints.py`: shapes, spellings, forms, damages.

A case has the tensors as they are stored, and beside them the float32 weights that they mean, by
the definition of their form; a damage that changes a meaning changes both.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.quants import dequantize, quantize
from safetensors.torch import save_file
from transformers import BloomConfig as TransformersConfig
from transformers import BloomForCausalLM

Tensors = dict[str, torch.Tensor]
TYPES = ("float32", "float16", "bfloat16")
SPELLINGS = {
    "n_layer": ("n_layer", "num_hidden_layers"),
    "hidden_size": ("hidden_size", "n_embed"),
    "n_head": ("n_head", "num_attention_heads"),
    "dtype": ("dtype", "torch_dtype"),
}
PREFIXES = ("", "", "", "transformer.", "module.", "_orig_mod.", "base_model.model.", "model.")
HEAD = "lm_head.weight"


@dataclass
class Case:
    """One checkpoint.

    Attributes:
        stored: tensors as they are written.
        meant: transformers' names without `transformer.` -> float32.
        config: the content of config.json.
        files: further files of the folder, by name.
        told: what was drawn, for a person.
    """

    draw: random.Random
    rng: np.random.Generator
    stored: Tensors = field(default_factory=dict)
    meant: Tensors = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    adapter: Tensors = field(default_factory=dict)
    adapter_config: dict[str, Any] = field(default_factory=dict)
    form: str = "plain"
    told: list[str] = field(default_factory=list)

    def matrix(self) -> str:
        """The name of one of the stored tensors."""
        return self.draw.choice(sorted(self.stored))


def make(seed: int) -> Case:
    """A whole checkpoint, of which nothing is written yet."""
    draw = random.Random(seed)
    case = Case(draw, np.random.default_rng(seed))
    dtype = _model(case, seed)
    case.form = draw.choice(["plain"] * 5 + ["int8", "gptq", "gptq", "gguf", "lora", "lora"])
    {"int8": _int8, "gptq": _gptq, "lora": _lora}.get(case.form, lambda case: None)(case)
    case.told.append(f"{case.form} {dtype}")
    return case


def _model(case: Case, seed: int) -> str:
    """Shape, settings in some spelling, and random weights."""
    draw = case.draw
    heads = draw.choice([1, 2, 3, 4, 8])
    shape = {
        "vocab_size": draw.randint(9, 90),
        "hidden_size": heads * draw.choice([4, 8, 16, 32]),
        "n_layer": draw.randint(1, 3),
        "n_head": heads,
    }
    settings = shape | {
        "layer_norm_epsilon": draw.choice([1e-5, 1e-5, 1e-6, 1e-3, 0.1]),
        "apply_residual_connection_post_layernorm": draw.random() < 0.2,
        "tie_word_embeddings": draw.random() < 0.7,
    }
    model = BloomForCausalLM(TransformersConfig(**settings))
    generator, dtype = torch.Generator().manual_seed(seed), draw.choice(TYPES)
    tied = settings["tie_word_embeddings"]
    for name, tensor in model.state_dict().items():
        if name == HEAD and tied:
            continue
        values = torch.randn(tensor.shape, generator=generator) * 0.3
        stored = (values + 1 if "norm.weight" in name else values).to(getattr(torch, dtype))
        plain = name.removeprefix("transformer.")
        case.stored[plain], case.meant[plain] = stored, stored.float()
    if tied and draw.random() < 0.2:  # a copy of the embedding, as some frameworks write it
        case.stored[HEAD] = case.stored["word_embeddings.weight"].clone()
    case.config = {"model_type": "bloom", "architectures": ["BloomForCausalLM"], "dtype": dtype}
    case.config |= settings | {"bos_token_id": 1, "eos_token_id": 2, "hidden_dropout": 0.1}
    case.config |= {"slow_but_exact": draw.random() < 0.2, "pretraining_tp": draw.randint(1, 4)}
    for name, spellings in SPELLINGS.items():
        case.config[draw.choice(spellings)] = case.config.pop(name)
    case.told.append(f"{shape} tied {tied}")
    return dtype


def _linear(case: Case) -> list[str]:
    """Modules of the layers' matrices."""
    names = [n for n, t in case.stored.items() if n.startswith("h.") and t.ndim == 2]
    return [name.removesuffix(".weight") for name in names]


def _int8(case: Case) -> None:
    for module in _linear(case):
        weight = case.stored[f"{module}.weight"].float()
        scale = weight.abs().amax(1)
        numbers = torch.round(weight * 127 / scale[:, None]).to(torch.int8)
        case.stored[f"{module}.weight"], case.stored[f"{module}.SCB"] = numbers, scale
        if case.draw.random() < 0.5:
            case.stored[f"{module}.weight_format"] = torch.tensor(0, dtype=torch.uint8)
        case.meant[f"{module}.weight"] = numbers.float() * (scale / 127)[:, None]
    if case.draw.random() < 0.7:
        said = {"quant_method": "bitsandbytes", "load_in_8bit": True}
        case.config["quantization_config"] = said


def words_of(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Numbers `[rows, columns]` in 32-bit words along the rows, the lowest first."""
    each = 32 // bits
    words = np.zeros((len(numbers) // each, numbers.shape[1]), np.uint32)
    for place in range(each):
        words |= numbers[place::each].astype(np.uint32) << np.uint32(bits * place)
    return words.view(np.int32)


def _gptq(case: Case) -> None:
    """Where the shape allows it: packed words hold 32 / bits numbers of both sides."""
    draw, rng = case.draw, case.rng
    hidden = case.stored["ln_f.weight"].shape[0]
    bits = draw.choice([2, 4, 4, 4, 8])
    sizes = [s for s in (-1, 4, 8, 16, 32) if s == -1 or hidden % s == 0]
    if hidden % (32 // bits):
        case.form = "plain"
        return
    size, act_order, shift = draw.choice(sizes), draw.random() < 0.3, draw.choice([0, 1])
    for module in _linear(case):
        outputs, inputs = case.stored.pop(f"{module}.weight").shape
        groups = 1 if size == -1 else inputs // size
        index = np.arange(inputs) // (inputs // groups)
        if act_order:
            rng.shuffle(index)
        numbers = rng.integers(0, 2**bits, (inputs, outputs))
        zeros = rng.integers(shift, 2**bits, (groups, outputs))
        if draw.random() < 0.5:
            zeros[:] = 2 ** (bits - 1)
        # As large for 8 bits as for 4: states would go beyond float16, in transformers, too.
        scales = (rng.uniform(0.02, 0.1, (groups, outputs)) * min(1, 16 / 2**bits)).astype(
            np.float16
        )
        meant = scales[index].astype(np.float32) * (numbers - zeros[index])
        case.meant[f"{module}.weight"] = torch.from_numpy(meant.T.astype(np.float32).copy())
        parts = {
            "qweight": words_of(numbers, bits),
            "qzeros": words_of((zeros - shift).T, bits).T.copy(),
            "scales": scales,
            "g_idx": index.astype(np.int32),
        }
        if not act_order and draw.random() < 0.3:
            parts.pop("g_idx")
        case.stored |= {f"{module}.{p}": torch.from_numpy(array) for p, array in parts.items()}
    settings = {"bits": bits, "group_size": size, "desc_act": act_order}
    settings |= {"checkpoint_format": "gptq" if shift else "gptq_v2"}
    if draw.random() < 0.3:
        case.files["quantize_config.json"] = json.dumps(settings)
    else:
        case.config["quantization_config"] = settings | {"quant_method": "gptq"}
    case.told.append(f"{bits} bits in {size}, act-order {act_order}")


def _lora(case: Case) -> None:
    draw, modules = case.draw, _linear(case)
    rank, alpha = draw.randint(1, 4), draw.choice([1, 8, 16.5])
    rslora, embedding = draw.random() < 0.3, draw.random() < 0.2
    scale = alpha / (math.sqrt(rank) if rslora else rank)
    generator = torch.Generator().manual_seed(draw.randrange(1 << 30))
    for module in draw.sample(modules, draw.randint(1, len(modules))):
        outputs, inputs = case.meant[f"{module}.weight"].shape
        a = torch.randn(rank, inputs, generator=generator) * 0.3
        b = torch.randn(outputs, rank, generator=generator) * 0.3
        place = f"base_model.model.transformer.{module}"
        case.adapter |= {f"{place}.lora_A.weight": a, f"{place}.lora_B.weight": b}
        _merge(case, f"{module}.weight", scale * (b @ a))
    if embedding and HEAD not in case.stored:
        rows, width = case.meant["word_embeddings.weight"].shape
        a = torch.randn(rank, rows, generator=generator) * 0.3
        b = torch.randn(width, rank, generator=generator) * 0.3
        place = "base_model.model.transformer.word_embeddings"
        case.adapter |= {f"{place}.lora_embedding_A": a, f"{place}.lora_embedding_B": b}
        _merge(case, "word_embeddings.weight", scale * (b @ a).T)
    case.adapter_config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha}
    case.adapter_config |= {"use_rslora": rslora, "task_type": "CAUSAL_LM"}


def _merge(case: Case, name: str, change: torch.Tensor) -> None:
    """The sum in the type that the weight is stored in, as `merge_and_unload` leaves it."""
    dtype = case.stored[name].dtype
    case.meant[name] = (case.meant[name] + change).to(dtype).float()


# --- writing ---


def write(case: Case, folder: Path) -> Path:
    """The folder, or the `.gguf` file in it."""
    folder.mkdir(parents=True)
    if case.form == "gguf":
        return _write_gguf(case, folder / "model.gguf")
    (folder / "config.json").write_text(json.dumps(case.config))
    for name, text in case.files.items():
        (folder / name).write_text(text)
    if case.adapter:
        (folder / "adapter").mkdir()
        (folder / "adapter" / "adapter_config.json").write_text(json.dumps(case.adapter_config))
        save_file(_whole(case.adapter), folder / "adapter" / "adapter_model.safetensors")
    _write_tensors(case, folder)
    return folder


def _whole(tensors: Tensors) -> Tensors:
    return {name: tensor.clone().contiguous() for name, tensor in tensors.items()}


def _write_tensors(case: Case, folder: Path) -> None:
    draw, prefix = case.draw, case.draw.choice(PREFIXES)
    tensors = {prefix + name: tensor for name, tensor in _whole(case.stored).items()}
    pickled = draw.random() < 0.4
    base, ending = ("pytorch_model", "bin") if pickled else ("model", "safetensors")
    old, wrapper = draw.random() < 0.3, draw.choice(["", "", "state_dict", "model"])

    def save(part: Tensors, path: Path) -> None:
        if not pickled:
            save_file(part, path)
            return
        content: Any = {wrapper: part, "step": 3} if wrapper else part
        torch.save(content, path, _use_new_zipfile_serialization=not old)

    count = draw.choice([1, 1, 2, 3, 5])
    case.told.append(f"{ending} x {count}, prefix {prefix!r}{' old' if pickled and old else ''}")
    if count == 1:
        save(tensors, folder / f"{base}.{ending}")
        return
    places = {}
    names = list(tensors)
    draw.shuffle(names)
    for number in range(count):
        file = f"{base}-{number + 1:05d}-of-{count:05d}.{ending}"
        part = {name: tensors[name] for name in names[number::count]}
        places |= dict.fromkeys(part, file)
        save(part, folder / file)
    index = {"metadata": {}, "weight_map": places}
    (folder / f"{base}.{ending}.index.json").write_text(json.dumps(index))


def _write_gguf(case: Case, path: Path) -> Path:
    case.config["apply_residual_connection_post_layernorm"] = False  # the header cannot say it
    config = TransformersConfig(**case.config)
    kinds = [gguf.GGMLQuantizationType[name] for name in ("F32", "F16", "BF16", "Q8_0", "Q4_0")]
    kind, heads, hidden = case.draw.choice(kinds), config.n_head, config.hidden_size
    if hidden % 32:
        kind = kinds[0]
    writer = gguf.GGUFWriter(path, "bloom")
    writer.add_block_count(config.n_layer)
    writer.add_embedding_length(hidden)
    writer.add_head_count(heads)
    writer.add_context_length(64)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BLOOM, config.n_layer)
    for name, tensor in case.stored.items():
        array = tensor.float().numpy()
        case.meant[name] = torch.from_numpy(array.copy())
        if "query_key_value" in name:
            apart = array.reshape(heads, 3, hidden // heads, *array.shape[1:]).swapaxes(0, 1)
            array = np.ascontiguousarray(apart).reshape(array.shape)
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if array.ndim < 2 or kind == kinds[0]:
            writer.add_tensor(target, array)
            continue
        data = quantize(array, kind)
        writer.add_tensor(target, data, raw_dtype=kind)
        values = dequantize(data, kind).reshape(array.shape)
        if "query_key_value" in name:
            together = values.reshape(3, heads, hidden // heads, -1).swapaxes(0, 1)
            values = np.ascontiguousarray(together).reshape(array.shape)
        case.meant[name] = torch.from_numpy(values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    case.told.append(f"gguf {kind.name}")
    return path


# --- damage: of what is stored, before it is written ---


def damage_tensors(case: Case) -> None:
    """Change one stored tensor, its name, or the set of them."""
    name, draw = case.matrix(), case.draw
    tensor = case.stored[name]
    changes: dict[str, Callable[[], Any]] = {
        "missing": lambda: None,
        # A square matrix that is transposed looks as any other.
        "transposed": lambda: tensor.T if len(set(tensor.shape)) == 2 else tensor.reshape(-1)[:-1],
        "fewer rows": lambda: tensor[:-1] if tensor.ndim else tensor,
        "more rows": lambda: torch.cat([tensor, tensor[:1]]) if tensor.ndim else tensor,
        "empty": lambda: tensor.reshape(-1)[:0],
        "no axes": lambda: tensor.reshape(-1)[:1].reshape(()),
        "another axis": lambda: tensor[None],
        "flat": lambda: tensor.reshape(-1),
        "int8": lambda: tensor.to(torch.int8),
        "int64": lambda: tensor.to(torch.int64),
        "bool": lambda: tensor.bool(),
        "float8": lambda: tensor.float().to(torch.float8_e4m3fn),
    }
    what = draw.choice([*changes, "another name", "one more", "under two names"])
    case.told.append(f"{name} {what}")
    if what == "another name":
        case.stored[draw.choice([f"{name}x", f"h.99.{name}", name.upper()])] = case.stored.pop(name)
    elif what == "one more":
        case.stored[draw.choice(["score.weight", "h.99.ln.weight", "x.lora_A"])] = tensor.clone()
    elif what == "under two names":
        case.stored[f"transformer.{name}"] = tensor.clone() + 1
    elif what == "missing":
        del case.stored[name]
    else:
        case.stored[name] = changes[what]()


def damage_config(case: Case) -> None:
    """Change a value of config.json, or leave one out."""
    draw = case.draw
    names = [n for n in case.config if n not in ("architectures", "quantization_config")]
    name = draw.choice([*names, "n_head", "n_layer", "hidden_size", "num_attention_heads"])
    now = case.config.get(name)
    values = [None, "7", "x", [], {}, 0, -1, 1, 2, 3, 4, 5, 0.5, True, 10**9, "gpt2", "float64"]
    values += [now + 1, now * 2] if type(now) is int else []
    value = draw.choice(values)
    if draw.random() < 0.2:
        case.config.pop(name, None)
        value = "left out"
    else:
        case.config[name] = value
    case.told.append(f"config.json: {name} {value!r}")


def damage_form(case: Case) -> None:
    """What says how numbers are packed, or what an adapter is, is wrong."""
    draw = case.draw
    if case.form == "lora":
        name = draw.choice(["r", "lora_alpha", "peft_type", "use_dora", "fan_in_fan_out"])
        values = [None, "7", True, [1]] if name == "lora_alpha" else [None, 0, 1, 3, "IA3", True]
        case.adapter_config[name] = draw.choice(values)
        case.told.append(f"adapter: {name} {case.adapter_config[name]!r}")
        return
    if "quantize_config.json" in case.files:
        case.files["quantize_config.json"] = draw.choice(["", "[]", "{}", '{"bits": 3}', "null"])
        case.told.append(f"quantize_config.json {case.files['quantize_config.json']!r}")
        return
    said = case.config.get("quantization_config")
    if not isinstance(said, dict):
        method = draw.choice(["awq", "gptq", "bitsandbytes", "fp8", 4, None])
        case.config["quantization_config"] = {"quant_method": method, "bits": 4}
        case.told.append(f"quantization_config of {method!r}")
        return
    name = draw.choice(["bits", "group_size", "quant_method", "checkpoint_format"])
    said[name] = draw.choice([None, 0, 1, 3, 4, 8, 16, 128, "awq", "4", 2.0, True])
    case.told.append(f"quantization_config: {name} {said[name]!r}")


def damage_files(case: Case, path: Path) -> None:
    """Cut, swap or remove files of the folder that was written."""
    draw = case.draw
    folder = path if path.is_dir() else path.parent
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    file = draw.choice(files)
    data = file.read_bytes()
    changes: dict[str, Callable[[], bytes]] = {
        "cut": lambda: data[: draw.randrange(len(data))],
        "without its last byte": lambda: data[:-1],
        "longer": lambda: data + b"\0" * 16,
        "empty": lambda: b"",
        "a pointer": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "another file": lambda: draw.choice(files).read_bytes(),
        "zeros first": lambda: bytes(8) + data[8:],
    }
    what = draw.choice([*changes, "missing"])
    case.told.append(f"{file.name} {what}")
    if what == "missing":
        file.unlink()
    else:
        file.write_bytes(changes[what]())
