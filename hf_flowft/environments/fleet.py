"""Many episodes at once, in this process or in several: they are told what to do by slot and answer by slot."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol

import numpy as np

from .base import Environment, Observation
from .episode import Episode, Outcome, Settings
from .known import make_environment

Orders = Mapping[int, "int | np.ndarray"]
"""For each slot either the seed of an episode to begin, or a chunk of actions (action_horizon, action_dim) to execute."""


class Reply(NamedTuple):
    """What a slot answers: the next window for the policy, or the outcome of the episode that has ended."""

    window: Observation | None
    outcome: Outcome | None


class Fleet(Protocol):
    """Slots that run an episode each."""

    def carry_out(self, orders: Orders) -> dict[int, Reply]:
        """Carry out the orders, and answer for the same slots."""


class LocalFleet:
    """All slots in this process. Environments are made when a slot is first used, and used again for later episodes."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self._environments: list[Environment] = []
        self._episodes: dict[int, Episode] = {}

    def carry_out(self, orders: Orders) -> dict[int, Reply]:
        """As in `Fleet`.  Raises: what the environments raise."""
        return {slot: self._carry_out(slot, order) for slot, order in orders.items()}

    def close(self) -> None:
        """Close the environments."""
        for environment in self._environments:
            environment.close()

    def _carry_out(self, slot: int, order: int | np.ndarray) -> Reply:
        if slot not in self._episodes:
            self._environments.append(make_environment(self._settings.env_name))
            self._episodes[slot] = Episode(self._environments[-1], self._settings)
        episode = self._episodes[slot]
        if not isinstance(order, np.ndarray):
            return Reply(episode.start(order), None)
        ended = episode.advance(order)
        return Reply(None, episode.outcome()) if ended else Reply(episode.window(), None)


class ProcessFleet:
    """The slots dealt out to processes: slot s lives in process s modulo their number."""

    def __init__(self, settings: Settings, num_processes: int):
        context = worker_context()
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        for _ in range(num_processes):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, settings), daemon=True)
            process.start()
            there.close()
            self._pipes.append(here)
            self._processes.append(process)

    def carry_out(self, orders: Orders) -> dict[int, Reply]:
        """As in `Fleet`.  Raises: what the environments raise there; ValueError when a process has died."""
        asked = []
        for index, pipe in enumerate(self._pipes):
            share = {slot: order for slot, order in orders.items() if slot % len(self._pipes) == index}
            if share:
                self._send(index, pipe, share)
                asked.append(index)
        replies: dict[int, Reply] = {}
        for index in asked:
            replies |= self._receive(index)
        return {slot: replies[slot] for slot in orders}

    def close(self) -> None:
        """End the processes: those that wait end by themselves, those in the middle of a simulation are stopped."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(timeout=2)
            if process.is_alive():
                process.terminate()
                process.join()

    def _send(self, index: int, pipe: Connection, orders: Orders) -> None:
        try:
            pipe.send(orders)
        except (BrokenPipeError, ConnectionResetError):
            raise self._death(index) from None

    def _receive(self, index: int) -> dict[int, Reply]:
        try:
            answer = self._pipes[index].recv()
        except (EOFError, ConnectionResetError):
            raise self._death(index) from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _death(self, index: int) -> ValueError:
        self._processes[index].join(timeout=2)
        code = self._processes[index].exitcode
        return ValueError(
            f"a process of environments died (exit code {code}), perhaps for lack of memory: take fewer processes (num_processes, --processes) or "
            "fewer episodes at once (num_envs, --num-envs)."
        )


@contextmanager
def open_fleet(settings: Settings, num_processes: int) -> Iterator[Fleet]:
    """A fleet that is closed afterwards."""
    fleet = LocalFleet(settings) if num_processes == 1 else ProcessFleet(settings, num_processes)
    try:
        yield fleet
    finally:
        fleet.close()


def worker_context() -> Any:
    """How processes of environments are started: from a server that has loaded this package once, or anew where that does not exist."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _serve(pipe: Connection, settings: Settings) -> None:
    """The life of a process: carry out orders until the other end is closed."""
    fleet = LocalFleet(settings)
    while True:
        try:
            orders = pipe.recv()
        except EOFError:
            break
        try:
            pipe.send(fleet.carry_out(orders))
        except (ValueError, ImportError) as error:
            pipe.send(type(error)(str(error)))
        except Exception as error:  # of a simulator: whatever it is, it can be sent as text
            pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))
    fleet.close()
