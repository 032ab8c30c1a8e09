"""What a loader of foreign files must never do, made to fail: write, connect, import, start, unpickle, take hundreds of megabytes, hang."""

import os
import re
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FORBIDDEN = re.compile(
    r"import$|pickle\.find_class$|marshal\.load|ctypes\.dlopen$"
    r"|os\.(mkdir|rename|remove|rmdir|symlink|link|truncate|chmod|chown|utime|system|exec|fork|forkpty|posix_spawn|spawn)$"
    r"|shutil\.(?!which)|tempfile\.|subprocess\.|socket\.(connect|bind|sendto|getaddrinfo|gethostby\w+)$|urllib\.|http\."
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
MEGABYTES = 300
SECONDS = 30
MAX_MESSAGE = 1000


class TrapError(BaseException):
    """No `except Exception` swallows it."""


class _State:
    installed = False
    active = False
    writable: tuple[str, ...] = ()


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _State.active:
        return
    if event == "open":
        path, mode, flags = arguments
        writes = set(mode) & set("wax+") if isinstance(mode, str) else isinstance(flags, int) and flags & WRITING
        if writes and not os.path.abspath(os.fsdecode(path)).startswith((os.devnull, *_State.writable)):
            raise TrapError(f"writes to {path!r}")
    elif event == "compile":  # of a source that is imported; what is made up on the way has a name in brackets
        if isinstance(arguments[1], str) and not arguments[1].startswith("<"):
            raise TrapError(f"compiles {arguments[1]!r}")
    elif FORBIDDEN.match(event):
        places = [os.path.abspath(os.fsdecode(a)) for a in arguments if isinstance(a, str | bytes | os.PathLike)]
        if not (_State.writable and places and all(place.startswith(_State.writable) for place in places)):
            raise TrapError(f"{event} {arguments[0]!r:.100}")


def _on_alarm(*_: Any) -> None:
    raise TrapError(f"takes more than {SECONDS} s")


@contextmanager
def confined(*writable: Path) -> Iterator[None]:
    """Inside, each of these ends in TrapError or MemoryError.  Args: `writable`: folders in which files may be made."""
    if not _State.installed:  # a hook of the interpreter cannot be taken away again
        sys.addaudithook(_audit)
        _State.installed = True
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    previous = signal.signal(signal.SIGALRM, _on_alarm)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (MEGABYTES << 20), hard))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    _State.writable, _State.active = tuple(str(folder) for folder in writable), True
    try:
        yield
    finally:
        _State.active = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        signal.signal(signal.SIGALRM, previous)


def outcome(load: Callable[..., Any], *arguments: Any, writable: tuple[Path, ...] = (), **options: Any) -> Any:
    """What `load` gives, or the message of its ValueError: one line, of readable length, and not that memory was missing.

    Every other exception goes on, and so fails the test.
    """
    with confined(*writable):
        try:
            return load(*arguments, **options)
        except ValueError as error:
            message = str(error)
    assert message.strip(), "an empty message"
    assert len(message.splitlines()) == 1, message
    assert len(message) <= MAX_MESSAGE, message
    assert not re.search(r"allocat|out of memory|not enough memory", message), message
    return message
