"""Names that are no folder: what is taken as a hub name, and what is said when no hub answers."""

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
def closed() -> str:
    """An address where nobody answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def silent(closed, monkeypatch):
    """No hub answers, and the libraries are not to ask it again."""
    monkeypatch.setattr(constants, "ENDPOINT", closed)
    monkeypatch.setattr("transformers.utils.hub.hf_hub_download", refuse_network)
    return closed


def refuse_network(*names, local_files_only=False, **how):
    assert local_files_only
    from huggingface_hub.errors import LocalEntryNotFoundError

    raise LocalEntryNotFoundError("not cached")


@pytest.mark.parametrize("path", ["./models/x", "../x", "/models/x", "~/x", "models", "a/b/c", "-a/b"])
def test_what_is_never_a_hub_name(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        load.is_local_folder(path)


def test_a_folder_is_read_without_asking_a_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(load, "answers", lambda endpoint: pytest.fail("asked"))
    assert load.use_local_files_only(str(tmp_path))


def test_a_hub_that_does_not_answer_is_asked_once_and_named(silent, monkeypatch, capfd, caplog):
    asked = []
    answers = load.is_reachable
    monkeypatch.setattr(load, "answers", lambda endpoint: asked.append(endpoint) or answers(endpoint))
    for read in (load_model_config, load_tokenizer):
        with pytest.raises(DataError) as caught:
            read("modles/dialogue")
        (line,) = str(caught.value).split("\n")
        assert line.startswith("modles/dialogue: there is no such folder, so it was taken as a hub name: no ")
        assert line.endswith(
            f"({silent} does not answer, and the cache does not hold it); "
            "fix: put ./ in front of a folder, or name a model of the hub"
        )
    assert asked == [silent, silent]
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_offline_by_choice_asks_nobody(silent, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(load, "answers", lambda endpoint: pytest.fail("asked"))
    with pytest.raises(DataError, match="HF_HUB_OFFLINE is set, and the cache does not hold it"):
        load_model_config("own/model")


def test_any_answer_is_an_answer(closed):
    class Refusing(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_error(404)

        def log_message(self, *words):
            pass

    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert load.is_reachable(f"http://127.0.0.1:{server.server_port}")
        thread.join()
    assert not load.is_reachable(closed)
    assert not load.is_reachable("no address")


def test_libraries_that_try_again_are_not_heard(caplog):
    import logging

    with silence_transformers():
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s")
    assert not caplog.records
    logging.getLogger("huggingface_hub.utils._http").warning("heard")
    assert logging.getLogger("huggingface_hub").level != logging.ERROR


def test_weights_of_a_hub_that_does_not_answer(silent):
    import torch
    from transformers import AutoModelForCausalLM

    with pytest.raises(DataError, match="taken as a hub name: the model cannot be read"):
        load_pretrained(AutoModelForCausalLM, "own/model", dtype=torch.float32)
