"""From a checkpoint on disk to text, against transformers on the same checkpoint."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from bloom_checkpoints import config_of, logits_of, random_bloom
from commands import run_python
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BloomForCausalLM
from transformers import BloomConfig as TransformersConfig

from config import REPOSITORY, BloomConfig, load_config
from utils.checkpoints.checkpoint import CheckpointError, open_checkpoint
from utils.generation.loading import build, load, write_weights
from utils.generation.passes import Passes
from utils.setup import UserError

TINY = REPOSITORY / "models" / "bloom_tiny"


def run(*arguments: str, script: str = "run_inference.py") -> subprocess.CompletedProcess:
    return run_python(script, *arguments)


@pytest.mark.parametrize("tp", ["1", "4"])
def test_greedy_text_is_that_of_transformers_generate(tp):
    prompt, tokens = "A dog is", 200
    done = run(
        *("--prompt", prompt, "--num_tokens", str(tokens), "--temperature", "0", "--json"),
        *("--tensor_parallel_1", tp, "--tensor_parallel_2", tp),
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    encoded = tokenizer(prompt, return_tensors="pt")
    expected = model.generate(**encoded, max_new_tokens=tokens, do_sample=False)[0]
    new = expected[encoded.input_ids.shape[1] :].tolist()
    assert answer["ids"] == new
    assert answer["text"] == tokenizer.decode(new, skip_special_tokens=True)


def save(model, folder: Path, form: str) -> None:
    """A checkpoint in one of the forms that are in use; `bin` is what transformers 4 wrote."""
    shard = "20KB" if "sharded" in form else "1GB"
    model.save_pretrained(folder, max_shard_size=shard)
    if "bin" not in form:
        return
    for file in folder.glob("*.safetensors"):
        name = file.name.replace("model", "pytorch_model").replace(".safetensors", ".bin")
        torch.save(load_file(file), folder / name)
        file.unlink()
    index = folder / "model.safetensors.index.json"
    if index.exists():
        text = index.read_text().replace("model-", "pytorch_model-").replace(".safetensors", ".bin")
        (folder / "pytorch_model.bin.index.json").write_text(text)
        index.unlink()


def passes_from(folder: Path, config: BloomConfig) -> Passes:
    """What `load` does, without a tokenizer."""
    checkpoint = open_checkpoint(folder)
    checkpoint.check_against(config)
    model = dataclasses.replace(config.model, tie_word_embeddings=checkpoint.tied)
    config = dataclasses.replace(config, model=model)
    session = build(config)
    write_weights(config, session, checkpoint)
    session.__enter__()
    return Passes(config, session)


@pytest.mark.parametrize("form", ["safetensors", "sharded safetensors", "bin", "sharded bin"])
@pytest.mark.parametrize("tied", [True, False])
def test_checkpoints_of_every_form_give_the_models_logits(tmp_path, form, tied):
    model = random_bloom(heads=4, vocab_size=131, layers=2)
    if not tied:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    save(model, tmp_path, form)
    if "sharded" in form:
        assert len(list(tmp_path.glob("*model-*"))) > 2
    text = list(range(3, 20))
    for tp1, tp2 in [(1, 1), (2, 4)]:
        passes = passes_from(tmp_path, config_of(model, tp1, tp2))
        np.testing.assert_allclose(passes.prefill(0, text), logits_of(model, text)[-1], atol=1e-4)


def test_the_weights_of_one_replica_are_mapped_from_the_file_not_copied(tmp_path):
    model = random_bloom(heads=4, vocab_size=2000, layers=2)
    save(model, tmp_path, "safetensors")
    passes = passes_from(tmp_path, config_of(model, batch_size=1))
    passes.prefill(0, [1, 2, 3])
    ranges = [
        [int(end, 16) for end in line.split()[0].split("-")]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(str(tmp_path / "model.safetensors"))
    ]
    table = passes.session.state.embeddings.weight
    cell = passes.session._executor.variables.cells[table].tensor
    assert any(low <= cell.data_ptr() < high for low, high in ranges)


def test_a_checkpoint_of_another_model_is_refused_with_the_differences(tmp_path):
    model = random_bloom(heads=4, vocab_size=131)
    save(model, tmp_path, "safetensors")
    config = config_of(model)
    wrong = dataclasses.replace(config, model=dataclasses.replace(config.model, layers=3))
    with pytest.raises(CheckpointError, match="layers"):
        passes_from(tmp_path, wrong)


def test_a_checkpoint_without_a_tokenizer_is_refused(tmp_path):
    model = random_bloom(heads=4, vocab_size=131)
    save(model, tmp_path, "safetensors")
    config = config_of(model)
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, hf_model=str(tmp_path))
    )
    with pytest.raises(UserError, match="tokenizer"):
        load(config)


@pytest.mark.parametrize("preset", ["bloom_560M", "bloom_7B1", "bloom_176B_pod16"])
def test_dry_run_counts_the_parameters_of_the_presets(preset):
    done = run("--config", preset, "--dry_run", "--json", script="inference.py")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    settings = load_config(preset).model
    with torch.device("meta"):
        of = TransformersConfig(
            vocab_size=settings.vocab_size,
            hidden_size=settings.hidden_size,
            n_layer=settings.layers,
            n_head=settings.heads,
        )
        expected = sum(p.numel() for p in BloomForCausalLM(of).parameters())
    extra = settings.layers * settings.heads + 4  # ALiBi slopes, and where vocabulary shards begin
    assert expected <= plan["parameters_all_replicas"] <= expected + extra
    assert plan["peak_host_bytes"] < 1e9


@pytest.mark.parametrize("script", ["inference.py", "run_inference.py"])
def test_an_impossible_setting_is_one_line_and_status_2(script):
    done = run("--heads", "7", script=script)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "heads" in done.stderr
