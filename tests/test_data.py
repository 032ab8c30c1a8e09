"""Data sets: seeded disjoint splits, exact normalisation, and samples with the moments they are said to have."""

import math

import numpy as np
import pytest
import torch
from datasets import Array3D, Dataset, Features, List, Value
from sklearn.datasets import load_digits as sklearn_digits

from hf_flowft.data import DATA, DigitsConfig, FlowData, Normalisation, ToyConfig, from_tensors, load_digits, load_toy
from hf_flowft.data.splits import balanced_take, select_labels, split_dataset, split_rows
from hf_flowft.data.toy import FIVE_CENTRES, FIVE_STD, FIVE_WEIGHTS, sample_toy, shift_domain


def rows_of(data):
    """Every sample of every split as bytes: what two splits must not share."""
    return {name: {x.numpy().tobytes() for x in data.rows(name).x_1} for name in data.splits}


# Splits


@pytest.mark.parametrize(
    ("size", "validation", "test"), [(100, 0.2, 0.3), (7, 0.1, 0.1), (3, 0.0, 0.0), (11, 0.45, 0.45)]
)
def test_a_split_is_a_partition(size, validation, test):
    """Every row stands in exactly one part, and the parts have the sizes asked for."""
    parts = split_rows(size, validation, test, seed=0)
    assert sorted(row for rows in parts.values() for row in rows) == list(range(size))
    assert len(parts["validation"]) == round(size * validation)
    assert len(parts["test"]) == round(size * test)


def test_the_seed_decides_the_split():
    """Equal seeds, equal parts; another seed, others; the global generator has no say."""
    torch.manual_seed(1)
    first = split_rows(200, 0.2, 0.2, seed=3)
    torch.manual_seed(2)
    assert split_rows(200, 0.2, 0.2, seed=3) == first
    assert split_rows(200, 0.2, 0.2, seed=4) != first


def test_few_training_rows_are_taken_from_the_training_part():
    """A smaller training set leaves validation and test as they are."""
    data = Dataset.from_dict({"x": list(range(50))})
    whole, few = (split_dataset(data, 0.2, 0.2, 0, train_size=size) for size in (0, 5))
    assert few["train"]["x"][:] == whole["train"]["x"][:5]
    assert all(few[name]["x"][:] == whole[name]["x"][:] for name in ("validation", "test"))
    assert set(split_dataset(data, 0.2, 0.2, 0, prefix="base_")) == {"base_train", "base_validation", "base_test"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 0.6, 0.4, 0), "leave room for training, got 0.6 and 0.4"),
        ((10, -0.1, 0.4, 0), "got -0.1"),
        ((0, 0.1, 0.1, 0, "digits [7]"), r"digits \[7\] is empty"),
    ],
)
def test_impossible_splits_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        split_rows(*arguments)


def test_impossible_sizes_are_refused():
    data = Dataset.from_dict({"x": list(range(10))})
    with pytest.raises(ValueError, match="train_size is 9, but only 8"):
        split_dataset(data, 0.1, 0.1, 0, train_size=9)
    with pytest.raises(ValueError, match="at least 1, or 0 for all rows, got -1"):
        split_dataset(data, 0.1, 0.1, 0, train_size=-1)
    with pytest.raises(ValueError, match=r"name it with data.label_column"):
        select_labels(data, "", [1])


def test_few_shots_are_balanced():
    """As many of each label as there are, differing by one at most until a label runs out."""
    labels = [0] * 20 + [1] * 3 + [2] * 20
    data = Dataset.from_dict({"label": labels, "row": list(range(43))})
    few = balanced_take(data, "label", 10)
    assert np.bincount(few["label"][:]).tolist() in ([4, 3, 3], [3, 3, 4])
    assert few["row"][:] == sorted(few["row"][:])
    assert np.bincount(balanced_take(data, "label", 13)["label"][:]).tolist() == [5, 3, 5]


# Digits


