"""Hub names: which paths are hub names, and the errors when the hub does not answer."""

import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from huggingface_hub import constants

from paretune.core.errors import DataError
from paretune.models import load
from paretune.models.load import load_model_config, load_pretrained, load_tokenizer
from paretune.models.save import silence_transformers


@pytest.fixture
def closed_endpoint() -> str:
    """An address where no server listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}"


@pytest.fixture
def offline_endpoint(closed_endpoint, monkeypatch):
    """The hub does not answer, and the libraries must not try to reach it."""
    monkeypatch.setattr(constants, "ENDPOINT", closed_endpoint)
    monkeypatch.setattr("transformers.utils.hub.hf_hub_download", refuse_network)
    return closed_endpoint


def refuse_network(*args, local_files_only=False, **kwargs):
    assert local_files_only
    from huggingface_hub.errors import LocalEntryNotFoundError

    raise LocalEntryNotFoundError("not cached")


@pytest.mark.parametrize("path", ["./models/x", "../x", "/models/x", "~/x", "models", "a/b/c", "-a/b"])
def test_paths_that_are_never_hub_names(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        load.is_local_folder(path)


def test_folders_are_loaded_without_network_access(tmp_path, monkeypatch):
    monkeypatch.setattr(load, "is_reachable", lambda endpoint: pytest.fail("hub accessed"))
    assert load.use_local_files_only(str(tmp_path))


def test_an_unreachable_hub_is_tried_once_and_named_in_the_error(
    offline_endpoint, monkeypatch, capfd, caplog
):
    requests = []
    is_reachable = load.is_reachable
    monkeypatch.setattr(
        load, "is_reachable", lambda endpoint: requests.append(endpoint) or is_reachable(endpoint)
    )
    for read in (load_model_config, load_tokenizer):
        with pytest.raises(DataError) as caught:
            read("modles/dialogue")
        (line,) = str(caught.value).split("\n")
        assert line.startswith(
            "modles/dialogue: no such folder, so it was taken as a hub name: cannot load the "
        )
        assert f"({offline_endpoint} does not answer, and it is not in the local cache); fix: " in line
    assert requests == [offline_endpoint, offline_endpoint]
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_offline_mode_does_not_access_the_hub(offline_endpoint, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(load, "is_reachable", lambda endpoint: pytest.fail("hub accessed"))
    with pytest.raises(DataError, match="HF_HUB_OFFLINE is set, and it is not in the local cache"):
        load_model_config("own/model")


def test_any_http_status_counts_as_reachable(closed_endpoint):
    class Refusing(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_error(404)

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert load.is_reachable(f"http://127.0.0.1:{server.server_port}")
        thread.join()
    assert not load.is_reachable(closed_endpoint)
    assert not load.is_reachable("no address")


def test_retry_messages_of_libraries_are_silenced(caplog):
    import logging

    with silence_transformers():
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s")
    assert not caplog.records
    logging.getLogger("huggingface_hub.utils._http").warning("heard")
    assert logging.getLogger("huggingface_hub").level != logging.ERROR


def test_loading_weights_from_an_unreachable_hub(offline_endpoint):
    import torch
    from transformers import AutoModelForCausalLM

    with pytest.raises(DataError, match="taken as a hub name: cannot load the model"):
        load_pretrained(AutoModelForCausalLM, "own/model", dtype=torch.float32)
