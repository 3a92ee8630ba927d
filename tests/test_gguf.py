"""GGUF files of BLOOM: logits of the checkpoint that they were made of, and its tokens."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import quantize
from test_checkpoint import configuration
from tokenizers import Tokenizer
from transformers import BloomConfig as TransformersConfig
from transformers import BloomForCausalLM

from config import BloomConfig, ModelConfig
from utils.checkpoints.checkpoint import CheckpointError, open_checkpoint
from utils.checkpoints.gguf_file import GgufFile, tokenizer_of
from utils.generation.loading import load

HEADS, HIDDEN, LAYERS, VOCAB = 4, 64, 2, 96
TINY = Path(__file__).parents[1] / "models" / "bloom_tiny"
Kind = gguf.GGMLQuantizationType


def model() -> BloomForCausalLM:
    torch.manual_seed(3)
    made = BloomForCausalLM(
        TransformersConfig(vocab_size=VOCAB, hidden_size=HIDDEN, n_layer=LAYERS, n_head=HEADS)
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_()
    return made


def write(path: Path, made: BloomForCausalLM, kind: Kind, tokenizer: Path | None = None) -> Path:
    """As llama.cpp's converter: its names, with query, key and value apart."""
    layers, hidden, heads = (getattr(made.config, n) for n in ("n_layer", "hidden_size", "n_head"))
    writer = gguf.GGUFWriter(path, "bloom")
    writer.add_block_count(layers)
    writer.add_embedding_length(hidden)
    writer.add_head_count(heads)
    writer.add_context_length(128)
    writer.add_layer_norm_eps(1e-5)
    writer.add_eos_token_id(2)
    if tokenizer:
        add_tokenizer(writer, tokenizer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BLOOM, layers)
    for name, tensor in made.transformer.state_dict().items():
        array = tensor.float().numpy()
        if "query_key_value" in name:
            apart = array.reshape(heads, 3, hidden // heads, *array.shape[1:]).swapaxes(0, 1)
            array = np.ascontiguousarray(apart).reshape(array.shape)
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if array.ndim == 2 and kind != Kind.F32:
            writer.add_tensor(target, quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(target, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_tokenizer(writer: gguf.GGUFWriter, folder: Path) -> None:
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    vocab = sorted(backend.get_vocab().items(), key=lambda item: item[1])
    special = {t.content for t in backend.get_added_tokens_decoder().values() if t.special}
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([token for token, _ in vocab])
    writer.add_token_types([3 if token in special else 1 for token, _ in vocab])
    merges = json.loads((folder / "tokenizer.json").read_text())["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])


def settings():
    return configuration(layers=LAYERS, hidden_size=HIDDEN, heads=HEADS, vocab_size=VOCAB)


KINDS = {
    Kind.F32: 0,
    Kind.F16: 2e-3,
    Kind.BF16: 2e-2,
    Kind.Q8_0: 3e-2,
    Kind.Q4_0: 0.4,
    Kind.Q5_0: 0.2,
    Kind.Q4_1: 0.4,
}
"""How far a weight of a few units may be off."""


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
def test_every_type_gives_the_tensors_of_the_checkpoint(kind, tmp_path):
    made = model()
    checkpoint = open_checkpoint(write(tmp_path / "bloom.gguf", made, kind))
    checkpoint.check_against(settings())
    for name, wanted in made.transformer.state_dict().items():
        found = checkpoint.tensor(name)
        torch.testing.assert_close(found.float(), wanted, rtol=0, atol=KINDS[kind] * 1.5)
    assert checkpoint.tied


@pytest.mark.parametrize("kind", [Kind.Q4_K, Kind.Q6_K], ids=lambda k: k.name)
def test_k_quants_are_dequantised_by_the_gguf_package(kind, tmp_path):
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(tmp_path / "k.gguf", "bloom")
    writer.add_block_count(1)
    writer.add_embedding_length(256)
    writer.add_head_count(4)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    raw = rng.integers(0, 60, (8, size), np.uint8)  # scales that are finite
    writer.add_tensor("token_embd.weight", raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = GgufFile(tmp_path / "k.gguf").tensor("word_embeddings.weight")
    assert found.shape == (8, block)
    assert np.array_equal(found.numpy(), gguf.quants.dequantize(raw, kind), equal_nan=True)


def test_settings_are_those_of_the_header(tmp_path):
    found = open_checkpoint(write(tmp_path / "bloom.gguf", model(), Kind.F32)).settings
    assert (found["layers"], found["hidden_size"], found["heads"]) == (LAYERS, HIDDEN, HEADS)
    assert (found["vocab_size"], found["sequence_length"]) == (VOCAB, 128)
    assert found["layer_norm_epsilon"] == pytest.approx(1e-5)


def test_the_vocabulary_in_the_file_gives_the_tokens_of_its_tokenizer(tmp_path):
    file = GgufFile(write(tmp_path / "bloom.gguf", model(), Kind.F32, tokenizer=TINY))
    ours = Tokenizer.from_str(json.dumps(tokenizer_of(file)))
    theirs = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    for text in ("A dog is", " the  sea,\n\nand  1871!", "naïve Ünïcode 漢字 🙂", "</s> end"):
        ids = theirs.encode(text).ids
        assert ours.encode(text).ids == ids
        assert ours.decode(ids) == theirs.decode(ids)


@pytest.mark.parametrize("cut", [0, 3, 40, 300, 5000])
def test_a_damaged_file_is_one_line(cut, tmp_path):
    path = write(tmp_path / "bloom.gguf", model(), Kind.F32)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match=r"bloom\.gguf"):
        open_checkpoint(path).check_against(settings())


def test_another_family_is_named(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match="family llama"):
        open_checkpoint(tmp_path / "other.gguf")


def test_a_file_runs_alone_and_gives_the_greedy_tokens_of_its_checkpoint(tmp_path):
    theirs = BloomForCausalLM.from_pretrained(TINY).float()
    shape = theirs.config
    path = write(tmp_path / "tiny.gguf", theirs, Kind.F32, tokenizer=TINY)
    config = BloomConfig(
        ModelConfig(
            hf_model=str(path),
            layers=shape.n_layer,
            hidden_size=shape.hidden_size,
            heads=shape.n_head,
            vocab_size=shape.vocab_size,
            sequence_length=64,
        )
    )
    loaded = load(config)
    ids = loaded.tokenizer("The sea is").input_ids
    wanted = theirs.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0].tolist()
    found = list(ids)
    while len(found) < len(wanted):
        found.append(int(loaded.passes.prefill(0, found).argmax()))
    assert found == wanted