def test_digits_are_the_digits():
    """The splits together are scikit-learn's 1,797 images, labels with their images, scaled to [-1, 1]."""
    data = load_digits(DigitsConfig())
    truth = sklearn_digits()
    known = {image.astype(np.float32).tobytes(): label for image, label in zip(truth.images, truth.target, strict=True)}
    seen = 0
    for name in data.splits:
        batch = data.rows(name)
        pixels = data.normalisation.undo(batch.x_1)
        assert batch.x_1.shape[1:] == data.event_shape == (1, 8, 8)
        assert batch.x_1.abs().max() <= 1
        assert [known[x.numpy().tobytes()] for x in pixels] == batch.condition["class_labels"].tolist()
        seen += len(batch)
    assert seen == sum(data.counts.values()) == 1797
    assert data.num_classes == 10


def test_digits_keep_the_domains_apart():
    """Base and target share no image and no label; held-out parts do not depend on the number of training images."""
    config = {"labels": [5, 6, 7], "base_labels": [0, 1]}
    many, few = load_digits(DigitsConfig(**config)), load_digits(DigitsConfig(**config, train_size=10))
    parts = rows_of(few)
    names = list(parts)
    assert len(names) == 6
    assert all(not parts[a] & parts[b] for i, a in enumerate(names) for b in names[i + 1 :])
    assert rows_of(many)["validation"] == parts["validation"]
    assert parts["train"] <= rows_of(many)["train"]
    assert set(few.rows("base_test").condition["class_labels"].tolist()) == {0, 1}
    assert sorted(np.bincount(few.rows("train").condition["class_labels"])[5:].tolist()) == [3, 3, 4]


def test_digits_without_their_labels():
    data = load_digits(DigitsConfig(conditional=False))
    assert data.rows("test", [0]).condition == {}
    assert data.num_classes == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": [3, 10]}, "0 to 9, got 10"),
        ({"base_labels": [-1]}, "got -1"),
        ({"base_labels": [0, 1]}, "0 is in data.labels and in data.base_labels"),
        ({"train_size": 5000}, "train_size is 5000, but the training split has"),
        ({"train_size": -3}, "at least 1, or 0 for all images, got -3"),
    ],
)
def test_wrong_digits_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        load_digits(DigitsConfig(**options))


# Toys


def test_five_gaussians_have_their_moments():
    """Mean and covariance of a mixture: sum w m, and sum w m m^T - mean mean^T + std^2 I."""
    x = sample_toy("five_gaussians", 200_000, torch.Generator().manual_seed(0))
    w, m = np.array(FIVE_WEIGHTS), np.array(FIVE_CENTRES)
    mean = w @ m
    covariance = (w[:, None] * m).T @ m - np.outer(mean, mean) + FIVE_STD**2 * np.eye(2)
    np.testing.assert_allclose(x.mean(dim=0).numpy(), mean, atol=0.02)
    np.testing.assert_allclose(np.cov(x.T.numpy()), covariance, atol=0.03)


def test_eight_gaussians_lie_on_a_ring():
    """Radius 2, eight equal directions, and a distance to the nearest centre of E r = std sqrt(pi / 2)."""
    x = sample_toy("eight_gaussians", 40_000, torch.Generator().manual_seed(0))
    angle = torch.arange(8) * math.pi / 4
    distance = torch.cdist(x, 2 * torch.stack([angle.cos(), angle.sin()], dim=1))
    nearest = distance.min(dim=1)
    assert nearest.values.mean() == pytest.approx(0.1 * math.sqrt(math.pi / 2), rel=0.02)
    np.testing.assert_allclose(torch.bincount(nearest.indices) / len(x), 1 / 8, atol=0.01)


def test_moons_are_two_half_circles():
    """Each point is near one of two half circles of radius 1.5 around (-0.75, -0.375) and (0.75, 0.375)."""
    x = sample_toy("moons", 5000, torch.Generator().manual_seed(0))
    upper = (x - torch.tensor([-0.75, -0.375])).norm(dim=1)
    lower = (x - torch.tensor([0.75, 0.375])).norm(dim=1)
    assert torch.minimum((upper - 1.5).abs(), (lower - 1.5).abs()).max() < 5 * 0.07


