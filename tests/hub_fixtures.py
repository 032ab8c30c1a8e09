"""No test reaches the real Hub: the environment that makes sure of it, and the fixtures that put a Hub in memory in its place.

Importing this module, which conftest.py does before anything imports `huggingface_hub`, points every Hub library of this
process and of the processes it starts at a port of this machine, with an empty home of their own, offline; and this process
looks up no other host. The fixture `hub` goes online and lets the loopback Hub answer there for the length of a test.
"""

import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from loopback_http import LoopbackServer
from loopback_hub import LoopbackHub

if "huggingface_hub" in sys.modules:
    raise RuntimeError("huggingface_hub was imported before tests/conftest.py, so it may reach the real Hub.")

SERVER = LoopbackServer()
HOME = tempfile.TemporaryDirectory(prefix="hf_flowft_tests_")
ENVIRONMENT = {
    "HF_HOME": HOME.name,
    "HF_ENDPOINT": SERVER.url,
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
}
OFFLINE_NAMES = {"HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "_is_offline_mode"}
"""What the libraries call their copies of `huggingface_hub.constants.HF_HUB_OFFLINE`."""

for _name in list(os.environ):
    if _name.startswith(("HF_HUB_", "HF_TOKEN", "HF_DATASETS_", "HF_MODULES_", "HUGGING", "TRANSFORMERS_")):
        del os.environ[_name]
os.environ.update(ENVIRONMENT)

_getaddrinfo = socket.getaddrinfo


def local_getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
    """The address of this machine; some libraries name the real Hub whatever the environment says."""
    if host not in (None, "", b"", "localhost", "127.0.0.1", "::1", "0.0.0.0", socket.gethostname()):
        raise socket.gaierror(socket.EAI_NONAME, f"tests do not look up hosts outside this machine, such as {host!r}")
    return _getaddrinfo(host, *arguments, **options)


socket.getaddrinfo = local_getaddrinfo


def set_offline(offline: bool) -> None:
    """Tell every loaded library whether it may use the network, and drop the connections made under the old answer."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    for module in [module for module in list(sys.modules.values()) if module is not None]:
        for name in OFFLINE_NAMES & vars(module).keys():
            if isinstance(vars(module)[name], bool):
                vars(module)[name] = offline
    assert constants.HF_HUB_OFFLINE is offline
    functions = vars(_http)
    functions["close_session" if "close_session" in functions else "reset_sessions"]()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    """An empty Hub for one test, an empty cache, and the token of "user" in the environment; failed calls are repeated at once."""
    import datasets.config
    from huggingface_hub import HfFileSystem, constants, file_download
    from huggingface_hub.utils import _http

    shutil.rmtree(constants.HF_HUB_CACHE, ignore_errors=True)
    HfFileSystem.clear_instance_cache()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets_cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    patient = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    monkeypatch.setattr(_http, "time", patient)
    monkeypatch.setattr(file_download, "time", patient)
    SERVER.serve()
    SERVER.hub = LoopbackHub(SERVER.url)
    try:
        set_offline(False)
        yield SERVER.hub
    finally:
        SERVER.hub = None
        set_offline(True)


@pytest.fixture
def offline(hub: LoopbackHub) -> Callable[[], AbstractContextManager[None]]:
    """`with offline():` - inside, this process is as if HF_HUB_OFFLINE=1 had been set from the beginning."""

    @contextmanager
    def without_network() -> Iterator[None]:
        set_offline(True)
        try:
            yield
        finally:
            set_offline(False)

    return without_network


@pytest.fixture
def hub_env(hub: LoopbackHub, tmp_path: Path) -> dict[str, str]:
    """The environment of a fresh process that uses this Hub: online, with a home (cache) of its own and the token of "user"."""
    return {**os.environ, "HF_HOME": str(tmp_path / "hf_home"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_good"}
