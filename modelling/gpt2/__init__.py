"""GPT-2: learned positions, no ALiBi, and linear layers stored as `(in, out)`."""

from modelling.architecture import EXACT, Architecture
from modelling.gpt2.checkpoint import FIXED_SETTINGS, SETTINGS, TABLE, tensor_shapes
from modelling.gpt2.decoder import GPT2DecoderBlockTP2D
from modelling.gpt2.embedding import GPT2EmbeddingTP2D
from modelling.lm_head import LMHeadTP2D

ARCHITECTURE = Architecture(
    embedding=GPT2EmbeddingTP2D,
    block=GPT2DecoderBlockTP2D,
    head=LMHeadTP2D,
    settings=SETTINGS,
    exact=(*EXACT, "sequence_length"),
    fixed_settings=FIXED_SETTINGS,
    table=TABLE,
    tensor_shapes=tensor_shapes,
    turned_linear=True,
)
