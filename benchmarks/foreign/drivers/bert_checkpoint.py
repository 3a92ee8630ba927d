"""The public BERT program for questions on a tiny random checkpoint, against transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import popxl
import torch
from modelling.squad import BertSquadHead
from squad_inference import squad_inference_phased
from tiny import VOCABULARY, checkpoint
from transformers import BertConfig as Settings
from transformers import BertForQuestionAnswering
from utils.checkpoint import hf_mapping

from config import BertConfig

BATCH, LENGTH, HIDDEN, HEADS, LAYERS = 3, 16, 64, 4, 3


def test_same_logits(tmp_path: Path) -> None:
    torch.manual_seed(1)
    settings = Settings(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=4 * HIDDEN,
        max_position_embeddings=LENGTH,
    )
    model = checkpoint(BertForQuestionAnswering(settings), tmp_path)
    session = squad_inference_phased(_config())
    weights = hf_mapping(_config(), session, model.bert)
    weights.update(BertSquadHead.hf_mapping(_config(), session.state.squad, model.qa_outputs))
    session.write_variables_data(weights)
    words = torch.randint(0, VOCABULARY, (BATCH, LENGTH))
    types = torch.arange(LENGTH).ge(6).long().repeat(BATCH, 1)
    mask = torch.arange(LENGTH).lt(torch.tensor([[16], [9], [12]])).long()
    inputs = [
        words.numpy().astype(np.uint32).flatten(),
        types.numpy().astype(np.uint32).flatten(),
        ((mask.numpy() - 1) * 1000).astype(np.float32).flatten(),
    ]
    with session:
        outputs = session.run(dict(zip(session.inputs, inputs, strict=True)))[session.outputs[0]]
    with torch.no_grad():
        expected = model(words, attention_mask=mask, token_type_ids=types)
    logits = torch.stack([expected.start_logits, expected.end_logits], dim=-1).numpy()
    np.testing.assert_allclose(outputs, logits, atol=2e-5)


def _config() -> BertConfig:
    config = BertConfig()
    config.model.sequence_length = LENGTH
    config.model.hidden_size = HIDDEN
    config.model.attention.heads = HEADS
    config.model.layers = LAYERS
    config.model.embedding.vocab_size = VOCABULARY
    config.model.embedding.max_positional_length = LENGTH
    config.model.dtype = popxl.float32
    config.execution.micro_batch_size = BATCH
    return config
