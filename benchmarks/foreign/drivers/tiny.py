"""What the drivers share: presets as YAML, a tokenizer without the network, greedy transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

VOCABULARY = 128
PROMPT = "w5 w17 w99 w40 w8"
TOKENS = 8
"""How many tokens are generated after the prompt."""
STD = 0.25
"""Of random weights: large enough for tokens to depend on those before them."""


def write_preset(folder: Path, model: dict[str, Any], execution: dict[str, Any]) -> Path:
    """A file with the preset `tiny`, in the form of the programs' own `inference.yml`."""
    file = folder / "tiny.yml"
    file.write_text(yaml.safe_dump({"release": {"tiny": {"model": model, "execution": execution}}}))
    return file


def make_tokenizer(*special: str) -> PreTrainedTokenizerFast:
    """Words w4, w5 ... with their number as token, after `special` and three others."""
    words = {f"w{number}": number for number in range(VOCABULARY)}
    for number, token in enumerate(("<pad>", "<unk>", "</s>", *special)):
        del words[f"w{number}"]
        words[token] = number
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens(list(special))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="</s>"
    )


@torch.no_grad()
def greedy(model: torch.nn.Module, prompt: list[int], stop: int) -> list[int]:
    """The tokens that transformers gives after `prompt`, each the likeliest, until `stop`."""
    tokens = list(prompt)
    for _ in range(TOKENS):
        logits = model(input_ids=torch.tensor([tokens])).logits
        token = int(logits[0, -1].argmax())
        if token == stop:
            break
        tokens.append(token)
    return tokens[len(prompt) :]
