"""What training bloom_tiny writes: checkpoints to go on from, and the checkpoint that ships."""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import BloomForCausalLM, GenerationConfig


@dataclass
class Progress:
    """How far training has come: steps, tokens predicted, seconds of stepping."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0


def save_checkpoint(
    run: Path,
    model: BloomForCausalLM,
    optimizers: list[torch.optim.Optimizer],
    progress: Progress,
) -> None:
    """Weights, optimiser state and progress in one folder, which is put in place when whole."""
    new, current, old = run / "checkpoint.new", run / "checkpoint", run / "checkpoint.old"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    save_file(dict(model.transformer.state_dict()), new / "model.safetensors")
    torch.save([optimizer.state_dict() for optimizer in optimizers], new / "optimizers.pt")
    (new / "progress.json").write_text(json.dumps(asdict(progress)), encoding="utf-8")
    shutil.rmtree(old, ignore_errors=True)
    if current.exists():
        current.rename(old)
    new.rename(current)


def load_checkpoint(
    run: Path, model: BloomForCausalLM, optimizers: list[torch.optim.Optimizer]
) -> Progress:
    """Puts the last whole checkpoint, if there is one, into model and optimisers."""
    folder = next((f for f in (run / "checkpoint", run / "checkpoint.old") if f.is_dir()), None)
    if folder is None:
        return Progress()
    model.transformer.load_state_dict(load_file(folder / "model.safetensors"))
    states = torch.load(folder / "optimizers.pt", weights_only=True)
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict(state)
    return Progress(**json.loads((folder / "progress.json").read_text(encoding="utf-8")))


def export(model: BloomForCausalLM, tokenizer: Path, folder: Path) -> None:
    """Writes the model, in bfloat16, and the files of the folder `tokenizer` into `folder`.

    Each file is replaced whole; others there, such as the model card, stay as they are.
    """
    temporary = folder.with_name(folder.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(tokenizer, temporary)
    config = model.config
    copy = BloomForCausalLM(config)
    copy.load_state_dict(model.state_dict())
    copy.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    )
    copy.bfloat16().save_pretrained(temporary)
    folder.mkdir(parents=True, exist_ok=True)
    for path in temporary.iterdir():
        path.chmod(0o644)
        path.replace(folder / path.name)
    temporary.rmdir()
