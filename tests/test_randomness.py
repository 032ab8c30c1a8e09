"""Draws are functions of what they are for."""

import torch

from hf_flowft.randomness import keyed_generator, keyed_seed


def test_the_same_key_gives_the_same_draws():
    """A resumed run, or another process, sees the same numbers."""
    assert torch.equal(
        torch.randn(5, generator=keyed_generator(0, "noise", 7)),
        torch.randn(5, generator=keyed_generator(0, "noise", 7)),
    )


def test_every_part_of_the_key_counts():
    """Neighbouring seeds, purposes and steps give different draws, and parts do not run together."""
    keys = [(seed, purpose, step) for seed in range(10) for purpose in ("noise", "loss") for step in range(10)]
    keys += [(1, 23), (12, 3), (1, "23"), ("123",), (123,)]
    assert len({keyed_seed(*key) for key in keys}) == len(keys)
    assert all(0 <= keyed_seed(*key) < 2**63 for key in keys)


def test_the_global_generator_is_left_alone():
    """Neither reads nor moves torch's own state."""
    before = torch.random.get_rng_state()
    torch.randn(3, generator=keyed_generator("x"))
    assert torch.equal(torch.random.get_rng_state(), before)
