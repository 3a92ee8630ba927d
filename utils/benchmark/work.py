"""What the model requires for a token and for a prompt, from the program alone.

It is what one device without padding would have to read and compute: a sharded program that reads
or computes something twice gains nothing by it.
"""

from __future__ import annotations

from dataclasses import dataclass

from config import BloomConfig
from modelling.program import InferenceSession
from utils.generation.loading import build
from utils.our_runtime import cost


@dataclass(frozen=True)
class Work:
    """Bytes that are read, and multiplications and additions of matmuls.

    Attributes:
        weight_bytes: read by a token pass, whatever the rows.
        cache_bytes: keys and values of one token, in all layers.
        layer_operations: of one token with the weights of all layers.
        head_operations: of one row of logits.
        attention_operations: of one token with one key and one value, in all layers.
    """

    weight_bytes: int
    cache_bytes: int
    layer_operations: int
    head_operations: int
    attention_operations: int

    def step_bytes(self, rows: int, filled: int) -> int:
        """Read by a token pass with `filled` tokens in every row, the new one among them."""
        return self.weight_bytes + rows * filled * self.cache_bytes

    def prompt_operations(self, tokens: int) -> int:
        """Of a row's prompt: every token with itself and those before it, the head of the last."""
        pairs = tokens * (tokens + 1) // 2
        return (
            tokens * self.layer_operations
            + pairs * self.attention_operations
            + self.head_operations
        )


def work_of(config: BloomConfig, session: InferenceSession) -> Work:
    """The work of a configuration.

    Args:
        session: of this configuration; looked at where it is not sharded.
    """
    if config.execution.replicas > 1:
        session = build(config.changed(tensor_parallel_1=1, tensor_parallel_2=1), spread=False)
    rows, length = config.execution.batch_size, config.model.sequence_length
    needed = cost(session.pass_graphs["decode"])
    head = 2 * config.model.hidden_size * config.model.vocab_size
    return Work(
        weight_bytes=needed.weight_bytes,
        cache_bytes=needed.state_bytes // (rows * length),
        layer_operations=(needed.operations - needed.state_operations) // rows - head,
        head_operations=head,
        attention_operations=needed.state_operations // (rows * length),
    )
