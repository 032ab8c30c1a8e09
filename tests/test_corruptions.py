"""Corruptions: the stated laws, noise that depends on seed, episode, step and sensor alone, and clear errors."""

import numpy as np
import pytest
import torch

from hf_flowft.environments import Corruption, EpisodeCorruption, augment, augment_images, parse_corruptions

UNITS = {"state": {"mean": [10.0, -5.0], "std": [2.0, 0.5]}}
STATE = np.array([12.0, -5.5], dtype=np.float32)


def seen(text, readings, episode=0, seed=0, units=UNITS):
    """What comes of a sequence of readings of the one sensor "state"."""
    corruption = EpisodeCorruption(parse_corruptions(text), units, episode=episode, seed=seed)
    return np.array([corruption.observe({"state": reading}, step)["state"] for step, reading in enumerate(readings)])


def test_parsing():
    """Kinds with levels, in order."""
    assert parse_corruptions("gaussian:0.02+delay:2") == (Corruption("gaussian", 0.02), Corruption("delay", 2.0))
    assert parse_corruptions("none") == parse_corruptions("") == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gausian:0.1", "did you mean 'gaussian'"),
        ("gaussian", "has no level: write gaussian:0.02"),
        ("delay:1.5", "whole number"),
        ("delay", "write delay:2"),
        ("drop:1.5", "probability"),
        ("gaussian:-1", "standard deviation"),
        ("gaussian:nan", "standard deviation"),
        ("freeze:0.1,drop:0.1", "no level"),
    ],
)
def test_what_is_not_understood(text, words):
    """The error names the part and what is accepted."""
    with pytest.raises(ValueError, match=words):
        parse_corruptions(text)


def test_gaussian_has_the_stated_spread_in_normalised_units():
    """The noise has mean 0 and level times the std of each coordinate; the bounds are six standard errors wide."""
    noise = seen("gaussian:0.1", [STATE] * 2000) - STATE
    spread = 0.1 * np.array(UNITS["state"]["std"])
    assert (np.abs(noise.mean(axis=0)) < 6 * spread / 2000**0.5).all()
    assert noise.std(axis=0) == pytest.approx(spread, rel=0.1)


def test_salt_and_pepper_moves_entries_to_the_ends():
    """Each entry becomes mean - std or mean + std, with the stated probability, each half of the time."""
    values = (seen("salt_pepper:0.3", [STATE] * 3000) - [10.0, -5.0]) / [2.0, 0.5]
    for share in ((values[:, 0] == -1).mean(), (values[:, 1] == 1).mean()):
        assert share == pytest.approx(0.15, abs=6 * (0.15 * 0.85 / 3000) ** 0.5)
    assert set(np.unique(values)) == {-1.0, 1.0}  # the clean reading is (1, -1)


def test_dropped_sensors_read_the_mean():
    """All entries at once, with the stated probability."""
    dropped = (seen("drop:0.25", [STATE] * 2000) == [10.0, -5.0]).all(axis=1)
    assert dropped.mean() == pytest.approx(0.25, abs=0.06)
    assert seen("drop:1", [STATE] * 3).tolist() == [[10.0, -5.0]] * 3


def test_frozen_sensors_repeat_themselves():
    """With probability 1 the first reading stays for ever; else each is new or the one before."""
    readings = [STATE + step for step in range(200)]
    assert (seen("freeze:1", readings) == STATE).all()
    times = seen("freeze:0.5", readings)[:, 0] - STATE[0]
    new = times == np.arange(200)
    assert (np.diff(times)[~new[1:]] == 0).all()
    assert new.mean() == pytest.approx(0.5, abs=0.2)


def test_delayed_actions():
    """Two steps late, and held before."""
    corruption = EpisodeCorruption(parse_corruptions("delay:2"), None, episode=0)
    executed = [corruption.act(np.array([float(step)]), np.array([-1.0])).item() for step in range(5)]
    assert executed == [-1, -1, 0, 1, 2]


def test_corruptions_apply_from_left_to_right():
    """Dropped after noise there is no noise; noise after dropping there is."""
    assert (seen("gaussian:1+drop:1", [STATE]) == [10.0, -5.0]).all()
    assert (seen("drop:1+gaussian:1", [STATE]) != [10.0, -5.0]).all()


def test_noise_is_keyed():
    """Equal for equal seed, episode and step, whatever was asked for before; else different; and different for each sensor."""
    assert np.array_equal(seen("gaussian:1", [STATE] * 4), seen("gaussian:1", [STATE] * 4))
    late = EpisodeCorruption(parse_corruptions("gaussian:1"), UNITS, episode=0).observe({"state": STATE}, 3)["state"]
    assert np.array_equal(late, seen("gaussian:1", [STATE] * 4)[3])
    drawn = [seen("gaussian:1", [STATE], episode, seed)[0, 0] for episode in range(2) for seed in range(2)]
    assert len(set(drawn)) == 4
    both = EpisodeCorruption(parse_corruptions("gaussian:1"), {**UNITS, "other": UNITS["state"]}, episode=0)
    noisy = both.observe({"state": STATE, "other": STATE}, 0)
    assert (noisy["state"] != noisy["other"]).all()