def test_a_shift_is_a_similarity():
    """A quarter turn takes (1, 0) to (0, 1), then scale and move."""
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    torch.testing.assert_close(
        shift_domain(x, 90, 3.0, 0.5), torch.tensor([[0.5, 3.0], [-5.5, 0.0]]), atol=1e-6, rtol=0
    )


def test_toy_splits_are_other_draws_of_the_same_seed():
    config = ToyConfig(train_size=50, eval_size=30, with_base=True, rotation=90)
    data = load_toy(config)
    parts = rows_of(data)
    assert data.counts == {n: 50 if n.endswith("train") else 30 for n in parts}
    assert len(set.union(*parts.values())) == sum(data.counts.values())  # no point twice
    assert rows_of(load_toy(config)) == parts
    assert parts["train"] != rows_of(load_toy(ToyConfig(train_size=50, eval_size=30, rotation=90, seed=1)))["train"]


@pytest.mark.parametrize("options", [{"train_size": 0}, {"eval_size": -1}])
def test_toys_have_at_least_one_sample(options):
    with pytest.raises(ValueError, match="must be at least 1"):
        load_toy(ToyConfig(**options))


def test_unknown_toys_are_refused(generator):
    with pytest.raises(ValueError, match=r"'rings'; choose five_gaussians, eight_gaussians or moons"):
        sample_toy("rings", 3, generator)


# Normalisation


def test_normalisation_is_exact_and_inverted(generator):
    """Fitted coordinates have mean 0 and std 1, a constant one is only centred, and undo is the inverse."""
    x = torch.randn(500, 3, generator=generator) * torch.tensor([2.0, 0.0, 1e-3]) + torch.tensor([1.0, 5.0, -3.0])
    fitted = Normalisation.fit(x)
    z = fitted.apply(x)
    np.testing.assert_allclose(z.mean(dim=0), 0, atol=1e-3)
    np.testing.assert_allclose(z.std(dim=0, correction=0), [1, 0, 1], atol=1e-4)
    torch.testing.assert_close(fitted.undo(z), x)
    assert fitted.std[1] == 1


def test_a_constant_coordinate_stays_where_it_is():
    """The rounding of float32 is no spread: a column of 0.1 is centred, and a later 0.11 is 0.01 from it; a tiny real spread is one."""
    x = torch.stack([torch.full((1000,), 0.1), 1e-9 * torch.arange(1000.0), torch.full((1000,), 1e6)], dim=1)
    fitted = Normalisation.fit(x)
    assert (fitted.std[0], fitted.std[2]) == (1, 1)
    assert fitted.std[1] == pytest.approx(1e-9 * math.sqrt((1000**2 - 1) / 12))
    torch.testing.assert_close(fitted.apply(torch.tensor([[0.11, 0.0, 1e6]]))[0, ::2], torch.tensor([0.01, 0.0]))


def test_the_volume_is_the_log_determinant():
    """log |dx/dz| = sum of log std over the coordinates, one number or one each."""
    assert Normalisation(3.0, 2.0).log_volume((2, 3)) == pytest.approx(6 * math.log(2))
    assert Normalisation([0.0, 0.0], [2.0, 0.5]).log_volume((2,)) == pytest.approx(0)
    assert Normalisation().log_volume((4,)) == 0


# FlowData


def test_rows_come_in_the_order_asked_for():
    x = torch.arange(12.0).reshape(6, 2)
    data = from_tensors("table", x, x[:2], x[2:4])
    assert torch.equal(data.rows("train", [4, 0, 4]).x_1, x[[4, 0, 4]])
    assert data.rows("train").x_1.dtype == torch.float32


@pytest.mark.parametrize(
    "make",
    [torch.Tensor.numpy, torch.Tensor.bfloat16, torch.Tensor.double, torch.Tensor.int, lambda x: x.requires_grad_()],
    ids=["array", "bfloat16", "float64", "whole", "graph"],
)
def test_numbers_in_memory_of_any_kind(make):
    """Arrays, tensors of other types and those that require gradients are the same data; other numbers are other data, which no run goes on with."""
    x = torch.arange(12.0).reshape(6, 2)
    data = from_tensors("table", make(x.clone()), x[:2], x[2:4])
    assert torch.equal(data.rows("train").x_1, x)
    assert data.identity == from_tensors("table", x, x[:2], x[2:4]).identity
    assert data.identity != from_tensors("table", x + 1, x[:2], x[2:4]).identity


