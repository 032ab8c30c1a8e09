"""Worse sensors and slower actuators: noise on states and images, frozen and dropped readings, late actions.

A corruption is written as kinds with levels, applied from left to right: "gaussian:0.02", "freeze:0.1+gaussian:0.02", "delay:2".

| kind | level | on states, in normalised units | on images (0..255) |
|---|---|---|---|
| gaussian | standard deviation | x + level n, n ~ N(0, 1) | x + 127.5 level n, rounded and clipped |
| salt_pepper | probability of an entry, of a pixel | the entry becomes -1 or 1 | the pixel becomes 0 or 255 in all channels |
| freeze | probability of a sensor in a step | the sensor's last reading again | likewise |
| drop | probability of a sensor in a step | all entries become 0, the mean | black |
| delay | control steps, a whole number | an action is executed so many steps late; before, the robot holds still | |

A sensor is a key of the observation. The noise is a function of (seed, episode, step, sensor) and of nothing else.
"""

from __future__ import annotations

import difflib
from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..randomness import keyed_seed
from .base import Observation

KINDS = ("gaussian", "salt_pepper", "freeze", "drop", "delay")
IN_NORMALISED_UNITS = {"gaussian", "salt_pepper", "drop"}
Normalisation = Mapping[str, Mapping[str, Sequence[float]]]
"""For each state key its "mean" and "std": normalised = (raw - mean) / std."""


class Corruption(NamedTuple):
    """One kind at one level."""

    kind: str
    level: float


def parse_corruptions(text: str) -> tuple[Corruption, ...]:
    """ "gaussian:0.02+delay:2" -> its parts in order; "" and "none" -> none.

    Raises: ValueError naming the part that is not understood, with the nearest known kind.
    """
    if text.strip() in ("", "none"):
        return ()
    return tuple(_parse_part(part.strip()) for part in text.split("+"))


def _parse_part(part: str) -> Corruption:
    kind, _, written = part.partition(":")
    if kind not in KINDS:
        close = difflib.get_close_matches(kind, KINDS, n=1, cutoff=0.4)
        nearest = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(
            f"there is no corruption {kind!r}{nearest}: write kind:level with a kind of {', '.join(KINDS)}."
        )
    try:
        level = float(written)
    except ValueError:
        raise ValueError(
            f"the corruption {part!r} has no level: write {kind}:{2 if kind == 'delay' else 0.02}."
        ) from None
    if kind == "delay" and not (level >= 0 and level == int(level)):
        raise ValueError(f"the corruption {part!r} needs a whole number of steps, 0 or more.")
    if kind == "gaussian" and not 0 <= level < float("inf"):
        raise ValueError(f"the corruption {part!r} needs a standard deviation, 0 or more.")
    if kind not in ("delay", "gaussian") and not 0 <= level <= 1:
        raise ValueError(f"the corruption {part!r} needs a probability, from 0 to 1.")
    return Corruption(kind, level)