def test_images():
    """Noise is rounded into 0..255, pixels go to black or white as a whole, a dropped camera is black."""
    image = np.full((40, 50, 3), 128, dtype=np.uint8)

    def look(text):
        return EpisodeCorruption(parse_corruptions(text), {}, episode=1).observe({"image": image}, 0)["image"]

    noisy = look("gaussian:0.1")
    assert noisy.dtype == np.uint8
    assert noisy.std() == pytest.approx(12.75, rel=0.1)
    speckled = look("salt_pepper:0.2")
    changed = (speckled != 128).any(axis=-1)
    assert set(map(tuple, speckled[changed])) == {(0, 0, 0), (255, 255, 255)}
    assert changed.mean() == pytest.approx(0.2, abs=0.06)
    assert (look("drop:1") == 0).all()


def test_normalisation_is_needed_and_checked():
    """Without units, or with those of another sensor size, there is an error; a sensor without units is not passed on clean."""
    with pytest.raises(ValueError, match="normalised units"):
        EpisodeCorruption(parse_corruptions("gaussian:0.1"), None, episode=0)
    with pytest.raises(ValueError, match="state has the shape"):
        seen("gaussian:0.1", [np.zeros(3, np.float32)])
    noisy = EpisodeCorruption(parse_corruptions("gaussian:0.1"), UNITS, episode=0)
    assert set(noisy.observe({"state": STATE, "unused": STATE}, 0)) == {"state"}
    frozen = EpisodeCorruption(parse_corruptions("freeze:0.1"), None, episode=0)
    assert set(frozen.observe({"state": STATE, "unused": STATE}, 0)) == {"state", "unused"}


def augmented(text, condition, seed=0):
    """`condition` of two observations of two sensors, of 2 and 3 entries."""
    generator = torch.Generator().manual_seed(seed)
    return augment(condition, parse_corruptions(text), generator, observation_horizon=2, sensor_sizes=[2, 3])


def test_augmentation_follows_the_same_laws():
    """On normalised training windows: the stated spread, ends, zeros of whole sensors, and the older reading in place of the newer."""
    condition = torch.full((4000, 10), 0.5)
    assert (augmented("gaussian:0.2", condition) - 0.5).std().item() == pytest.approx(0.2, rel=0.05)
    hit = augmented("salt_pepper:0.1", condition)
    assert set(hit.unique().tolist()) == {-1.0, 0.5, 1.0}
    assert (hit != 0.5).float().mean().item() == pytest.approx(0.1, abs=0.02)
    sensors = (augmented("drop:0.3", condition) == 0).reshape(4000, 2, 5)
    assert (sensors[..., 0] == sensors[..., 1]).all()
    assert (sensors[..., 2] == sensors[..., 4]).all()
    assert (sensors[..., 0] != sensors[..., 2]).any()
    assert sensors.float().mean().item() == pytest.approx(0.3, abs=0.03)
    ordered = torch.arange(10.0).repeat(3, 1)
    assert torch.equal(augmented("freeze:1", ordered), torch.arange(5.0).repeat(3, 2))
    assert torch.equal(augmented("", condition), condition)


def test_pictures_are_augmented_like_those_of_a_rollout():
    """Spread in half ranges, pixels of all channels together, pictures as a whole; grey levels stay grey levels."""
    images = torch.full((400, 2, 3, 8, 8), 100, dtype=torch.uint8)
    images[:, 1] = 101

    def corrupted(text, seed=0):
        return augment_images(images, parse_corruptions(text), torch.Generator().manual_seed(seed))

    noisy = corrupted("gaussian:0.2").float()
    assert noisy[:, 0].std().item() == pytest.approx(0.2 * 127.5, rel=0.05)
    peppered = corrupted("salt_pepper:0.1")
    hit = peppered != images
    assert hit.float().mean().item() == pytest.approx(0.1, rel=0.1)
    assert (hit == hit[:, :, :1]).all()
    assert set(peppered[hit].tolist()) == {0, 255}
    dropped = (corrupted("drop:0.3") == 0).flatten(2)
    assert (dropped.all(dim=2) == dropped.any(dim=2)).all()
    assert dropped.float().mean().item() == pytest.approx(0.3, rel=0.1)
    assert (corrupted("freeze:1") == 100).all()
    assert torch.equal(corrupted(""), images)
    assert noisy.numel() == images.numel()
    assert corrupted("gaussian:5").dtype == torch.uint8


def test_augmentation_errors():
    """A delay is none of observations; a wrong width is named."""
    with pytest.raises(ValueError, match="delay"):
        augmented("delay:1", torch.zeros(2, 10))
    with pytest.raises(ValueError, match=r"expected \(batch, 2 x 5\)"):
        augmented("drop:0.1", torch.zeros(2, 9))
