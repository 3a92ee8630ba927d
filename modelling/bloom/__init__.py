"""BLOOM (arXiv 2211.05100): ALiBi, and a norm behind the embedding."""

from modelling.architecture import Architecture
from modelling.bloom.checkpoint import SETTINGS, TABLE, tensor_shapes
from modelling.bloom.decoder import BloomDecoderBlockTP2D
from modelling.bloom.embedding import BloomEmbeddingTP2D
from modelling.lm_head import LMHeadTP2D

ARCHITECTURE = Architecture(
    embedding=BloomEmbeddingTP2D,
    block=BloomDecoderBlockTP2D,
    head=LMHeadTP2D,
    settings=SETTINGS,
    table=TABLE,
    tensor_shapes=tensor_shapes,
)
