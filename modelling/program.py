"""Inference of a language model as one PopXL program.

The program holds several passes and runs one of them a run: *prefill* for each chunk size (a chunk
of a prompt in one slot of the KV cache), *share* (chunks of several prompts), *decode* for some
numbers of slots (a token for each, whichever slots these are), for prompt-lookup decoding *verify*
(the next tokens of one slot, with the logits after each of them) and, for the log-likelihoods of
prompts, *score* (a prefill chunk with the logits after each of its tokens).
Further ones copy between slots and the blocks of the prefix cache. Weights are in remote buffers,
one entry a layer, and are loaded when the layer runs; so is the KV cache.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import popdist
import popxl
import popxl_addons as addons
from popxl import ops

from config import BloomConfig
from modelling.architecture import architecture_of
from modelling.pass_sizes import chunk_sizes, heads, score_sizes, share_sizes, verify_sizes
from modelling.phases import Phases


class InferenceSession(addons.TaskSession):
    """The program's session.

    Attributes:
        inputs: `tokens`, `positions`, `slots`, `last` and `chosen_pass`; see `Phases`.
        outputs: float32 logits, a stream for each kind of pass, so that none is padded:
            `decode` `(batch_size, vocabulary / tp1)`, `prefill` `(1, vocabulary / tp1)`, of several
            prompts `share` `(heads, vocabulary / tp1)`, and `decode_<size>`, `verify_<size>` and
            `score_<size>` `(size, vocabulary / tp1)`. A run stores to one of them, or to none.
        state: the weights: `embeddings`, `layer_<n>` and `head`.
        pass_graphs: the graph of each pass: `decode` of all slots, `decode_<size>` of fewer,
            `prefill_<chunk size>`, `share_<size>`, `verify_<size>` and `score_<size>`.
    """

    pass_graphs: dict[str, popxl.Graph]


def inference(config: BloomConfig, spread: bool = True, **session_options: Any) -> InferenceSession:
    """Build the program.

    Args:
        spread: its replicas over all processes, where there are several.
        session_options: further ones of `popxl.Session`.

    Raises:
        RuntimeError: where the configured device is not there.
    """
    ir = popxl.Ir(replication="popdist" if spread and popdist.isPopdistEnvSet() else 1)
    ir.replication_factor = config.execution.replicas
    with ir.main_graph:
        phases = Phases(config)
        chunks, shared, slots = (
            chunk_sizes(config),
            share_sizes(config),
            config.execution.batch_size,
        )
        longest = max(*chunks, *shared, *verify_sizes(config), *score_sizes(config), slots)
        places = max(slots, max(shared, default=0) // chunks[0])
        inputs = addons.InputStreams(
            tokens=((longest,), popxl.int32),
            positions=((places,), popxl.int32),
            slots=((places,), popxl.int32),
            last=((heads(config),), popxl.int32),
            chosen_pass=((), popxl.int32),
        )
        *given, chosen = [ops.host_load(stream, name) for name, stream in inputs.items()]
        ops.call(phases.choose_pass(given, chosen), *given, chosen)
    options = {"device_desc": config.execution.device, **session_options}
    session = InferenceSession(inputs, phases.outputs, phases.variables, 1, ir, **options)
    session.pass_graphs = phases.pass_graphs
    return session


def hf_mapping(
    config: BloomConfig, variables: addons.NamedTensors, hf_module: Any
) -> list[tuple[str, Callable[[], dict[popxl.Variable, np.ndarray]]]]:
    """How the session's weights come from a checkpoint, a part at a time.

    Returns:
        Names of the parts, in order, and functions that give a part's `{variable: array}`.
    """
    of, transformer = architecture_of(config), hf_module.transformer
    layers = [(f"layer_{n}", of.block, transformer.h[n]) for n in range(config.model.layers)]
    parts = [("embeddings", of.embedding, transformer), *layers, ("head", of.head, hf_module)]
    return [
        (name, partial(builder.hf_mapping, config, variables.get(name), module))
        for name, builder, module in parts
    ]
