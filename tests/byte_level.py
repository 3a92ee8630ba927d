"""A small tokenizer of BLOOM's kind for tests, made of a few lines in several languages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

if TYPE_CHECKING:  # it takes seconds, also in ranks that need none of it
    from transformers import PreTrainedTokenizerFast

TEXTS = (
    "A dog is an animal. A dog is a friend, and a cat is a cat.",
    "Ein Hund ist ein Tier; die Straße ist größer. Où est le garçon ? À l'école.",
    "Собака — это животное. 犬は動物です。고양이 는 동물 이다. كلب هو حيوان",
)


def byte_level_tokenizer(vocab_size: int = 400) -> PreTrainedTokenizerFast:
    """A byte-level BPE as BLOOM's: rare characters are several tokens."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<unk>", "<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )
