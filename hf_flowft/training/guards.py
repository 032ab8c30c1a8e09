"""What stands around a loop: a private random state for dropout, and signals that stop it cleanly."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def private_global_rng(seed: int) -> Iterator[None]:
    """Dropout draws from torch's global generator: seed it for the run, and give the caller's state back afterwards."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def rng_states(gather: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """The global generators of all processes: "cpu-0", "cuda-0", "cpu-1" ...; `gather` stacks a (1, n) tensor over the processes."""
    states = {"cpu": torch.get_rng_state()} | (
        {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
    )
    return {
        f"{name}-{rank}": row for name, state in states.items() for rank, row in enumerate(gather(state[None]).cpu())
    }


def restore_rng(states: dict[str, Tensor], rank: int) -> None:
    """Go on with the generators of this rank, where they were saved."""
    if f"cpu-{rank}" in states:
        torch.set_rng_state(states[f"cpu-{rank}"])
    if f"cuda-{rank}" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states[f"cuda-{rank}"])


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """SIGTERM and Ctrl-C set an event instead of killing the run; a second Ctrl-C interrupts as usual."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: object) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
