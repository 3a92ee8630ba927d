"""A decoder that is not BLOOM: GPT-2, tensor parallel, phased, written as for the Poplar SDK."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import popdist
import popxl
import popxl_addons as addons
import pytest
import torch
from popxl import ops
from popxl.utils import to_numpy
from popxl_addons import NamedTensors, TaskSession
from popxl_addons.array_munging import shard
from popxl_addons.layers import Embedding, LayerNorm, Linear
from popxl_addons.ops.replicated_all_reduce_TP import (
    replicated_all_reduce_identical_grad_inputs,
    replicated_all_reduce_identical_inputs,
)
from popxl_addons.patterns import apply_pre_alias_patterns
from popxl_addons.remote import load_remote_graph, named_variable_buffers
from transformers import GPT2Config, GPT2LMHeadModel


@dataclass
class Settings:
    tp: int
    layers: int = 3
    hidden: int = 64
    heads: int = 4
    vocab: int = 96
    sequence: int = 12
    batch: int = 2


class GPT2Embeddings(addons.Module):
    def __init__(self, config: Settings):
        super().__init__()
        self.config = config
        self.split = popxl.gcg().ir.replica_grouping(group_size=1)
        self.words = Embedding(
            popxl.float32, config.vocab, config.hidden, replica_grouping=self.split
        )
        self.positions = Embedding(popxl.float32, config.sequence, config.hidden)

    def build(self, tokens: popxl.Tensor) -> popxl.Tensor:
        offsets = iter(self.words.offsets.astype(np.int32))
        offset = self.add_variable_input(
            "offset", offsets, popxl.int32, replica_grouping=self.split
        )
        words = self.words(tokens - offset)
        words = replicated_all_reduce_identical_grad_inputs(words, group=self.split.transpose())
        at = np.tile(np.arange(self.config.sequence), self.config.batch)
        return words + self.positions(popxl.constant(at, popxl.int32))


class GPT2Attention(addons.Module):
    def __init__(self, config: Settings):
        super().__init__()
        self.config = config
        self.split = popxl.gcg().ir.replica_grouping(stride=config.tp, group_size=1)
        self.qkv = Linear(3 * config.hidden // config.tp, replica_grouping=self.split)
        self.out = Linear(config.hidden, bias=False, replica_grouping=self.split)

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        c = self.config
        heads = c.heads // c.tp
        z = replicated_all_reduce_identical_inputs(x, group=self.split.transpose())
        query, key, value = (
            part.reshape((c.batch, c.sequence, heads, c.hidden // c.heads))
            for part in ops.split(self.qkv(z), 3, axis=-1)
        )
        scores = query.transpose((0, 2, 1, 3)) @ key.transpose((0, 2, 3, 1))
        scores = scores * (1 / math.sqrt(c.hidden // c.heads))
        mask = 1e9 * (np.tril(np.ones((c.sequence, c.sequence))) - 1)
        scores = ops.softmax(scores + popxl.constant(mask, query.dtype, name="mask"), axis=-1)
        context = (scores @ value.transpose((0, 2, 1, 3))).transpose((0, 2, 1, 3))
        z = self.out(context.reshape((c.batch * c.sequence, -1)))
        z = replicated_all_reduce_identical_grad_inputs(z, group=self.split.transpose())
        self.bias = self.add_variable_input("bias", lambda: np.zeros(c.hidden), z.dtype)
        return z + self.bias


class GPT2Block(addons.Module):
    def __init__(self, config: Settings):
        super().__init__()
        self.config = config
        self.split = popxl.gcg().ir.replica_grouping(stride=config.tp, group_size=1)
        self.ln_1, self.ln_2 = LayerNorm(), LayerNorm()
        self.attention = GPT2Attention(config)
        self.up = Linear(4 * config.hidden // config.tp, replica_grouping=self.split)
        self.down = Linear(config.hidden, bias=False, replica_grouping=self.split)

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        x = x + self.attention(self.ln_1(x))
        z = self.down(ops.gelu(self.up(self.ln_2(x))))
        z = replicated_all_reduce_identical_grad_inputs(z, group=self.split.transpose())
        bias = self.add_variable_input("bias", lambda: np.zeros(self.config.hidden), z.dtype)
        return x + z + bias


class GPT2Head(addons.Module):
    def __init__(self, config: Settings):
        super().__init__()
        self.split = popxl.gcg().ir.replica_grouping(stride=config.tp, group_size=1)
        self.ln_f = LayerNorm()
        self.head = Linear(config.vocab // config.tp, bias=False, replica_grouping=self.split)

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        return self.head(self.ln_f(x))


def next_tokens(config: Settings, logits: popxl.Tensor, last: popxl.Tensor) -> popxl.Tensor:
    """The likeliest token after position `last` of each row."""
    starts = popxl.constant(np.arange(config.batch) * config.sequence, dtype=popxl.int32)
    gathered = ops.collectives.replicated_all_gather(
        logits[last + starts],
        group=popxl.gcg().ir.replica_grouping(group_size=config.tp),
        output_shape="new_axis",
    )
    whole = gathered.transpose((1, 0, 2)).reshape_((config.batch, config.vocab))
    return ops.argmax(whole, dim=1)


def gpt2_inference(config: Settings) -> TaskSession:
    ir = popxl.Ir(replication="popdist" if popdist.isPopdistEnvSet() else config.tp)
    options = ir._pb_ir.getSessionOptions()
    options.numIOTiles = 32
    options.engineOptions["target.syncReplicasIndependently"] = "true"
    with ir.main_graph:
        inputs = addons.InputStreams(
            words=((config.batch * config.sequence,), popxl.int32),
            last=((config.batch,), popxl.int32),
        )
        outputs = addons.OutputStreams(next_token=((config.batch,), popxl.int32))
        phases = {"embeddings": GPT2Embeddings(config).create_graph(inputs.words.spec)}
        x = phases["embeddings"][1].graph.outputs[0]
        phases["decoder"] = GPT2Block(config).create_graph(x)
        phases["lm_head"] = GPT2Head(config).create_graph(x)
        addons.set_available_memory_proportion_by_ipu(ir, (0.4,))

        buffers, variables = {}, NamedTensors()
        for name, (factories, _) in phases.items():
            entries = config.layers if name == "decoder" else 1
            buffers[name] = named_variable_buffers(factories, entries, shard_over_dict=False)
            tensors = [
                factories.init_remote(buffers[name], n, f"{name}.{n}", empty=name != "embeddings")
                for n in range(entries)
            ]
            whole = NamedTensors.from_dict(dict(enumerate(tensors)))
            variables.insert(name, whole if entries > 1 else tensors[0])

        def loaded(name: str, entry) -> NamedTensors:
            graph, names = load_remote_graph(buffers[name])
            return NamedTensors.pack(names, graph.call(entry))

        def layer(x: popxl.Tensor, n: popxl.Tensor):
            (x,) = phases["decoder"][1].bind(loaded("decoder", n)).call(x)
            return x, n + 1

        with popxl.in_sequence():
            words, last = ops.host_load(inputs.words), ops.host_load(inputs.last)
            (x,) = phases["embeddings"][1].bind(loaded("embeddings", 0)).call(words)
            n = popxl.constant(0, name="layer_index")
            x, _ = ops.repeat(ir.create_graph(layer, x, n), config.layers, x, n)
            (logits,) = phases["lm_head"][1].bind(loaded("lm_head", 0)).call(x)
            tokens = next_tokens(config, logits, last)
            ops.host_store(outputs.next_token, tokens.reshape_(outputs.next_token.shape))
    apply_pre_alias_patterns(ir, level="default")
    ir.num_host_transfers = 1
    return TaskSession(
        inputs=inputs,
        outputs=outputs,
        state=NamedTensors(fwd=variables),
        ir=ir,
        device_desc="ipu_hw",
        weights_to_host_on_exit=False,
    )


def gpt2_mapping(config: Settings, variables: NamedTensors, model: GPT2LMHeadModel) -> dict:
    """transformers' weights; GPT-2's are `(in, out)` as PopXL's are."""
    tp = config.tp

    def host(tensor: torch.Tensor) -> np.ndarray:
        return to_numpy(tensor.data, popxl.float32)

    def split(tensor: torch.Tensor, axis: int) -> np.ndarray:
        return shard(host(tensor), tp, axis) if tp > 1 else host(tensor)

    def split_qkv(tensor: torch.Tensor) -> np.ndarray:
        thirds = [shard(third, tp, -1) for third in np.split(host(tensor), 3, axis=-1)]
        return np.concatenate(thirds, -1) if tp > 1 else np.concatenate(thirds, -1)[0]

    of = model.transformer
    positions = host(of.wpe.weight)
    padded = variables.embeddings.positions.weight.shape[0] - len(positions)
    mapping = {
        variables.embeddings.words.weight: split(of.wte.weight, 0),
        variables.embeddings.positions.weight: np.pad(positions, ((0, padded), (0, 0))),
        variables.lm_head.head.weight: split(model.lm_head.weight.T, -1),
        variables.lm_head.ln_f.weight: host(of.ln_f.weight),
        variables.lm_head.ln_f.bias: host(of.ln_f.bias),
    }
    for number, block in enumerate(of.h):
        mine = variables.decoder.get(str(number))
        for norm in ("ln_1", "ln_2"):
            mapping[mine.get(norm).weight] = host(getattr(block, norm).weight)
            mapping[mine.get(norm).bias] = host(getattr(block, norm).bias)
        mapping[mine.attention.qkv.weight] = split_qkv(block.attn.c_attn.weight)
        mapping[mine.attention.qkv.bias] = split_qkv(block.attn.c_attn.bias)
        mapping[mine.attention.out.weight] = split(block.attn.c_proj.weight, 0)
        mapping[mine.attention.bias] = host(block.attn.c_proj.bias)
        mapping[mine.up.weight] = split(block.mlp.c_fc.weight, -1)
        mapping[mine.up.bias] = split(block.mlp.c_fc.bias, -1)
        mapping[mine.down.weight] = split(block.mlp.c_proj.weight, 0)
        mapping[mine.bias] = host(block.mlp.c_proj.bias)
    return mapping


@pytest.mark.parametrize("tp", [1, 2])
def test_gpt2_takes_the_tokens_that_transformers_takes(tp):
    torch.manual_seed(0)
    config = Settings(tp)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab,
            n_positions=config.sequence,
            n_embd=config.hidden,
            n_layer=config.layers,
            n_head=config.heads,
            initializer_range=0.3,
        )
    ).eval()
    session = gpt2_inference(config)
    session.write_variables_data(gpt2_mapping(config, session.state.fwd, model))
    rows = np.random.default_rng(0).integers(config.vocab, size=(config.batch, config.sequence))
    with session:
        for length in range(1, config.sequence):
            last = np.array([length - 1, length], np.int32)
            given = {session.inputs.words: rows.reshape(-1), session.inputs.last: last}
            arrays = {
                stream: np.broadcast_to(array, session._full_input_shape(stream.shape))
                for stream, array in given.items()
            }
            found = session.run(arrays)[session.outputs.next_token].reshape(tp, config.batch)
            with torch.no_grad():
                logits = model(torch.from_numpy(rows)).logits
            wanted = logits[torch.arange(config.batch), torch.from_numpy(last).long()].argmax(-1)
            for replica in found:
                np.testing.assert_array_equal(replica, wanted)
