"""What the flow schedulers share: the grid of sigmas, the place on it, and noising. The rule of one step is theirs.

A grid has one node per step and a final 0. A method that looks at the model several times in a step has several entries of
`timesteps` for it, and the place in the loop is an integer, so that two equal sigmas (Runge-Kutta 4 has them) are never confused.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ConfigMixin, SchedulerMixin
from torch import Tensor

from ..conventions import (
    NUM_TRAIN_TIMESTEPS,
    shift_sigma,
    sigma_from_t,
    sigma_from_timestep,
    sigma_grid,
    t_from_sigma,
    timestep_from_sigma,
)
from ..paths import broadcast_time
from ..solvers import stage_time

TIMESTEP_TOLERANCE = 1e-6 * NUM_TRAIN_TIMESTEPS  # some float32 roundings of a timestep; never a step of a grid


class FlowScheduler(SchedulerMixin, ConfigMixin):
    """The shared half of the flow schedulers, in diffusers' convention: sigma = 1 is noise, sigma = 0 data.

    A subclass calls `_begin(stages)` in its constructor and implements `step`. `stages` are the places within a step at which the model
    is evaluated, as fractions of the step.
    """

    _compatibles = ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"]
    init_noise_sigma = 1.0
    num_inference_steps: int | None = None
    _step_index: int | None = None
    _begin_index: int | None = None

    def _begin(self, stages: tuple[float, ...]) -> None:
        if self.config.num_train_timesteps != NUM_TRAIN_TIMESTEPS:
            raise ValueError(
                f"num_train_timesteps must be {NUM_TRAIN_TIMESTEPS}, got {self.config.num_train_timesteps}: flow models are told "
                f"timestep = {NUM_TRAIN_TIMESTEPS} sigma whatever the number of steps; choose that in set_timesteps."
            )
        if not (math.isfinite(self.config.shift) and self.config.shift > 0):
            raise ValueError(f"shift must be a number > 0, got {self.config.shift}.")
        self._stages = stages
        shift = 1.0 if self.config.use_dynamic_shifting else self.config.shift
        self._set_grid(sigma_grid(NUM_TRAIN_TIMESTEPS, shift).tolist(), (0.0,), None)

    @classmethod
    def _get_compatibles(cls) -> list[type]:
        return [cls, *super()._get_compatibles()]

    @property
    def order(self) -> int:
        """Entries of `timesteps` for one step, which is what diffusers' pipelines mean by the order of a scheduler."""
        return len(self._stages)

    @property
    def step_index(self) -> int | None:
        """Index into `timesteps` of the next evaluation; None before the first `step`."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Index into `timesteps` at which the loop begins, if a pipeline has set one."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """
        Say where on the grid the loop begins; whatever was left of an earlier loop is forgotten.

        Args:
            begin_index (`int`, defaults to 0): index into `timesteps`, a multiple of `order`.
        """
        if not 0 <= begin_index < len(self.timesteps) or begin_index % self.order:
            raise ValueError(
                f"begin_index must be a multiple of {self.order} (evaluations per step) below {len(self.timesteps)}, got {begin_index}."
            )
        self._begin_index, self._step_index = begin_index, None

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | Tensor | None = None,
        timesteps: Sequence[float] | Tensor | None = None,
        mu: float | None = None,
    ) -> None:
        """
        Set the sampling grid. By default it is uniform from sigma = 1 to 0 and shifted once.

        Args:
            num_inference_steps (`int`, *optional*): number of steps; the model is evaluated `order` times in each.
            device (`str` or `torch.device`, *optional*): where `timesteps` and `sigmas` are put.
            sigmas (`list[float]`, *optional*): one decreasing value in [0, 1] per step, used as they are: `shift` is not applied to them
                (`FlowMatchEulerDiscreteScheduler` with `shift=1` then makes the same images). The final 0 is appended if absent.
            timesteps (`list[float]`, *optional*): the same, given as timesteps.
            mu (`float`, *optional*): logarithm of the shift for this resolution, for the default grid and for `sigmas`. It is needed with
                `use_dynamic_shifting` and ignored without it, as in diffusers.
        """
        nodes = self._nodes(num_inference_steps, sigmas, timesteps, mu)
        self.num_inference_steps = len(nodes) - 1
        self._set_grid(nodes, self._stages, device)

    def _nodes(
        self,
        num_steps: int | None,
        sigmas: Sequence[float] | Tensor | None,
        timesteps: Sequence[float] | Tensor | None,
        mu: float | None,
    ) -> list[float]:
        if sigmas is not None and timesteps is not None:
            raise ValueError("give sigmas or timesteps, not both: each is a complete grid.")
        if timesteps is not None:
            grid = sigma_from_timestep(torch.as_tensor(timesteps, dtype=torch.float64))
        elif sigmas is not None:
            grid = torch.as_tensor(sigmas, dtype=torch.float64)
            grid = shift_sigma(grid, self._dynamic_shift(mu)) if self.config.use_dynamic_shifting else grid
        elif num_steps is not None:
            return sigma_grid(
                num_steps, self._dynamic_shift(mu) if self.config.use_dynamic_shifting else self.config.shift
            ).tolist()
        else:
            raise ValueError("set_timesteps needs num_inference_steps, sigmas or timesteps.")
        return _check_nodes(grid.flatten().float().tolist(), num_steps)

    def _dynamic_shift(self, mu: float | None) -> float:
        if mu is None:
            raise ValueError(
                "with use_dynamic_shifting=True, set_timesteps needs mu, the logarithm of the shift for this resolution."
            )
        return math.exp(mu)

    def _set_grid(self, nodes: list[float], stages: tuple[float, ...], device: str | torch.device | None) -> None:
        """`sigmas`: (len(timesteps) + 1,) float32, the sigma of every evaluation and a final 0; all places are forgotten."""
        self._times = [t_from_sigma(sigma) for sigma in nodes]
        evaluated = [
            sigma_from_t(stage_time(t, t_next, c)) for t, t_next in itertools.pairwise(self._times) for c in stages
        ]
        self.sigmas = torch.tensor([*evaluated, 0.0], dtype=torch.float32, device=device)
        self.timesteps = torch.tensor(
            [timestep_from_sigma(sigma) for sigma in evaluated], dtype=torch.float32, device=device
        )
        self._timesteps: list[float] = self.timesteps.tolist()
        self._step_index = self._begin_index = None

    def index_for_timestep(self, timestep: float | Tensor) -> int:
        """
        Index into `timesteps` of the step that starts at a timestep.

        Args:
            timestep (`float` or `torch.Tensor`): one of `timesteps`; nothing between them.
        """
        value = _one_number(timestep)
        order = self.order if self.num_inference_steps else 1
        starts = range(0, len(self._timesteps), order)
        index = min(starts, key=lambda i: abs(self._timesteps[i] - value))
        if not abs(self._timesteps[index] - value) <= TIMESTEP_TOLERANCE:
            raise ValueError(
                f"no step starts at timestep {value}; pass the entries of scheduler.timesteps in their order, beginning at a multiple "
                f"of {order} (evaluations per step). The nearest start is {self._timesteps[index]}."
            )
        return index

    def _locate(self, timestep: float | Tensor, model_output: Tensor, sample: Tensor) -> int:
        """Index of this evaluation: the one that is due, or, when the timestep says otherwise, the start of the step to jump to."""
        if self.num_inference_steps is None:
            raise ValueError("call set_timesteps before step: the number of inference steps is not known.")
        if model_output.shape != sample.shape:
            raise ValueError(
                f"model_output {tuple(model_output.shape)} and sample {tuple(sample.shape)} must have the same shape."
            )
        value = _one_number(timestep)
        due = self._begin_index if self._step_index is None else self._step_index
        if due is not None and due < len(self._timesteps) and abs(self._timesteps[due] - value) <= TIMESTEP_TOLERANCE:
            return due
        return self.index_for_timestep(value)

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """
        The model's input, which is the sample itself.

        Args:
            sample (`torch.Tensor`): the current sample.
            timestep (`float`, *optional*): not used.
        """
        return sample

    def scale_noise(self, sample: Tensor, timestep: float | Tensor, noise: Tensor) -> Tensor:
        """
        Move data to a noise level, x_sigma = sigma noise + (1 - sigma) sample, at any timestep, on the grid or between.

        Args:
            sample (`torch.Tensor`): data, of shape (batch, ...).
            timestep (`float` or `torch.Tensor`): one for all, or one per sample.
            noise (`torch.Tensor`): standard normal, of the shape of `sample`.
        """
        if noise.shape != sample.shape:
            raise ValueError(f"noise {tuple(noise.shape)} and sample {tuple(sample.shape)} must have the same shape.")
        sigma = sigma_from_timestep(torch.as_tensor(timestep, dtype=torch.float32, device=sample.device))
        if not bool(((sigma >= 0) & (sigma <= 1)).all()):
            raise ValueError(f"timesteps must be in [0, {NUM_TRAIN_TIMESTEPS}], got {timestep}.")
        sigma = broadcast_time(sigma.reshape(()) if sigma.numel() == 1 else sigma, sample)
        data = working_precision(sample)
        return (sigma * noise.to(data) + (1 - sigma) * data).to(sample.dtype)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: float | Tensor) -> Tensor:
        """
        `scale_noise` under the name and argument order of diffusers' other schedulers.

        Args:
            original_samples (`torch.Tensor`): data, of shape (batch, ...).
            noise (`torch.Tensor`): standard normal, of the same shape.
            timesteps (`float` or `torch.Tensor`): one for all, or one per sample.
        """
        return self.scale_noise(original_samples, timesteps, noise)

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)


def working_precision(x: Tensor) -> Tensor:
    """`x` in float32, or in its own dtype if that is finer: no step is computed in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _check_nodes(nodes: list[float], num_steps: int | None) -> list[float]:
    """The nodes with their final 0.  Raises: ValueError when they do not decrease within [0, 1] or are not `num_steps` steps."""
    given = nodes
    if nodes and nodes[-1] != 0:
        nodes = [*nodes, 0.0]
    if len(nodes) < 2 or not all(0 <= b < a <= 1 for a, b in itertools.pairwise(nodes)):
        raise ValueError(
            f"sigmas (timesteps / {NUM_TRAIN_TIMESTEPS}) must decrease strictly within [0, 1], got {given}."
        )
    if num_steps is not None and len(nodes) - 1 != num_steps:
        raise ValueError(f"num_inference_steps is {num_steps}, but the given grid has {len(nodes) - 1} steps: {given}.")
    return nodes


def _one_number(timestep: Any) -> float:
    if isinstance(timestep, Tensor) and timestep.numel() != 1:
        raise ValueError(f"a step has one timestep for the whole batch, got a tensor of shape {tuple(timestep.shape)}.")
    return float(timestep)
