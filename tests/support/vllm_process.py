"""A server of the real vLLM in a process of its own."""

import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from paretune.rollout.vllm_engine import EXTENSION, EngineError
from paretune.rollout.vllm_server import VllmServer

START_SECONDS = 600
"""A start takes half a minute on idle cores, and ten times that on busy ones."""
MAX_LEN, MAX_LORA_RANK = 512, 16


@contextmanager
def vllm_server(model, log):
    """A server as docs/vllm.md starts it: its address and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)),
        *("--host", "127.0.0.1", "--port", str(port), "--served-model-name", "base", "--dtype", "float32"),
        *("--enforce-eager", "--no-enable-chunked-prefill", "--max-model-len", str(MAX_LEN)),
        *("--kv-cache-memory-bytes", "300000000", "--generation-config", "vllm"),
        *("--logprobs-mode", "processed_logprobs", "--worker-extension-cls", EXTENSION),
        *("--enable-lora", "--max-loras", "1", "--max-cpu-loras", "2"),
        *("--max-lora-rank", str(MAX_LORA_RANK)),
    ]
    switches = {
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "OMP_NUM_THREADS": "1",
    }
    with Path(log).open("wb") as output:
        process = subprocess.Popen(
            command, env=os.environ | switches, stdout=output, stderr=output, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(url, process, log)
        yield url, process
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def wait_for(url, process, log):
    """Wait until the server answers."""
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            return VllmServer(url, 5.0).facts()
        except EngineError:
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(Path(log).read_text(errors="replace")[-2000:]) from None
            time.sleep(0.5)
