"""Banks of pairs: each builder keeps its promise, on a base whose flow is known."""

import math
from contextlib import nullcontext
from dataclasses import replace
from typing import get_args

import pytest
import torch
from closed_forms import GaussianFlow
from scipy.optimize import linear_sum_assignment
from torch import nn

from hf_flowft import FlowODEScheduler, FlowPipeline, VelocityMLP
from hf_flowft.batch import Batch
from hf_flowft.pairs import PairBuilder, PairsConfig, PairsName
from hf_flowft.velocity import FrozenVelocity, SharedVelocity

BANKS = ["fixed", "ot_output", "inverse", "best_of_k", "self"]
BASE = FrozenVelocity(GaussianFlow(1.0, 0.25))


class HalfTurn(nn.Module):
    """x' = pi J x: the flow takes every point of the plane to its opposite, so noise near a data point ends far from it."""

    def forward(self, x, t, class_labels=None):
        """The rotation at half a turn in unit time."""
        return math.pi * torch.stack([-x[:, 1], x[:, 0]], dim=1)


class Still(nn.Module):
    """x' = 0 under a condition vector: the flow leaves the noise where it is."""

    def forward(self, x, t, condition):
        """Zero."""
        return torch.zeros_like(x)


def build(name, data, generator, conditions=None, base=BASE, **options):
    """The builder and its bank."""
    builder = PairBuilder(PairsConfig(name, **options), base)
    return builder, builder.build(data, conditions or {}, generator)


@pytest.fixture
def data(generator) -> Batch:
    """Data of the base's own law, N(1 + label, 0.25), with two labels."""
    labels = torch.arange(60) % 2
    return Batch(1 + labels[:, None] + 0.5 * torch.randn(60, 2, generator=generator), {"class_labels": labels})


def cost_and_optimum(points, bank):
    """The cost of pairing `points` with the data row by row, and SciPy's optimum within labels."""
    labels, optimum = bank.condition["class_labels"], 0.0
    for label in labels.unique():
        x, y = points[labels == label], bank.x_1[labels == label]
        costs = (x[:, None] - y[None]).double().square().sum(dim=2).numpy()
        optimum += costs[linear_sum_assignment(costs)].sum()
    return (points - bank.x_1).double().square().sum().item(), optimum


@pytest.mark.parametrize("name", BANKS)
def test_a_bank_has_one_row_a_pair(name, data, generator):
    """x_0, x_1 and conditions have the same rows, finite, in the shape of the data."""
    _, bank = build(name, data, generator, data.condition, num_pairs=40)
    size = 40 if name == "self" else 60
    assert bank.x_0.shape == bank.x_1.shape == (size, 2)
    assert bank.condition["class_labels"].shape == (size,)
    assert bank.x_0.isfinite().all()
    assert not bank.x_0.requires_grad


@pytest.mark.parametrize("name", BANKS)
def test_the_same_generator_builds_the_same_bank(name, data):
    """A bank is a function of the base, the data and the generator."""
    first, second = (
        build(name, data, torch.Generator().manual_seed(3), data.condition, num_pairs=8)[1] for _ in range(2)
    )
    assert torch.equal(first.x_0, second.x_0)
    assert torch.equal(first.x_1, second.x_1)


@pytest.mark.parametrize("name", ["fixed", "inverse", "best_of_k", "ot_output"])
def test_repeats_pair_every_data_point_again(name, data, generator):
    """Three repeats give each data point three rows, with its own condition."""
    _, bank = build(name, data, generator, repeats=3, num_candidates=2)
    assert torch.equal(bank.x_1, data.x_1.repeat(3, 1))
    assert torch.equal(bank.condition["class_labels"], data.condition["class_labels"].repeat(3))


def test_fixed_pairs_are_optimal_within_labels(data, generator):
    """The noise bank is assigned to the data at SciPy's cost, and never across labels."""
    _, bank = build("fixed", data, generator)
    cost, optimum = cost_and_optimum(bank.x_0, bank)
    assert cost == pytest.approx(optimum)


def test_ot_output_pairs_are_optimal_in_the_bases_outputs(data, generator):
    """The base's outputs, not the noises, are assigned to the data at SciPy's cost."""
    builder, bank = build("ot_output", data, generator, base=FrozenVelocity(HalfTurn()))
    cost, optimum = cost_and_optimum(builder.outputs(bank.x_0, bank.condition, ""), bank)
    assert cost == pytest.approx(optimum)
    cost, optimum = cost_and_optimum(bank.x_0, bank)
    assert cost > 1.5 * optimum


