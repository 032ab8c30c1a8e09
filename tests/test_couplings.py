"""Couplings: permutations, as cheap as the best, blind to the number of processes, and honest about conditions."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from hf_flowft import Run, load_config
from hf_flowft.couplings import (
    COUPLINGS,
    IndependentCoupling,
    OTCoupling,
    Shard,
    SinkhornCoupling,
    candidates,
    couple,
    exact_assignment,
    round_to_permutation,
)
from hf_flowft.objectives import FlowMatchingConfig, ObjectiveContext


def draw(n, dimension, generator):
    """Noise, and data of two clusters."""
    x_0 = torch.randn(n, dimension, generator=generator)
    return x_0, torch.randn(n, dimension, generator=generator) * 0.3 + 3 * torch.randint(
        0, 2, (n, 1), generator=generator
    )


def cost(x_0, x_1, permutation):
    """The transport cost of pairing x_0[permutation] with x_1."""
    return (x_0[permutation] - x_1).double().square().sum().item()


def optimum(x_0, x_1):
    """SciPy's optimal cost, on distances of our own making."""
    costs = (x_0[:, None] - x_1[None]).double().flatten(2).square().sum(dim=2).numpy()
    return costs[linear_sum_assignment(costs)].sum()


@pytest.mark.parametrize("name", COUPLINGS)
@pytest.mark.parametrize("n", [1, 7, 300])
def test_a_coupling_is_a_permutation(name, n, generator):
    """Every noise is used exactly once: no sample is dropped or repeated."""
    x_0, x_1 = draw(n, 2, generator)
    permutation = COUPLINGS[name]()(x_0, x_1)
    assert permutation.dtype == torch.int64
    assert torch.equal(permutation.sort().values, torch.arange(n))


@pytest.mark.parametrize("shape", [(1000, 2), (300, 20), (50, 2), (20, 1, 4, 4), (40,)], ids=str)
def test_ot_costs_what_scipy_says(shape, generator):
    """The exact coupling reaches SciPy's optimum on both of its routes, and never costs more than independent pairs."""
    x_0, x_1 = torch.randn(2, *shape, generator=generator)
    found = cost(x_0, x_1, OTCoupling()(x_0, x_1))
    if len(shape) > 1:
        assert found == pytest.approx(optimum(x_0, x_1), rel=1e-9)
    else:
        assert found == pytest.approx(cost(x_0.sort().values, x_1.sort().values, torch.arange(40)), rel=1e-6)
    assert found <= cost(x_0, x_1, IndependentCoupling()(x_0, x_1))


def test_ot_equals_brute_force(generator):
    """Among all 720 pairings of six points none is cheaper."""
    x_0, x_1 = draw(6, 2, generator)
    best = min(cost(x_0, x_1, torch.tensor(p)) for p in itertools.permutations(range(6)))
    assert cost(x_0, x_1, OTCoupling()(x_0, x_1)) == pytest.approx(best)


@pytest.mark.slow
def test_ot_is_exact_for_thousands_of_points(generator):
    """The gradient of a convex function transports optimally (Brenier), so 4096 points moved by a positive matrix find their images."""
    x_0 = torch.randn(4096, 2, generator=generator)
    shuffle = torch.randperm(4096, generator=generator)
    x_1 = (x_0 @ torch.tensor([[2.0, 0.5], [0.5, 1.0]]) + 3)[shuffle]
    assert torch.equal(OTCoupling()(x_0, x_1), shuffle)


def test_sinkhorn_is_nearly_exact(generator):
    """Rounded entropic transport costs at most 2 % more than exact transport."""
    x_0, x_1 = draw(256, 2, generator)
    assert cost(x_0, x_1, SinkhornCoupling()(x_0, x_1)) <= 1.02 * optimum(x_0, x_1)


def test_rounding_leaves_a_permutation_as_it_is():
    """A plan that is a permutation already is returned, and a flat plan becomes some permutation."""
    permutation = np.random.default_rng(0).permutation(50)
    plan = np.zeros((50, 50))
    plan[permutation, np.arange(50)] = 1 / 50
    assert np.array_equal(round_to_permutation(plan), permutation)
    assert np.array_equal(np.sort(round_to_permutation(np.full((50, 50), 1 / 2500))), np.arange(50))


@pytest.mark.parametrize("name", COUPLINGS)
def test_the_same_batch_is_paired_the_same_way(name, generator):
    """Couplings hold no randomness of their own."""
    x_0, x_1 = draw(64, 2, generator)
    assert torch.equal(COUPLINGS[name]()(x_0, x_1), COUPLINGS[name]()(x_0, x_1))


def mean_noise_of_label_one(coupling, generator):
    """The mean of the noise paired with data at +5, of labels 0 and 1 at -5 and +5; 0 in a model's use."""
    labels = torch.randint(0, 2, (512,), generator=generator)
    x_0 = torch.randn(512, 1, generator=generator)
    x_1 = (10 * labels - 5)[:, None] + 0.1 * torch.randn(512, 1, generator=generator)
    return couple(coupling, x_0, x_1, {"class_labels": labels})[labels == 1].mean().item()


@pytest.mark.parametrize("kind", [OTCoupling, SinkhornCoupling])
def test_with_labels_the_noise_stays_independent_of_them(kind, generator):
    """Plain OT gives label 1 the upper half of the noise, mean sqrt(2 / pi) = 0.8; within labels the mean stays 0 (+- 4 s.e.)."""
    assert mean_noise_of_label_one(kind(condition_mode="ignore"), generator) == pytest.approx(
        (2 / np.pi) ** 0.5, abs=0.1
    )
    assert abs(mean_noise_of_label_one(kind(), generator)) < 4 / 256**0.5


