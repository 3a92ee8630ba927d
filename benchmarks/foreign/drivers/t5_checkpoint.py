"""The public T5 program on tiny random checkpoints, greedy, against transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from api import T5Pipeline
from tiny import PROMPTS, TOKENS, VOCABULARY, checkpoint, greedy, make_tokenizer, write_preset
from transformers import T5Config, T5ForConditionalGeneration

from utils.setup import t5_config_setup

HIDDEN, INNER, HEADS, LAYERS, HEAD, BUCKETS = 64, 256, 4, 2, 16, 32


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("shards", [2, 4])  # at 1 the program takes a batch for replicas
def test_same_text(tmp_path: Path, shards: int, batch: int) -> None:
    torch.manual_seed(3)
    settings = T5Config(
        vocab_size=VOCABULARY,
        d_model=HIDDEN,
        d_ff=INNER,
        d_kv=HEAD,
        num_layers=LAYERS,
        num_heads=HEADS,
        relative_attention_num_buckets=BUCKETS,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        initializer_factor=2.0,
        layer_norm_epsilon=1e-5,
    )
    model = checkpoint(T5ForConditionalGeneration(settings), tmp_path)
    preset = write_preset(
        tmp_path,
        {
            "layers": LAYERS,
            "hidden_size": HIDDEN,
            "d_ff": INNER,
            "eval": True,
            "eps": 1e-5,
            "attention": {
                "heads": HEADS,
                "d_kv": HEAD,
                "relative_attention_num_buckets": BUCKETS,
            },
        },
        {"tensor_parallel": shards, "micro_batch_size": batch},
    )
    config, *_ = t5_config_setup(preset, "release", "tiny", CLI_args=[], wandb_setup=False)
    tokenizer = make_tokenizer()
    pipeline = T5Pipeline(config, "tiny", model, tokenizer=tokenizer, print_live=False)
    prompts = PROMPTS[:batch]
    # the program counts the token that a decoder starts with
    texts = pipeline(prompts, output_length=TOKENS + 1)
    expected = []
    for prompt in prompts:
        encoded = tokenizer(prompt, padding="max_length", return_tensors="pt")
        inputs = {"input_ids": encoded.input_ids, "attention_mask": encoded.attention_mask}
        expected.append(greedy(model, [tokenizer.pad_token_id], **inputs))
    assert texts == [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in expected]