def test_inverse_pairs_are_inverted_by_the_base(data, generator):
    """The noise is the exact (x_1 - m) / sqrt(C) of the base's flow map, and the base takes it back to the data point."""
    builder, bank = build("inverse", data, generator, num_steps=64)
    torch.testing.assert_close(builder.outputs(bank.x_0, bank.condition, ""), bank.x_1, rtol=0, atol=2e-3)
    expected = (bank.x_1 - 1 - bank.condition["class_labels"][:, None]) / 0.5
    torch.testing.assert_close(bank.x_0, expected, rtol=0, atol=2e-2)


def test_inverse_pairs_go_back_on_the_grid_of_the_base(data, generator):
    """On a shifted grid they are what the pipeline's own encoding finds."""
    pipeline = FlowPipeline(VelocityMLP([2], hidden_dim=8, num_classes=2), FlowODEScheduler(shift=3.0))
    torch.nn.init.normal_(pipeline.model.output.weight, generator=generator)
    builder = PairBuilder(PairsConfig("inverse", num_steps=4, solver="rk4"), FrozenVelocity(pipeline.model), 3.0)
    bank = builder.build(data, {}, generator)
    expected = pipeline.encode(data.x_1, data.condition["class_labels"], num_steps=4, solver="rk4")
    torch.testing.assert_close(bank.x_0, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["fixed", "ot_output"])
def test_pairs_that_would_be_independent_are_refused(name, generator):
    """An assignment within equal prompts, or pictures, that never repeat leaves the noise as it was drawn; twenty rows of each do not."""
    x_1 = torch.randn(40, 2, generator=generator)
    builder = PairBuilder(PairsConfig(name, repeats=4), FrozenVelocity(HalfTurn()))
    pictures = torch.arange(40 * 4).reshape(40, 1, 2, 2).to(torch.uint8)
    for alone in ({"class_labels": torch.arange(40)}, {"images.top": pictures, "class_labels": torch.zeros(40).long()}):
        with pytest.raises(ValueError, match=rf"pairs '{name}' .* only 1\.0 rows share theirs .* best_of_k or self"):
            builder.build(Batch(x_1, alone), {}, generator)
    shared = builder.build(Batch(x_1, {"class_labels": torch.arange(40) % 2}), {}, generator)
    assert len(shared) == 160


@pytest.mark.parametrize("name", ["fixed", "ot_output"])
@pytest.mark.parametrize("repeats", [1, 3])
def test_conditions_that_lie_far_apart_leave_no_choice(name, repeats, generator):
    """Thirty vectors of unit spread in two dimensions can be paired; a hundred times as far apart each noise stays where it was drawn."""
    x_1, condition = torch.randn(30, 2, generator=generator), torch.randn(30, 2, generator=generator)
    builder = PairBuilder(PairsConfig(name, repeats=repeats, num_steps=1), FrozenVelocity(Still()))
    assert len(builder.build(Batch(x_1, {"condition": condition}), {}, generator)) == 30 * repeats
    with pytest.raises(ValueError, match=r"100% of the noises stay where they were drawn: .* best_of_k or self"):
        builder.build(Batch(x_1, {"condition": 100 * condition}), {}, generator)


def test_a_bank_of_a_shared_base_does_not_know_what_is_trained_beside_it(data, tmp_path):
    """The same base inside of two networks whose own parts differ finds one bank; another base makes another."""

    class Beside(nn.Module):
        def __init__(self, base, own):
            super().__init__()
            self.base = nn.Parameter(torch.full((), base), requires_grad=False)
            self.own = nn.Parameter(torch.full((), own))

        def forward(self, x, t, class_labels=None):
            return -self.base * x

    for number, weights in enumerate(((1.0, 2.0), (1.0, 3.0), (2.0, 2.0))):
        base = SharedVelocity(Beside(*weights), nullcontext)
        builder = PairBuilder(PairsConfig("self", num_pairs=8, cache=str(tmp_path)), base)
        builder.build(data, data.condition, torch.Generator().manual_seed(0))
        assert len(list(tmp_path.iterdir())) == (1, 1, 2)[number]


def test_best_of_k_keeps_the_nearest_candidate(data, generator):
    """Each data point gets the one of its k noises whose output by the base is nearest."""
    builder, bank = build("best_of_k", data, torch.Generator().manual_seed(5), num_candidates=4)
    again = torch.Generator().manual_seed(5)
    candidates = torch.stack([torch.randn(60, 2, generator=again) for _ in range(4)])
    outputs = torch.stack([builder.outputs(x_0, data.condition, "") for x_0 in candidates])
    nearest = (outputs - data.x_1).norm(dim=2).argmin(dim=0)
    assert torch.equal(bank.x_0, candidates[nearest, torch.arange(60)])