def test_noise_never_crosses_a_label(generator):
    """Row i of the noise carries label i, before and after, also with several labels and labels that are fractions."""
    x_0, x_1 = draw(120, 2, generator)
    first, second = torch.randint(0, 3, (120,), generator=generator), torch.randint(0, 2, (120, 1), generator=generator)
    permutation = OTCoupling()(x_0, x_1, {"first": first, "second": second})
    assert torch.equal(first[permutation], first)
    assert torch.equal(second[permutation], second)
    fractions = first / 3
    assert torch.equal(fractions[OTCoupling("labels")(x_0, x_1, {"c": fractions})], fractions)


@pytest.mark.parametrize("shape", [(60,), (60, 3)], ids=str)
def test_vector_conditions_enter_the_cost(shape, generator):
    """The permutation minimises ||x_0 - x_1||^2 + w ||c - c'||^2; a heavy weight leaves every noise at its own condition."""
    x_0, x_1 = draw(60, 2, generator)
    condition = torch.randn(shape, generator=generator)
    permutation = OTCoupling(condition_weight=2.0)(x_0, x_1, {"condition": condition})
    flat = condition.reshape(60, -1) * 2.0**0.5
    both_0, both_1 = torch.cat([x_0, flat], dim=1), torch.cat([x_1, flat], dim=1)
    assert cost(both_0, both_1, permutation) == pytest.approx(optimum(both_0, both_1), rel=1e-6)
    assert torch.equal(OTCoupling(condition_weight=1e6)(x_0, x_1, {"condition": condition}), torch.arange(60))


@pytest.mark.parametrize("coupling", [IndependentCoupling(), OTCoupling(), SinkhornCoupling()], ids=lambda c: c.name)
def test_two_processes_share_one_assignment(coupling, generator):
    """The rows of two ranks, put together, are the assignment of the whole batch."""
    x_0, x_1 = draw(64, 2, generator)
    labels = torch.randint(0, 2, (64,), generator=generator)
    together = couple(coupling, x_0, x_1, {"class_labels": labels})

    def rank(r):
        rows = slice(32 * r, 32 * r + 32)
        shard = Shard(r, 2, gather=lambda local: x_1 if torch.equal(local, x_1[rows]) else labels)
        return couple(coupling, x_0, x_1[rows], {"class_labels": labels[rows]}, shard)

    assert torch.equal(torch.cat([rank(0), rank(1)]), together)


def test_bad_batches_are_refused():
    """Sizes that differ, values that are not finite, unknown modes and useless regularisation are named."""
    x = torch.zeros(4, 2)
    with pytest.raises(ValueError, match=r"one shape, got \(4, 2\) and \(5, 2\)"):
        OTCoupling()(x, torch.zeros(5, 2))
    with pytest.raises(ValueError, match="NaN or infinite"):
        OTCoupling()(x, torch.full((4, 2), torch.nan))
    with pytest.raises(ValueError, match=r"shape \(2, 3\)"):
        exact_assignment(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="unknown condition_mode 'label'; choose one of auto"):
        OTCoupling("label")(x, x, {"c": torch.zeros(4)})
    with pytest.raises(ValueError, match="regularisation > 0"):
        SinkhornCoupling(regularisation=0.0)


def test_among_how_many_rows_an_assignment_chooses(generator):
    """Rows with equal whole numbers, in every column of them; in a batch as many as are met on average over all batches there can be."""
    labels, vector = torch.tensor([0, 0, 0, 1, 1, 2]), torch.randn(6, 2, generator=generator)
    pictures = torch.zeros(6, 3, 4, 4, dtype=torch.uint8)
    pictures[0] = 1
    assert candidates({}, 6) == candidates({"condition": vector}, 6) == 6
    assert candidates({"class_labels": labels, "condition": vector}, 6) == pytest.approx((9 + 4 + 1) / 6)
    assert candidates({"class_labels": labels, "images.top": pictures}, 6) == pytest.approx((1 + 4 + 4 + 1) / 6)
    met = [
        sum(int(labels[i] == labels[j]) for j in batch) for batch in itertools.combinations(range(6), 4) for i in batch
    ]
    assert candidates({"class_labels": labels}, 6, drawn=4) == pytest.approx(sum(met) / len(met))


@pytest.mark.parametrize("name", ["ot", "sinkhorn"])
def test_a_coupling_that_would_change_nothing_is_refused(name):
    """Where next to no row of a batch shares its labels, an objective asks for another coupling; an independent one it always gets."""
    context = ObjectiveContext((2,), 10, candidates=lambda: 1.25)
    with pytest.raises(
        ValueError, match=rf"the coupling '{name}' .* only 1\.2 rows share theirs .* would change nothing"
    ):
        FlowMatchingConfig(coupling=name).build(context)
    assert FlowMatchingConfig().build(context).coupling.name == "independent"
    assert FlowMatchingConfig(coupling=name).build(ObjectiveContext((2,), 10)).coupling.name == name


def test_a_run_counts_what_its_batches_can_choose_from(tmp_path):
    """Ten labels in a batch of 16 leave OT two or three rows to choose from; in a batch of 4 next to none."""
    words = {"data.name": "digits", "data.train_size": 100, "model.name": "mlp", "objective.name": "fm"}
    words |= {"objective.coupling": "ot", "output_dir": tmp_path / "run"}
    Run(load_config(None, [f"--{key}={value}" for key, value in {**words, "train.batch_size": 16}.items()]))
    with pytest.raises(ValueError, match=r"the coupling 'ot' .* only 1\.[0-4] rows .* larger train.batch_size"):
        Run(load_config(None, [f"--{key}={value}" for key, value in {**words, "train.batch_size": 4}.items()]))