class EpisodeCorruption:
    """The corruptions of one episode: what the policy sees in place of the observation, what is executed in place of the action.

    Args: `corruptions`: in the order they are applied; `normalisation`: of the state keys. A state key it lacks is not passed on when
    one of the corruptions is in normalised units, so that no policy sees it clean by accident; `seed`, `episode`: of the noise.
    Raises: ValueError when normalised units are needed and there is no normalisation.
    """

    def __init__(
        self, corruptions: Sequence[Corruption], normalisation: Normalisation | None, *, seed: int = 0, episode: int
    ):
        self._parts = [part for part in corruptions if part.kind != "delay"]
        self._needs_units = any(part.kind in IN_NORMALISED_UNITS for part in corruptions)
        if self._needs_units and normalisation is None:
            raise ValueError(
                "gaussian, salt_pepper and drop are in normalised units: give normalisation={key: {'mean': ..., 'std': ...}}, "
                "the observation statistics of the policy."
            )
        self._normalisation = normalisation or {}
        self._key = (seed, episode)
        self._last: dict[tuple[int, str], np.ndarray] = {}
        self._late: deque[np.ndarray] = deque()
        self._delay = sum(int(part.level) for part in corruptions if part.kind == "delay")

    def observe(self, observation: Observation, step: int) -> Observation:
        """The observation of a step as the policy sees it. Steps are to be asked for in order: a frozen sensor remembers.

        Raises: ValueError when the normalisation of a key has another size.
        """
        seen = {}
        for key, reading in observation.items():
            if self._needs_units and reading.dtype != np.uint8 and key not in self._normalisation:
                continue
            for index, part in enumerate(self._parts):
                generator = np.random.default_rng(keyed_seed("corruption", *self._key, step, index, key))
                if part.kind == "freeze":
                    if step > 0 and generator.random() < part.level:
                        reading = self._last.get((index, key), reading)
                    self._last[index, key] = reading
                elif reading.dtype == np.uint8:
                    reading = _corrupt_image(reading, part, generator)
                else:
                    mean, std = self._units(key, reading.shape)
                    reading = (mean + std * _corrupt_state((reading - mean) / std, part, generator)).astype(np.float32)
            seen[key] = reading
        return seen

    def act(self, action: np.ndarray, hold: np.ndarray) -> np.ndarray:
        """The action executed now: the one given `delay` steps ago, or before there was one, `hold`."""
        self._late.append(action)
        return self._late.popleft() if len(self._late) > self._delay else hold

    def _units(self, key: str, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        statistics = self._normalisation[key]
        mean, std = (np.asarray(statistics[name], dtype=np.float64) for name in ("mean", "std"))
        if mean.shape != shape or std.shape != shape:
            raise ValueError(
                f"{key} has the shape {shape}, its normalisation a mean of {mean.shape} and a std of {std.shape}: "
                "the policy belongs to another environment."
            )
        return mean, std


def _corrupt_state(state: np.ndarray, part: Corruption, generator: np.random.Generator) -> np.ndarray:
    """A normalised state with one corruption."""
    if part.kind == "gaussian":
        return state + part.level * generator.standard_normal(state.shape)
    if part.kind == "salt_pepper":
        hit, sign = generator.random(state.shape) < part.level, generator.integers(0, 2, state.shape) * 2 - 1
        return np.where(hit, sign, state)
    return np.zeros_like(state) if generator.random() < part.level else state


def _corrupt_image(image: np.ndarray, part: Corruption, generator: np.random.Generator) -> np.ndarray:
    """An image, uint8 (height, width, channels), with one corruption."""
    if part.kind == "gaussian":
        noisy = image + 127.5 * part.level * generator.standard_normal(image.shape)
        return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
    if part.kind == "salt_pepper":
        pixels = (*image.shape[:-1], 1)
        hit, value = generator.random(pixels) < part.level, generator.integers(0, 2, pixels) * 255
        return np.where(hit, value, image).astype(np.uint8)
    return np.zeros_like(image) if generator.random() < part.level else image


def augment(
    condition: Tensor,
    corruptions: Sequence[Corruption],
    generator: torch.Generator,
    *,
    observation_horizon: int,
    sensor_sizes: Sequence[int],
) -> Tensor:
    """The state corruptions on a batch of training conditions, as augmentation: new noise for each window.

    Args: `condition`: (batch, observation_horizon * sum(sensor_sizes)), normalised, oldest observation first; `sensor_sizes`: of the
    state keys, in their order; `generator`: on the CPU.  Returns: a new tensor of that shape, dtype and device.
    Raises: ValueError for a delay, which is none of observations, or a width that is not the product.
    """
    require_sensors(corruptions)
    width = sum(sensor_sizes)
    if condition.ndim != 2 or condition.shape[1] != observation_horizon * width:
        raise ValueError(
            f"the condition has shape {tuple(condition.shape)}, expected (batch, {observation_horizon} x {width})."
        )
    windows = condition.reshape(-1, observation_horizon, width).clone()
    for part in corruptions:
        windows = _augment_part(windows, part, generator, sensor_sizes)
    return windows.reshape(condition.shape)


def _augment_part(windows: Tensor, part: Corruption, generator: torch.Generator, sensor_sizes: Sequence[int]) -> Tensor:
    """One corruption on normalised windows (batch, observation_horizon, width)."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator).to(windows.device)

    if part.kind == "gaussian":
        noise = torch.randn(windows.shape, generator=generator).to(windows)
        return windows + part.level * noise
    if part.kind == "salt_pepper":
        hit, sign = uniform(*windows.shape) < part.level, (uniform(*windows.shape) < 0.5).to(windows) * 2 - 1
        return torch.where(hit, sign, windows)
    hit = uniform(*windows.shape[:2], len(sensor_sizes)) < part.level
    hit = hit.repeat_interleave(torch.tensor(list(sensor_sizes), device=windows.device), dim=-1)
    if part.kind == "drop":
        return windows.masked_fill(hit, 0.0)
    return _frozen(windows, hit)


def _frozen(windows: Tensor, hit: Tensor) -> Tensor:
    """Windows (batch, observation_horizon, ...) in which a reading that is hit is the last one again; the first has none before it."""
    readings = [windows[:, 0]]
    for step in range(1, windows.shape[1]):
        readings.append(torch.where(hit[:, step], readings[-1], windows[:, step]))
    return torch.stack(readings, dim=1)


def augment_images(images: Tensor, corruptions: Sequence[Corruption], generator: torch.Generator) -> Tensor:
    """The corruptions on a batch of pictures of one camera, as `augment` on states; a picture is one sensor.

    Args: `images`: (batch, observation_horizon, channels, height, width), grey levels 0 to 255; `generator`: on the CPU.
    Returns: a new tensor of that shape, dtype and device.  Raises: ValueError for a delay.
    """
    require_sensors(corruptions)
    batch, horizon, _, height, width = images.shape
    seen = images.clone()
    for kind, level in corruptions:
        shape = (batch, horizon, 1, height, width) if kind == "salt_pepper" else (batch, horizon, 1, 1, 1)
        if kind == "gaussian":
            noise = 127.5 * level * torch.randn(seen.shape, generator=generator).to(seen.device)
            seen = (seen + noise).round().clamp(0, 255).to(images.dtype)
            continue
        hit = (torch.rand(shape, generator=generator) < level).to(seen.device)
        if kind == "salt_pepper":
            value = 255 * torch.randint(0, 2, shape, generator=generator).to(seen)
            seen = torch.where(hit, value, seen)
        else:
            seen = seen.masked_fill(hit, 0) if kind == "drop" else _frozen(seen, hit)
    return seen


def require_sensors(corruptions: Sequence[Corruption]) -> None:
    """Raises: ValueError for a delay, which is of actions, where observations are augmented."""
    if any(part.kind == "delay" for part in corruptions):
        raise ValueError("delay changes when actions are executed: it can't augment observations; leave it out here.")