def test_self_pairs_are_the_bases_own_outputs(data, generator):
    """x_1 is where the base takes x_0, bitwise, and every condition is used equally often."""
    builder, bank = build("self", data, generator, {"class_labels": torch.tensor([0, 1])}, num_pairs=50)
    assert torch.equal(builder.outputs(bank.x_0, bank.condition, ""), bank.x_1)
    assert bank.condition["class_labels"].bincount().tolist() == [25, 25]


def test_a_diverging_base_is_named(data, generator):
    """best_of_k does not invent noise for data points it found nothing for."""
    broken = FrozenVelocity(GaussianFlow(float("nan"), 1.0))
    with pytest.raises(ValueError, match="the base's solver diverges"):
        PairBuilder(PairsConfig("best_of_k", num_candidates=2), broken).build(data, {}, generator)


def test_independent_pairs_are_refused_with_the_reason():
    """The error says what happens and what to use; an experiment may insist."""
    with pytest.raises(ValueError, match=r"(?s)collapses to the mean.*ot_output.*best_of_k.*allow_independent: true"):
        PairsConfig("independent")
    assert not PairsConfig("independent", allow_independent=True).is_bank


def test_only_banks_are_built(data, generator):
    """`sorted` pairs are made in every batch."""
    assert [name for name in get_args(PairsName) if name != "independent" and PairsConfig(name).is_bank] == sorted(
        BANKS, key=BANK_ORDER
    )
    with pytest.raises(ValueError, match="'sorted' are made in every batch; banks are fixed"):
        build("sorted", data, generator)


@pytest.mark.parametrize("name", BANKS)
def test_a_kept_bank_is_found_by_the_same_run_alone(name, data, tmp_path):
    """The second bank is the first one to the bit, without the base; another base, seed, setting or data make another."""

    def made(base=BASE, seed=0, rows=data, meaning="", **options):
        config = PairsConfig(name, **{"num_pairs": 40, "num_steps": 2, "cache": str(tmp_path / "banks"), **options})
        builder = PairBuilder(config, base, meaning=meaning)
        return builder.build(rows, data.condition, torch.Generator().manual_seed(seed))

    def files():
        return sorted((tmp_path / "banks").iterdir())

    unasked = FrozenVelocity(GaussianFlow(1.0, 0.25))
    unasked.forward = None
    first, again = made(), made(base=unasked)
    direct = made(cache="")
    for bank in (again, direct):
        torch.testing.assert_close(
            (bank.x_0, bank.x_1, bank.condition), (first.x_0, first.x_1, first.condition), rtol=0, atol=0
        )
    assert len(files()) == 1
    other = FrozenVelocity(GaussianFlow(1.0, 0.25))
    other.model.idle += 1
    made(base=other)
    made(seed=1)
    made(num_steps=3)
    made(rows=replace(data, x_1=data.x_1 + 1))
    other.model.idle -= 1
    other.model.config = {"mean": 2.0}
    made(base=other)
    made(meaning="other prompts")
    assert len(files()) == 7


def test_a_broken_bank_is_named(data, tmp_path):
    """Cut short on the disk: said, with what to do."""
    builder = PairBuilder(PairsConfig("inverse", cache=str(tmp_path)), BASE)
    builder.build(data, {}, torch.Generator().manual_seed(0))
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=rf"{path.name} is broken .*: delete it"):
        builder.build(data, {}, torch.Generator().manual_seed(0))


BANK_ORDER = get_args(PairsName).index


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"name": "nearest"}, "PairsConfig.name must be one of fixed, .* got 'nearest'"),
        *(
            ({key: 0}, f"pairs.{key} must be at least 1, got 0")
            for key in ("num_steps", "num_candidates", "repeats", "num_pairs")
        ),
        ({"name": "sorted", "cache": "banks"}, "'sorted' are drawn in every batch, so there is nothing to keep"),
        ({"refresh_epochs": -1}, "refresh_epochs must be >= 0, got -1"),
    ],
    ids=str,
)
def test_bad_configurations_are_refused(change, named):
    """Unknown names and empty banks are named."""
    with pytest.raises(ValueError, match=named):
        replace(PairsConfig(), **change)
