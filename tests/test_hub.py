"""Model ids: what is fetched from a hub, played here by a server on the loopback interface."""

import hashlib
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from commands import run_python
from transformers import BloomConfig as HfConfig
from transformers import BloomForCausalLM

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL = "someone/bloom-small"


class Hub(ThreadingHTTPServer):
    """The parts of the hub's interface that a download uses, over the files of one folder."""

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.folder = folder
        self.requested: list[str] = []  # names of files, paths of anything else

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def files(self) -> dict[str, bytes]:
        found = [path for path in self.folder.rglob("*") if path.is_file()]
        return {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in found}


class HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        path = self.path.partition("?")[0]
        name = path.removeprefix(f"/{MODEL}/resolve/{COMMIT}/")
        self.server.requested.append(name)
        files = self.server.files()
        if path == f"/api/models/{MODEL}/revision/main":
            self.send(json.dumps({"id": MODEL, "sha": COMMIT, "siblings": []}).encode())
        elif path.startswith(f"/api/models/{MODEL}/tree/"):
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": etag(data)}
                for name, data in files.items()
            ]
            self.send(json.dumps(entries).encode())
        elif name in files:
            self.send(files[name])
        else:
            self.send(b"{}", status=404)

    def send(self, body: bytes, status: int = 200):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{etag(body)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


def etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@pytest.fixture
def hub(tmp_path):
    (tmp_path / "hub").mkdir()
    server = Hub(tmp_path / "hub")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def model(hub):
    torch.manual_seed(7)
    model = BloomForCausalLM(HfConfig(vocab_size=64, hidden_size=16, n_layer=1, n_head=2))
    model.config.save_pretrained(hub.folder)
    (hub.folder / "README.md").write_text("a model card")
    (hub.folder / "onnx").mkdir()
    (hub.folder / "onnx" / "model.safetensors").write_bytes(b"another copy")
    return model


def open_from(endpoint: str, cache: Path, model_id: str = MODEL, **environment: str):
    """Open a model id in a process of its own; the sum of the head's weights is printed."""
    code = (
        "import sys\n"
        "of_hub = ('gradio', 'huggingface_hub', 'transformers')\n"  # looks at the environment once
        "for name in [name for name in sys.modules if name.startswith(of_hub)]:\n"
        "    del sys.modules[name]\n"
        "from utils.checkpoints.checkpoint import open_checkpoint\n"
        "from utils.setup import run_script\n"
        f"run_script(lambda: print(open_checkpoint({model_id!r}).lm_head().double().sum().item()))"
    )
    inherited = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1"}
    return run_python("-c", code, env=inherited | settings | environment)


def head_sum(model: BloomForCausalLM) -> float:
    return model.lm_head.weight.double().sum().item()


def test_a_model_id_is_fetched_once_with_only_the_files_used_and_opens_offline(
    hub, model, tmp_path
):
    model.save_pretrained(hub.folder)
    torch.save(model.state_dict(), hub.folder / "pytorch_model.bin")
    first = open_from(hub.address, tmp_path / "cache")
    assert first.returncode == 0, first.stderr
    assert float(first.stdout) == pytest.approx(head_sum(model))
    fetched = set(hub.requested)
    assert {"config.json", "model.safetensors"} <= fetched
    assert not fetched & {"pytorch_model.bin", "README.md", "onnx/model.safetensors"}
    hub.requested.clear()
    assert open_from(hub.address, tmp_path / "cache").stdout == first.stdout
    assert "model.safetensors" not in hub.requested
    offline = open_from(hub.address, tmp_path / "cache", HF_HUB_OFFLINE="1")
    assert (offline.returncode, offline.stdout) == (0, first.stdout)


def test_bin_files_are_fetched_when_there_is_no_safetensors_and_open_offline(hub, model, tmp_path):
    torch.save(model.state_dict(), hub.folder / "pytorch_model.bin")
    run = open_from(hub.address, tmp_path / "cache")
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) == pytest.approx(head_sum(model))
    offline = open_from(hub.address, tmp_path / "cache", HF_HUB_OFFLINE="1")
    assert (offline.returncode, offline.stdout) == (0, run.stdout)


def test_offline_mode_sends_no_request(hub, model, tmp_path):
    model.save_pretrained(hub.folder)
    run = open_from(hub.address, tmp_path / "cache", HF_HUB_OFFLINE="1")
    assert run.returncode == 2
    assert "give a local folder with --hf_model" in run.stderr
    assert hub.requested == []


@pytest.mark.parametrize("model_id", [MODEL, "models/not_there", "not a model id"])
def test_a_model_that_cannot_be_had_is_one_line(model_id, tmp_path):
    nobody_listens = "http://127.0.0.1:1"
    run = open_from(nobody_listens, tmp_path / "cache", model_id)
    assert run.returncode == 2
    assert run.stderr.startswith(f"error: {model_id} ")
    assert "give a local folder with --hf_model" in run.stderr
    assert run.stderr.count("\n") == 1


def test_a_model_that_the_hub_does_not_have_is_one_line(hub, tmp_path):
    run = open_from(hub.address, tmp_path / "cache", "someone/else")
    assert run.returncode == 2
    assert run.stderr.startswith("error: someone/else ")
    assert run.stderr.count("\n") == 1
