"""bloom_tiny's tokenizer, BLOOM's kind: a byte-level BPE with <unk>, <s>, </s> and <pad>."""

import json
from pathlib import Path

import numpy as np
from corpus import END
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase

SPECIAL_TOKENS = ["<unk>", "<s>", END, "<pad>"]
VOCAB_SIZE = 8192
SEQUENCE_LENGTH = 512
SETTINGS = {
    "bos_token": "<s>",
    "eos_token": END,
    "model_input_names": ["input_ids", "attention_mask"],
    "model_max_length": SEQUENCE_LENGTH,
    "pad_token": "<pad>",
    "padding_side": "left",
    "tokenizer_class": "PreTrainedTokenizerFast",
    "unk_token": "<unk>",
}
DOCUMENTS_AT_ONCE = 1000


def make_tokenizer(corpus: Path, folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in `folder`; where there is none yet, it is first trained on `corpus`."""
    if not (folder / "tokenizer_config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        trained_bpe(corpus).save(str(folder / "tokenizer.json"))
        settings = json.dumps(SETTINGS, indent=2) + "\n"
        (folder / "tokenizer_config.json").write_text(settings, encoding="utf-8")
    return AutoTokenizer.from_pretrained(folder)


def trained_bpe(corpus: Path) -> Tokenizer:
    """A byte-level BPE of `VOCAB_SIZE` entries; no byte is unknown to it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    with corpus.open(encoding="utf-8") as lines:
        tokenizer.train_from_iterator((line.replace(END, "") for line in lines), trainer)
    return tokenizer


def tokenised(corpus: Path, tokenizer: PreTrainedTokenizerBase, path: Path) -> np.ndarray:
    """The corpus as one row of token ids, uint16, memory-mapped from `path` [tokens].

    The file is written on the first call; each document in it ends with `END`.
    """
    if not path.exists():
        temporary = path.with_suffix(".partial")
        documents = corpus.read_text(encoding="utf-8").split(f"{END}\n")
        with temporary.open("wb") as out:
            for start in tqdm(
                range(0, len(documents), DOCUMENTS_AT_ONCE), desc="tokenising", unit="k documents"
            ):
                some = documents[start : start + DOCUMENTS_AT_ONCE]
                texts = [text + END for text in some if text]
                for ids in tokenizer(texts, verbose=False)["input_ids"] if texts else []:
                    out.write(np.asarray(ids, dtype=np.uint16).tobytes())
        temporary.replace(path)
    return np.memmap(path, dtype=np.uint16, mode="r")
