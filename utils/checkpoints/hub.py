"""Where a checkpoint's folder is: on this machine, or fetched from the Hugging Face hub."""

from __future__ import annotations

import logging
from pathlib import Path

from utils.checkpoints.weight_files import CheckpointError
from utils.escaping import shown

logger = logging.getLogger(__name__)

ADAPTER = "adapter_config.json"
DESCRIPTION = ["config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json"]
SAFETENSORS = ["model*.safetensors", "model.safetensors.index.json"]
PICKLES = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]


def checkpoint_folder(hf_model: str | Path) -> Path:
    """The folder of a checkpoint or its `.gguf` file, or a download where `hf_model` is neither.

    The network is used only when there is no such folder, and not when HF_HUB_OFFLINE is set.
    `.bin` files are fetched only from models without safetensors. A bar on stderr shows progress.

    Raises:
        CheckpointError: when it is no folder and the hub does not provide it.
    """
    folder = Path(hf_model).expanduser()
    try:
        exists, is_folder = folder.exists(), folder.is_dir()
    except OSError as error:  # a name that no file can have
        raise CheckpointError(f"no folder {shown(str(hf_model))}: {error.strerror}") from None
    if is_folder and not (folder / "config.json").exists() and (folder / ADAPTER).exists():
        raise CheckpointError(
            f"{folder} is a LoRA adapter: give its base model with --hf_model, and --lora {folder}"
        )
    if is_folder or (exists and folder.suffix == ".gguf"):
        return folder
    if exists or not _is_model_id(str(hf_model)):
        raise CheckpointError(
            f"no folder {hf_model}: hf_model is a checkpoint's folder or a model id such as "
            "bigscience/bloom-560m"
        )
    folder = _download(str(hf_model), DESCRIPTION + SAFETENSORS)
    if not any(folder.glob("model*.safetensors")):
        logger.info("%s has no safetensors: fetching its .bin files", hf_model)
        folder = _download(str(hf_model), DESCRIPTION + PICKLES)
    return folder


def described_folder(hf_model: str) -> Path:
    """As `checkpoint_folder`; of a download only the files that describe the model are fetched.

    Raises:
        CheckpointError: as `checkpoint_folder` does.
    """
    path = Path(hf_model).expanduser()
    if path.exists() or not _is_model_id(hf_model):
        return checkpoint_folder(hf_model)
    return _download(hf_model, DESCRIPTION)


def _is_model_id(text: str) -> bool:
    return text.count("/") <= 1 and not text.startswith((".", "/", "~")) and "\\" not in text


def _download(model_id: str, files: list[str]) -> Path:
    from huggingface_hub import snapshot_download  # late: a folder needs no hub

    try:
        return Path(snapshot_download(model_id, allow_patterns=files))
    except Exception as error:  # the client's failures share no base class
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"{model_id} is no folder here and could not be fetched from the Hugging Face hub; "
            f"give a local folder with --hf_model ({reason})"
        ) from error
