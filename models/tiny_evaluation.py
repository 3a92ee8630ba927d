"""What an exported bloom_tiny can do: perplexity on held-out text, and samples."""

import math
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from corpus import END
from torch.nn import functional
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

SAMPLE_TOKENS = 60
# Fixed, so that checkpoints can be compared: none is exchanged for one that goes better.
PROMPTS = (
    "Once upon a time there was",
    "The old king",
    "She looked at him and said",
    "In the beginning",
    "It was a dark night, and",
    "The little girl ran",
    "A dog is",
    "When the sun rose,",
    "My dear sister,",
    "He opened the door and",
)


def perplexity(folder: Path, text: Path) -> dict[str, float]:
    """Perplexity a token and bits a byte of `text`, in float32.

    Every document stands on its own, after an end-of-sequence token; one longer than the
    context is cut into pieces of that length, the first token of each without any context.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    documents = [d for d in text.read_text(encoding="utf-8").split(f"{END}\n") if d]
    nats, tokens = 0.0, 0
    for document in tqdm(documents, desc="evaluating", unit="document"):
        ids = torch.tensor([tokenizer.eos_token_id, *tokenizer(document + END)["input_ids"]])
        for piece in pieces(ids, model.config.seq_length):
            nats += summed_loss(model, piece)
            tokens += len(piece) - 1
    size = sum(len(document.encode()) for document in documents)
    bits_per_byte = nats / math.log(2) / size
    return {
        "documents": len(documents),
        "bytes": size,
        "tokens": tokens,
        "perplexity": round(math.exp(nats / tokens), 3),
        "bits_per_byte": round(bits_per_byte, 4),
    }


def pieces(ids: torch.Tensor, length: int) -> Iterator[torch.Tensor]:
    """Stretches of `length` tokens to read, with the one token after them to predict."""
    for start in range(0, len(ids) - 1, length):
        yield ids[start : start + length + 1]


@torch.no_grad()
def summed_loss(model: PreTrainedModel, ids: torch.Tensor) -> float:
    """Summed cross entropy of ids[1:], each given those before it, in nats."""
    logits = model(input_ids=ids[None, :-1]).logits[0]
    return functional.cross_entropy(logits, ids[1:], reduction="sum").item()


def samples(folder: Path) -> Iterator[tuple[str, str, str]]:
    """(prompt, how it was continued, text): greedily, then drawn at temperature 0.7, seed 0."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    drawn = {"do_sample": True, "temperature": 0.7, "top_k": 0}
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt")
        for manner, settings in (("greedy", {"do_sample": False}), ("temperature 0.7", drawn)):
            torch.manual_seed(0)
            out = model.generate(**ids, max_new_tokens=SAMPLE_TOKENS, **settings)
            yield prompt, manner, str(tokenizer.decode(out[0]))


def repeats(text: str) -> tuple[bool, bool]:
    """Whether a sentence occurs twice in `text`, and whether six words in a row do.

    The second finds loops inside a sentence that never ends. Case and punctuation do not count.
    """
    sentences = [words(sentence) for sentence in re.split(r"[.!?\n]", text)]
    sentences = [sentence for sentence in sentences if sentence]
    all_words = words(text)
    runs = [tuple(all_words[at : at + 6]) for at in range(len(all_words) - 5)]
    return len(set(sentences)) < len(sentences), len(set(runs)) < len(runs)


def words(text: str) -> tuple[str, ...]:
    """The words of `text` in lower case."""
    return tuple(re.findall(r"[a-z']+", text.lower()))
