"""The traps themselves snap: what the tests of safety rely on."""

import os
import pickle
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from traps import MEGABYTES, TrapError, confined, outcome


@pytest.mark.parametrize(
    "bad",
    [
        lambda folder: (folder / "x").write_text(""),
        lambda folder: os.open(folder / "x", os.O_CREAT | os.O_WRONLY),
        lambda folder: (folder / "x").mkdir(),
        lambda folder: shutil.copytree(folder, folder.with_name("y")),
        lambda folder: __import__("this"),
        lambda folder: socket.create_connection(("127.0.0.1", 9)),
        lambda folder: subprocess.run(["true"], check=True),
        lambda folder: os.system("true"),
        lambda folder: pickle.loads(pickle.dumps(Path("x"))),
    ],
    ids=["write", "create", "folder", "copy", "import", "connect", "start", "shell", "unpickle"],
)
def test_the_traps_snap(tmp_path, bad):
    """Each thing that must not happen is noticed, however it is wrapped, and may happen again outside."""

    def swallow():
        try:
            bad(tmp_path)
        except Exception:
            return "swallowed"

    with pytest.raises(TrapError):
        outcome(swallow)
    assert "this" not in sys.modules
    (tmp_path / "x").mkdir()


def test_memory_is_a_trap(tmp_path):
    """What asks for more than the allowance is refused it, and a message that blames memory is no good refusal."""
    with pytest.raises(MemoryError):
        outcome(bytearray, (MEGABYTES + 100) << 20)
    with pytest.raises((AssertionError, RuntimeError), match="allocate"):
        outcome(torch.empty, (MEGABYTES + 100) << 20, dtype=torch.uint8)
    with confined(tmp_path):
        (tmp_path / "allowed").write_text("")
