"""What the drivers share: presets as YAML, a tokenizer without the network, greedy transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedModel, PreTrainedTokenizerFast

VOCABULARY = 128
PROMPTS = ["w5 w17 w99 w40 w8", "w30 w31 w64"]
LENGTH = 32
MODEL = {"precision": "float32", "sequence_length": LENGTH, "embedding": {"vocab_size": VOCABULARY}}
TOKENS = 8
"""How many tokens are generated after the prompt."""
END = 2
"""The token that ends a text."""
STD = 0.25
"""Of random weights: large enough for tokens to depend on those before them."""


def write_preset(folder: Path, model: dict[str, Any], execution: dict[str, Any]) -> Path:
    """A file with the preset `tiny` of a model in float32, in the form of the programs' own."""
    file = folder / "tiny.yml"
    file.write_text(
        yaml.safe_dump({"release": {"tiny": {"model": MODEL | model, "execution": execution}}})
    )
    return file


def make_tokenizer(*special: str) -> PreTrainedTokenizerFast:
    """Words w0, w1 ... are tokens of that number, but for `special` and three others in front."""
    words = {f"w{number}": number for number in range(VOCABULARY)}
    for number, token in enumerate(("<pad>", "<unk>", "</s>", *special)):
        del words[f"w{number}"]
        words[token] = number
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens(list(special))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="</s>",
        model_max_length=32,
    )


def checkpoint(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The model as it is read from files that it was written to."""
    model.save_pretrained(folder / "checkpoint")
    return type(model).from_pretrained(folder / "checkpoint").eval()


@torch.no_grad()
def greedy(model: PreTrainedModel, prompt: list[int], **inputs: torch.Tensor) -> list[int]:
    """The tokens that transformers gives after `prompt`, each the likeliest.

    For an encoder and decoder, `inputs` are the encoder's, and `prompt` is the decoder's.
    """
    name = "decoder_input_ids" if inputs else "input_ids"
    tokens = list(prompt)
    for _ in range(TOKENS):
        logits = model(**{name: torch.tensor([tokens])}, **inputs).logits
        tokens.append(int(logits[0, -1].argmax()))
    made = tokens[len(prompt) :]
    assert len(set(made)) > 2, "a checkpoint whose text says nothing"
    assert END not in made, "a checkpoint whose text ends at once"
    return made
