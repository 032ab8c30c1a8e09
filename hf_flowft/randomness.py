"""Random generators keyed by names and numbers, so that a draw is a pure function of what it is for."""

from __future__ import annotations

import hashlib

import torch


def keyed_seed(*key: int | str) -> int:
    """A 63-bit seed that depends on every part of the key and on nothing else (BLAKE2b of its text)."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def keyed_generator(*key: int | str) -> torch.Generator:
    """A CPU generator seeded by the key: the same key gives the same draws on every machine and rank.

    Training noise uses `keyed_generator(seed, purpose, step)` for the WHOLE effective batch, of which each process and
    each micro-step takes its rows: a resumed run, two processes and gradient accumulation then all see the same numbers.
    """
    return torch.Generator().manual_seed(keyed_seed(*key))
