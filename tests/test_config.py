"""Settings: presets against the published models, overriding by name, one-line errors."""

import dataclasses
import subprocess
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
import yaml
from commands import run_python
from transformers import BloomConfig as HfConfig
from transformers import BloomForCausalLM

from config import (
    REPOSITORY,
    BloomConfig,
    ConfigError,
    ExecutionConfig,
    ModelConfig,
    load_config,
    options,
    parse_arguments,
    presets,
    to_yaml,
)

SMALL = ModelConfig(
    hf_model="folder", layers=2, hidden_size=48, heads=12, vocab_size=101, sequence_length=8
)
# A value for each setting that is possible on its own, and is the default of none.
OTHER_VALUES = {
    "hf_model": "some/model",
    "layers": 3,
    "hidden_size": 512,
    "heads": 4,
    "vocab_size": 77,
    "sequence_length": 9,
    "model_type": "gpt2",
    "layer_norm_epsilon": 0.5,
    "tie_word_embeddings": False,
    "lora": ("an/adapter", "another=0.5"),
    "residual_after_norm": True,
    "precision": "bfloat16",
    "weight_precision": "int4",
    "group_size": 32,
    "tensor_parallel_1": 2,
    "tensor_parallel_2": 4,
    "batch_size": 5,
    "prompt_chunks": (3, 40),
    "lookup_tokens": 7,
    "score_tokens": 20,
    "max_batch_tokens": 640,
    "prefix_cache": 9,
    "memmap_dir": "elsewhere",
    "verify_memmap": True,
    "device": "cuda",
    "log_level": "debug",
    "io_tiles": 32,
    "available_memory_proportion": 0.25,
}


def settings_of(config: BloomConfig) -> dict:
    return dataclasses.asdict(config.model) | dataclasses.asdict(config.execution)


