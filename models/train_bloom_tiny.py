"""Trains bloom_tiny, the small checkpoint that ships, from scratch on a CPU.

It needs the text that models/corpus.py writes. It trains the tokenizer, then the model, and exports
both to models/bloom_tiny. Stopped and started again, it goes on from its last checkpoint. --compile
(which needs a C++ compiler) makes it three times as fast; setting MALLOC_MMAP_MAX_=0 and
MALLOC_TRIM_THRESHOLD_=34359738368 spares the memory of the logits from being given back and taken
again at every step, and OMP_WAIT_POLICY=passive keeps it going where other programs run.
"""

import argparse
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import MethodType

import numpy as np
import torch
from corpus import DATA, ROOT
from tiny_checkpoint import Progress, export, load_checkpoint, save_checkpoint
from tiny_evaluation import perplexity, repeats, samples
from tiny_tokenizer import SEQUENCE_LENGTH, VOCAB_SIZE, make_tokenizer, tokenised
from torch.nn import functional
from tqdm import tqdm
from transformers import BloomConfig, BloomForCausalLM
from transformers.models.bloom.modeling_bloom import BloomAttention, build_alibi_tensor

EXPORT = ROOT / "models" / "bloom_tiny"
WARM_UP, DECAY = 0.02, 0.35  # shares of the time budget
PRECISIONS = {"bfloat16": torch.bfloat16, "float32": torch.float32}
LONGEST_STEP = 60.0  # seconds that a step counts for at the most: pauses do not use the budget up
WEIGHT_DECAY = 0.01


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    if arguments.evaluate:
        print(json.dumps(perplexity(arguments.export, arguments.evaluate)))
    elif arguments.sample:
        for prompt, manner, text in samples(arguments.export):
            sentence, run = repeats(text)
            found = f"a sentence twice: {sentence}, six words twice: {run}"
            print(f"--- {prompt!r}, {manner} ({found})\n{text}\n")
    else:
        train(arguments)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=90, help="time to train for, in all")
    parser.add_argument("--batch_size", type=int, default=16, help="sequences of 512 tokens a step")
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--learning_rate", type=float, default=3e-3, help="AdamW's, at its peak")
    parser.add_argument("--muon_rate", type=float, default=0.02, help="Muon's, at its peak")
    parser.add_argument("--dropout", type=float, default=0.1, help="of what each part adds")
    parser.add_argument(
        "--precision",
        choices=("bfloat16", "float32"),
        default="bfloat16",
        help="of the arithmetic; float32 is the faster one on a CPU without AMX",
    )
    parser.add_argument("--compile", action="store_true", help="train through torch.compile")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    parser.add_argument("--checkpoint_minutes", type=float, default=5, help="between checkpoints")
    parser.add_argument("--data", type=Path, default=DATA, help="folder that holds corpus/")
    parser.add_argument(
        "--run", type=Path, default=ROOT / "runs" / "bloom_tiny", help="folder for checkpoints"
    )
    parser.add_argument("--export", type=Path, default=EXPORT, help="folder for the finished model")
    parser.add_argument("--evaluate", type=Path, metavar="TEXT", help="only measure perplexity")
    parser.add_argument("--sample", action="store_true", help="only print samples")
    return parser.parse_args()


def train(arguments: argparse.Namespace) -> None:
    """Trains until `--minutes` have gone, over all starts together, then exports."""
    corpus = arguments.data / "corpus" / "train.txt"
    if not corpus.exists():
        raise SystemExit(f"There is no {corpus}: run models/corpus.py first, or give its --data.")
    arguments.run.mkdir(parents=True, exist_ok=True)
    vocabulary = arguments.run / "tokenizer"
    tokenizer = make_tokenizer(corpus, vocabulary)
    tokens = tokenised(corpus, tokenizer, arguments.run / "train.u16")
    torch.manual_seed(0)
    model = BloomForCausalLM(model_config())
    use_fused_attention(model)
    set_dropout(model, arguments.dropout)
    optimizers = make_optimizers(model, arguments)
    progress = load_checkpoint(arguments.run, model, optimizers)
    saved = progress.seconds
    for _ in steps(model, optimizers, tokens, progress, arguments):
        if progress.seconds - saved > 60 * arguments.checkpoint_minutes:
            saved = progress.seconds
            save_checkpoint(arguments.run, model, optimizers, progress)
            export(model, vocabulary, arguments.export)
    save_checkpoint(arguments.run, model, optimizers, progress)
    export(model, vocabulary, arguments.export)
    shutil.copyfile(corpus.with_name("shipped.txt"), arguments.export / "heldout.txt")


