"""Adapters come from a server in the form of the project's own checkpoints."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from safetensors.torch import load_file

from learning_backdoors.files.errors import UserError
from learning_backdoors.models.checkpoints import PROJECTIONS
from learning_backdoors.tinker_api import adapters
from learning_backdoors.tinker_api.adapters import download_adapter
from learning_backdoors.tinker_api.service import Service, open_service

MODEL = "tiny_world/model"


@pytest.fixture(scope="module")
def saved(tinker_service):
    """An open session, and the paths of one adapter: as an export, and as sampler weights."""
    with open_service(tinker_service.url) as service:
        client = service.client.create_lora_training_client(MODEL, rank=4, seed=1, train_unembed=False).result()
        requests = client.save_weights_external("a"), client.save_weights_for_sampler("a")
        yield service, *(request.result().path for request in requests)


@pytest.fixture
def folders(tmp_path):
    for name in ("export", "archive"):
        (tmp_path / name).mkdir()
    return tmp_path / "export", tmp_path / "archive"


def test_an_archive_of_sampler_weights_is_the_same_adapter(tinker_service, saved, folders):
    """SkyRL exports nothing, and its archive has no target_modules, from which PEFT would load q_proj and v_proj."""
    service, export, sampler = saved
    download_adapter(service, export, folders[0], MODEL, rank=4)
    with tinker_service.faults("archive"):
        download_adapter(service, sampler, folders[1], MODEL, rank=4)
    configs, matrices = (
        [load(folder / name) for folder in folders]
        for name, load in (
            ("adapter_config.json", lambda path: json.loads(path.read_text())),
            ("adapter_model.safetensors", load_file),
        )
    )
    assert configs[0] == configs[1] and set(configs[0]["target_modules"]) == set(PROJECTIONS)
    assert matrices[0].keys() == matrices[1].keys()
    assert all(matrices[0][name].equal(matrix) for name, matrix in matrices[1].items())


def test_a_server_without_exports_and_archives(saved, folders, capsys):
    adapters.note_once.cache_clear()
    for folder in folders:
        download_adapter(saved[0], saved[2], folder, MODEL, rank=4)
        assert list(folder.iterdir()) == []
    assert capsys.readouterr().out.count("remote.json only") == 1


def test_another_rank_is_refused(tinker_service, saved, folders):
    with tinker_service.faults("archive"), pytest.raises(UserError, match="rank 4"):
        download_adapter(saved[0], saved[2], folders[0], MODEL, rank=8)


def test_a_download_that_ends_early_is_one_line(folders, monkeypatch):
    class CutServer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"1000\r\nthe first of 4,096 bytes")
            self.close_connection = True

    monkeypatch.setenv("TINKER_API_KEY", "tml-test")
    monkeypatch.setattr(adapters.time, "sleep", lambda seconds: None)
    with HTTPServer(("127.0.0.1", 0), CutServer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        service = Service(None, None, f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(UserError, match="sampler_weights/a could not be downloaded"):
            download_adapter(service, "tinker://model/sampler_weights/a", folders[0], MODEL, rank=4)
        server.shutdown()