def test_labels_and_conditions_in_memory():
    """They stand beside their samples, and are a part of what the data are; other numbers of them are refused."""
    x, labels = torch.arange(12.0).reshape(6, 2), torch.tensor([0, 2, 1, 0, 2, 2])
    three = (labels, labels[:2], labels[2:4])
    data = from_tensors("t", x, x[:2], x[2:4], labels=three, condition=(x, x[:2], x[2:4]))
    batch = data.rows("train", [4, 1])
    assert batch.condition["class_labels"].tolist() == [2, 2]
    assert torch.equal(batch.condition["condition"], batch.x_1)
    assert data.num_classes == 3
    assert data.identity != from_tensors("t", x, x[:2], x[2:4], labels=three).identity
    for labels, message in (
        (three[:2], "class_labels of 't' must be 3 tensors, for train, validation, test; got 2"),
        ((three[0], *three[:2]), r"as many labels and conditions as samples in each split, got .*\[6, 6, 2\]"),
        ((x, x[:2], x[2:4]), "must hold one whole number a row"),
    ):
        with pytest.raises(ValueError, match=message):
            from_tensors("t", x, x[:2], x[2:4], labels=labels).num_classes  # noqa: B018
    with pytest.raises(ValueError, match="split 'test' of 't' is complex: give real and imaginary part"):
        from_tensors("t", x, x, x.to(torch.complex64))


def test_numbers_in_memory_that_are_no_samples():
    """A number in the place of a sample, and what is not finite, by its row."""
    x = torch.ones(6, 2)
    with pytest.raises(
        ValueError, match=r"split 'test' of 'table' must have samples .* got shape \(6,\): numbers are \(n, 1\)"
    ):
        from_tensors("table", x, x, x[:, 0])
    bad = x.clone()
    bad[4, 1] = torch.nan
    with pytest.raises(
        ValueError, match=r"row 4 of the split 'validation' of 'table' holds NaN or infinite values \(1 such rows\)"
    ):
        from_tensors("table", x, bad, x)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": [[1.0]], "holdout": [[1.0]]}, "unknown split 'holdout'"),
        ({"train": []}, "split 'train' of 'table' is empty"),
        ({"test": [[1.0]]}, "no 'train' split"),
    ],
)
def test_wrong_splits_are_refused(splits, message):
    with pytest.raises(ValueError, match=message):
        FlowData("table", {name: Dataset.from_dict({"sample": rows}) for name, rows in splits.items()}, (1,))


def test_every_kind_of_data_has_a_loader():
    assert set(DATA) == {"toy", "digits", "images", "vectors", "robot", "captioned"}
    assert DATA["toy"][1](ToyConfig(train_size=2, eval_size=1)).counts["train"] == 2


def test_pictures_in_conditions_stay_bytes():
    """Labels become the whole numbers an embedding takes, pictures stay an eighth of that."""
    features = Features(
        {"sample": List(Value("float32"), length=2), "seen": Array3D((1, 4, 4), "uint8"), "label": Value("uint8")}
    )
    rows = {"sample": [[0.0, 1.0]] * 2, "seen": np.full((2, 1, 4, 4), 200, np.uint8), "label": [0, 1]}
    columns = {"image_top": "seen", "class_labels": "label"}
    data = FlowData("made", {"train": Dataset.from_dict(rows, features=features)}, (2,), condition_columns=columns)
    condition = data.rows("train").condition
    assert condition["image_top"].dtype == torch.uint8
    assert (condition["image_top"] == 200).all()
    assert condition["class_labels"].dtype == torch.int64


def test_samples_are_the_rows_without_their_conditions():
    """In the same units."""
    data = load_toy(ToyConfig(train_size=64, eval_size=32))
    assert torch.equal(data.samples("train", range(5)), data.rows("train", range(5)).x_1)