def steps(
    model: BloomForCausalLM,
    optimizers: list[torch.optim.Optimizer],
    tokens: np.ndarray,
    progress: Progress,
    arguments: argparse.Namespace,
) -> Iterator[None]:
    """Takes one step after another, each yielded, until the time budget is spent."""
    loss_fn = torch.compile(loss_of) if arguments.compile else loss_of
    budget = arguments.minutes * 60
    with tqdm(total=round(budget), initial=round(progress.seconds), unit="s") as bar:
        while progress.seconds < budget:
            began = time.monotonic()
            set_rates(optimizers, progress.seconds / budget)
            batch = draw(tokens, *batch_shape(arguments, progress.seconds / budget), progress.step)
            loss = loss_fn(model, batch, PRECISIONS[arguments.precision])
            update(model, optimizers, loss)
            progress.step += 1
            progress.tokens += batch[:, 1:].numel()
            progress.seconds += min(time.monotonic() - began, LONGEST_STEP)
            bar.update(min(round(progress.seconds), bar.total) - bar.n)
            bar.set_postfix(step=progress.step, loss=f"{loss.item():.3f}", tokens=progress.tokens)
            yield


def model_config() -> BloomConfig:
    return BloomConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        n_layer=6,
        n_head=8,
        seq_length=SEQUENCE_LENGTH,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        unk_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    )


def use_fused_attention(model: BloomForCausalLM) -> None:
    """Has `model` attend through PyTorch's fused kernel, which keeps no [tokens, tokens] scores."""
    length, heads = SEQUENCE_LENGTH, model.config.n_head
    alibi = build_alibi_tensor(torch.ones(1, length), heads, torch.float32)
    alibi = alibi.view(1, heads, 1, length)
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    # [1, heads, queries, keys]
    bias = (alibi - alibi.transpose(2, 3)).masked_fill(future, -torch.inf)

    def forward(
        self: BloomAttention, hidden: torch.Tensor, residual: torch.Tensor, **_: object
    ) -> tuple[torch.Tensor, None]:
        query, key, value = self._reshape(self.query_key_value(hidden))
        tokens = query.shape[2]
        mixed = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=bias[..., :tokens, :tokens].to(query.dtype)
        )
        added = self.dense(mixed.transpose(1, 2).flatten(2))
        return residual + functional.dropout(added, self.hidden_dropout, self.training), None

    for layer in model.transformer.h:
        layer.self_attention.forward = MethodType(forward, layer.self_attention)


def set_dropout(model: BloomForCausalLM, share: float) -> None:
    """Has training drop this share of what attention and MLP add; the export knows none of it."""
    for layer in model.transformer.h:
        layer.self_attention.hidden_dropout = layer.mlp.hidden_dropout = share


def make_optimizers(
    model: BloomForCausalLM, arguments: argparse.Namespace
) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices and AdamW for the rest, or AdamW for everything."""
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        for_muon = arguments.optimizer == "muon" and ".h." in name and parameter.ndim == 2
        (matrices if for_muon else others).append(parameter)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            others, lr=arguments.learning_rate, betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY
        )
    ]
    if matrices:
        muon = torch.optim.Muon(matrices, lr=arguments.muon_rate, weight_decay=WEIGHT_DECAY)
        optimizers.append(muon)
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["peak"] = group["lr"]
    return optimizers


def set_rates(optimizers: list[torch.optim.Optimizer], done: float) -> None:
    """Warm-up, stable, decay to zero; `done` is the share of the time budget that has gone.

    Time and not steps drives it, so that a machine slowed by others still ends with the decay.
    """
    scale = min(1.0, max(done, 1e-4) / WARM_UP, max(1.0 - done, 0.0) / DECAY)
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = group["peak"] * scale


def batch_shape(arguments: argparse.Namespace, done: float) -> tuple[int, int]:
    """Sequences a step and their length: twice as many of half the length until the decay begins.

    Half the length is half the work of attention; ALiBi carries over to the whole one.
    """
    if done < 1.0 - DECAY:
        return 2 * arguments.batch_size, SEQUENCE_LENGTH // 2
    return arguments.batch_size, SEQUENCE_LENGTH


def draw(tokens: np.ndarray, batch_size: int, length: int, step: int) -> torch.Tensor:
    """The step's own random stretches of the corpus, [batch_size, length + 1]."""
    starts = np.random.default_rng(step).integers(0, len(tokens) - length - 1, batch_size)
    rows = [tokens[start : start + length + 1].astype(np.int64) for start in starts]
    return torch.from_numpy(np.stack(rows))


def loss_of(model: BloomForCausalLM, batch: torch.Tensor, precision: torch.dtype) -> torch.Tensor:
    """Mean cross entropy of each next token, in nats."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    return functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())


def update(
    model: BloomForCausalLM, optimizers: list[torch.optim.Optimizer], loss: torch.Tensor
) -> None:
    """One step of every optimiser along the clipped gradient."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


if __name__ == "__main__":
    main()