def run_config(*arguments: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    script = REPOSITORY / "config" / "config.py"
    return run_python(script, *arguments, run=subprocess.run, cwd=cwd)


def message_of(**changes) -> str:
    names = {field.name for field in dataclasses.fields(ModelConfig)}
    model = {name: value for name, value in changes.items() if name in names}
    execution = {name: value for name, value in changes.items() if name not in names}
    config = BloomConfig(dataclasses.replace(SMALL, **model), ExecutionConfig(**execution))
    with pytest.raises(ConfigError) as error:
        config.validate()
    assert "\n" not in str(error.value)
    return str(error.value)


# Millions of parameters, table 3 of arXiv 2211.05100.
@pytest.mark.parametrize(
    ("preset", "millions", "shards"),
    [
        ("bloom_560M", 559, (1, 1)),
        ("bloom_560M_pod16", 559, (4, 4)),
        ("bloom_1B1", 1_065, (1, 1)),
        ("bloom_1B7", 1_722, (1, 1)),
        ("bloom_3B", 3_003, (1, 1)),
        ("bloom_7B1", 7_069, (1, 1)),
        ("bloom_176B_pod16", 176_247, (4, 4)),
    ],
)
def test_preset_has_the_published_number_of_parameters(preset, millions, shards):
    config = load_config(preset)
    model = config.model
    hf_config = HfConfig(
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        n_layer=model.layers,
        n_head=model.heads,
    )
    with torch.device("meta"):
        hf_model = BloomForCausalLM(hf_config)
    assert round(hf_model.num_parameters() / 1e6) == millions
    assert (config.execution.tensor_parallel_1, config.execution.tensor_parallel_2) == shards


def test_every_preset_is_possible():
    names = list(yaml.safe_load(presets.PRESETS_FILE.read_text()))
    assert "bloom_tiny" in names
    for name in names:
        load_config(name).validate()


@pytest.mark.parametrize("size", ["560M", "1B1", "1B7", "3B", "7B1", "176B_pod16"])
def test_bloomz_is_bloom_with_other_weights(size):
    bloom, bloomz = (settings_of(load_config(f"{name}_{size}")) for name in ("bloom", "bloomz"))
    assert bloomz["hf_model"] == bloom["hf_model"].replace("bigscience/bloom", "bigscience/bloomz")
    assert bloomz | {"hf_model": bloom["hf_model"]} == bloom


def test_default_is_the_tiny_model():
    assert load_config() == load_config("bloom_tiny") == parse_arguments([])[0]


def test_sections_have_no_setting_name_in_common():
    model, execution = (
        {field.name for field in dataclasses.fields(kind)}
        for kind in (ModelConfig, ExecutionConfig)
    )
    assert not model & execution
    assert model | execution == set(OTHER_VALUES)


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_a_setting_is_overridden_by_its_own_name_and_nothing_else_changes(name):
    value = OTHER_VALUES[name]
    words = [str(v) for v in value] if isinstance(value, tuple) else [str(value)]
    expected = settings_of(load_config("bloom_tiny")) | {name: value}
    parsed, _ = parse_arguments(["--config", "bloom_tiny", f"--{name}", *words])
    assert settings_of(parsed) == expected
    assert settings_of(load_config("bloom_tiny", {name: value})) == expected


def test_capitals_of_a_presets_name_make_no_difference():
    assert load_config("Bloom_560m") == load_config("bloom_560M")


@pytest.mark.parametrize(
    "value", ["--well-known fact", "--- END-OF TEXT", "--well-known", "---", "--", "-", "-1", "a=b"]
)
def test_the_value_of_an_option_is_never_changed(value):
    @dataclasses.dataclass
    class Options:
        a_text: str = ""
        texts: list[str] = options.field(default_factory=list, help="texts", repeat=True)

    for words in (["--a-text", value, "--texts", value], [f"--a_text={value}", f"--texts={value}"]):
        _, found = parse_arguments([*words, "--batch-size", "2"], extra=Options)
        assert found == Options(value, [value])


def test_an_option_that_lacks_its_value_does_not_take_the_next_option_for_it():
    with pytest.raises(ConfigError, match="--memmap_dir: expected one argument"):
        parse_arguments(["--memmap-dir", "--layers", "2"])


def test_overrides_of_many_settings_work_together():
    line = (
        "--layers 2 --tensor_parallel_1 2 --vocab_size 128 --sequence_length 8 --hidden_size 64 "
        "--heads 4 --precision float32"
    )
    config, _ = parse_arguments(line.split())
    assert (config.model.layers, config.model.hidden_size, config.model.heads) == (2, 64, 4)
    assert config.model.head_dim == 16
    assert config.execution.replicas == 2


def test_command_line_takes_options_of_a_script_too():
    @dataclasses.dataclass
    class Options:
        prompt: str = ""
        num_tokens: int = 10

    config, options = parse_arguments(["--num_tokens", "3", "--layers", "2"], extra=Options)
    assert options == Options(num_tokens=3)
    assert config.model.layers == 2


def test_help_shows_every_setting_with_the_default_of_the_chosen_preset(capsys):
    with pytest.raises(SystemExit) as end:
        parse_arguments(["--config", "bloom_176B_pod16", "--help"], prog="script")
    text = " ".join(capsys.readouterr().out.split())
    assert end.value.code == 0
    for name, value in settings_of(load_config("bloom_176B_pod16")).items():
        _, found, after = text.partition(f"--{name} ")
        assert found
        shown = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        if value in (None, False, ()):  # is told by what the option does
            continue
        assert f"(default: {shown.replace('True', 'true')})" in after


@pytest.mark.parametrize("vocab_size, tp1, padded", [(101, 1, 101), (101, 4, 104), (104, 4, 104)])
def test_padded_vocabulary_is_the_next_multiple_of_its_shards(vocab_size, tp1, padded):
    model = dataclasses.replace(SMALL, vocab_size=vocab_size)
    config = BloomConfig(model, ExecutionConfig(tensor_parallel_1=tp1)).validate()
    assert config.padded_vocab_size == padded


@pytest.mark.parametrize(
    ("precision", "numpy_type"),
    [("float32", np.float32), ("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)],
)
def test_precision_names_the_popxl_type(precision, numpy_type):
    dtype = dataclasses.replace(SMALL, precision=precision).dtype
    assert dtype.as_numpy() == numpy_type


def test_settings_are_read_without_the_runtime():
    code = "import sys; sys.modules['popxl'] = None; import config; config.load_config()"
    run_python("-c", code, run=subprocess.run, check=True)


def test_printed_settings_load_again(tmp_path):
    printed = run_config("--config", "bloom_7B1", "--layers", "2", "--prompt_chunks", "8", "64")
    assert printed.returncode == 0, printed.stderr
    (tmp_path / "mine.yml").write_text(printed.stdout)
    overrides = {"layers": 2, "prompt_chunks": (8, 64)}
    assert load_config(file=tmp_path / "mine.yml") == load_config("bloom_7B1", overrides)
    again = run_config("--config_file", "mine.yml", cwd=tmp_path)
    assert again.stdout == printed.stdout


def test_printed_settings_keep_every_value():
    config = load_config("bloom_tiny", OTHER_VALUES)
    sections = yaml.safe_load(to_yaml(config))
    values = sections["model"] | sections["execution"]
    lists = {name: tuple(values[name]) for name in ("prompt_chunks", "lora")}
    assert values | lists == OTHER_VALUES


def test_shipped_checkpoint_is_found_from_any_folder(tmp_path, monkeypatch):
    (tmp_path / "models" / "bloom_tiny").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(presets, "REPOSITORY", tmp_path)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert Path(load_config().model.hf_model).samefile(tmp_path / "models" / "bloom_tiny")
    (tmp_path / "elsewhere" / "models" / "bloom_tiny").mkdir(parents=True)
    assert load_config().model.hf_model == "models/bloom_tiny"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--config", "bloom-560m"], ["'bloom-560m'", "(did you mean bloom_560M?)"]),
        (["--config", "bloom_9B"], ["bloom_9B", "bloom_tiny, bloom_560M,", "bloom_176B_pod16"]),
        (["--layer", "2"], ["unknown --layer (did you mean --layers?)"]),
        (["--layers", "two"], ["--layers", "two"]),
        (["--tensor_parallel_1", "3"], ["heads", "tensor_parallel_1 = 3", "8"]),
        (["--config_file", "nowhere.yml"], ["nowhere.yml"]),
    ],
)
def test_a_wrong_command_line_is_one_line_on_stderr_and_status_2(arguments, parts):
    run = run_config(*arguments)
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr.startswith("error: ")
    assert run.stderr.count("\n") == 1
    for part in parts:
        assert part in run.stderr


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"heads": 5}, ["hidden_size", "48", "multiple of heads = 5"]),
        ({"tensor_parallel_1": 8}, ["heads", "12", "multiple of tensor_parallel_1 = 8"]),
        ({"tensor_parallel_2": 5}, ["hidden_size", "48", "2 * tensor_parallel_2 = 10"]),
        ({"hidden_size": 51, "heads": 3}, ["hidden_size", "51", "2 * tensor_parallel_2 = 2"]),
        ({"precision": "fp16"}, ["precision", "fp16", "float32, float16, bfloat16"]),
        ({"device": "gpu"}, ["device", "gpu", "auto, cpu, cuda, ipu_model, ipu_hw"]),
        ({"log_level": "loud"}, ["log_level", "loud", "debug, info, warning, error"]),
        ({"layers": 0}, ["layers", "1 or more", "0"]),
        ({"hidden_size": -48}, ["hidden_size", "1 or more", "-48"]),
        ({"vocab_size": 0}, ["vocab_size", "1 or more"]),
        ({"sequence_length": 0}, ["sequence_length", "1 or more"]),
        ({"tensor_parallel_1": 0}, ["tensor_parallel_1", "1 or more"]),
        ({"tensor_parallel_2": -1}, ["tensor_parallel_2", "1 or more"]),
        ({"batch_size": 0}, ["batch_size", "1 or more"]),
        ({"layer_norm_epsilon": 0.0}, ["layer_norm_epsilon", "over 0"]),
        ({"layer_norm_epsilon": float("nan")}, ["layer_norm_epsilon", "finite"]),
        ({"prompt_chunks": ()}, ["prompt_chunks", "one or more"]),
        ({"prompt_chunks": (128, 16)}, ["prompt_chunks", "[128, 16]", "larger than the last"]),
        ({"prompt_chunks": (16, 16)}, ["prompt_chunks", "[16, 16]", "larger than the last"]),
        ({"prompt_chunks": (0, 16)}, ["prompt_chunks", "1 or more"]),
        ({"lookup_tokens": -1}, ["lookup_tokens", "0 (off) to 15", "-1"]),
        ({"lookup_tokens": 16}, ["lookup_tokens", "0 (off) to 15", "16"]),
        ({"max_batch_tokens": 0}, ["max_batch_tokens", "or more", "0"]),
        ({"prefix_cache": -1}, ["prefix_cache", "0 or more", "-1"]),
        ({"available_memory_proportion": 1.5}, ["available_memory_proportion", "at most 1"]),
        ({"layers": 2.0}, ["layers", "whole number", "2.0"]),
        ({"layers": True}, ["layers", "whole number", "True"]),
        ({"layer_norm_epsilon": "1e-5"}, ["layer_norm_epsilon", "number", "'1e-5'"]),
        ({"hf_model": ""}, ["hf_model", "text"]),
        ({"memmap_dir": 3}, ["memmap_dir", "text", "3"]),
    ],
)
def test_an_impossible_setting_is_refused_with_its_value_and_what_is_allowed(changes, parts):
    message = message_of(**changes)
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("mine: {model: {layer: 2}}", ["layer", "'mine'", "layers, hidden_size, heads"]),
        ("mine: {models: {layers: 2}}", ["models", "'mine'", "model, execution"]),
        ("mine: {model: {layers: 2}}", ["mine", "lacks", "hf_model, hidden_size"]),
        ("mine: {model: 3}", ["mine", "map", "int"]),
        ("mine: 3", ["mine", "map", "int"]),
        ("- mine", ["own.yml", "map", "list"]),
        ("mine: {model: [", ["own.yml", "not YAML"]),
        ("mine: !!python/object/apply:os.getcwd []", ["own.yml", "not YAML"]),
    ],
)
def test_a_wrong_presets_file_is_one_line_that_says_where(text, parts, tmp_path):
    file = tmp_path / "own.yml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config("mine", file=file)
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


def test_a_wrong_type_in_a_presets_file_is_refused(tmp_path):
    sections = yaml.safe_load(to_yaml(load_config()))
    sections["model"]["layers"] = "six"
    (tmp_path / "own.yml").write_text(yaml.safe_dump(sections))
    with pytest.raises(ConfigError, match="layers must be a whole number, not 'six'"):
        load_config(file=tmp_path / "own.yml")


def test_an_unknown_override_lists_the_settings():
    with pytest.raises(ConfigError, match=r"unknown layer .*known: hf_model, layers, .*device"):
        load_config("bloom_tiny", {"layer": 2})
