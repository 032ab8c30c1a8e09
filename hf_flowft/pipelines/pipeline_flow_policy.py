"""A flow of action chunks as a robot policy: raw observations in, raw actions out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from torch import Tensor

from ..data import Normalisation
from ..data.robot.frames import resized
from ..models import ViscousFlowModel
from ..models.looking import look
from ..models.observation import IMAGE_PREFIX
from ..velocity import GuidedVelocity, Velocity
from .output import POLICY_FACTS
from .pipeline_flow import FlowPipeline
from .receding import RecedingHorizon

Observation = Mapping[str, np.ndarray | Tensor]


@dataclass
class FlowPolicyOutput(BaseOutput):
    """`actions`: (batch, action_horizon, action_dim), the first for now; `chunk`: (batch, prediction_horizon, action_dim), the first for the
    time of the oldest observation; both in raw units. `num_evaluations` of the network for each chunk; `seconds` of wall time for the call.
    """

    actions: np.ndarray
    chunk: np.ndarray
    num_evaluations: int
    seconds: float


class FlowPolicyPipeline(FlowPipeline):
    """A `FlowPipeline` whose samples are action chunks and whose condition is a window of observations.

    `description["policy"]` says how it sees and acts:

        state_keys           observations that are concatenated, in this order, into `condition` (oldest step first)
        cameras              {name: key} of the images, given to the model as image_<name>
        observation_horizon  steps it sees; chunks begin at the oldest of them
        action_horizon       steps that are executed before it looks again
        num_tasks            tasks it was trained under, by number (0: none)
        fps                  steps a second

    and `description["observation_normalisation"]` = {key: {mean, std}} how states are scaled. `act` runs it step by step.
    """

    needed_facts = POLICY_FACTS

    @property
    def policy(self) -> dict[str, Any]:
        """How it sees and acts."""
        return self.description["policy"]

    @property
    def observation_horizon(self) -> int:
        """Steps of a window."""
        return int(self.policy["observation_horizon"])

    @property
    def action_horizon(self) -> int:
        """Steps that are executed of a chunk."""
        return int(self.policy["action_horizon"])

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        observation: Observation,
        task: int | Sequence[int] | None = None,
        *,
        num_inference_steps: int = 16,
        solver: str | None = None,
        guidance_scale: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
    ) -> FlowPolicyOutput:
        """Decide.

        Args:
            observation: key -> (batch, observation_horizon, ...) raw values, oldest first; without the batch axis for a single environment.
                States are vectors, images uint8 of (height, width, channels), of any size where the policy was trained on resized ones.
            task: its number, or one a row, for a policy of several tasks.
            num_inference_steps, solver, guidance_scale, generator, latents: as for `FlowPipeline`.
        Raises: ValueError for a missing key, another shape, or values that are not finite.
        """
        started = time.perf_counter()
        given = self.encode_observation(observation, task)
        x, evaluations = self._draw(
            len(next(iter(given.values()))),
            given,
            guidance_scale=guidance_scale,
            num_inference_steps=num_inference_steps,
            solver=solver,
            generator=generator,
            latents=latents,
        )
        chunk = self.normalisation.undo(x).cpu().numpy()
        self.maybe_free_model_hooks()
        now = self.observation_horizon - 1
        actions = chunk[:, now : now + self.action_horizon]
        return FlowPolicyOutput(actions, chunk, evaluations, time.perf_counter() - started)

    def encode_observation(
        self, observation: Observation, task: int | Sequence[int] | None = None
    ) -> dict[str, Tensor]:
        """Raw observations as what the model is given: `condition`, `class_labels`, and `image_features` of all cameras, looked at once.

        Raises: ValueError as `__call__`.
        """
        states = [self._state(observation, key) for key in self.policy["state_keys"]]
        images = {
            IMAGE_PREFIX + name: self._images(observation, name, key) for name, key in self.policy["cameras"].items()
        }
        rows = {len(value) for value in (*states, *images.values())}
        if len(rows) > 1:
            raise ValueError(f"the observations must have one row an environment each, got {sorted(rows)} rows.")
        given = {"condition": torch.cat(states, dim=2).flatten(1).to(self._execution_device)} if states else {}
        seen = look(self.model, {key: x.to(self._execution_device) for key, x in images.items()})
        return given | seen | self._tasks(task, rows.pop())

    def _network(self, guidance_scale: float) -> Velocity:
        """As of `FlowPipeline`; what an observation without images looks like is looked at too, once."""
        network = super()._network(guidance_scale)
        if isinstance(network, GuidedVelocity):
            shapes = self._policy_model.config.get("images") or {}
            none = {IMAGE_PREFIX + name: network.null_condition.get(IMAGE_PREFIX + name) for name in shapes}
            pictures = {
                key: torch.full((1, *shape), int(none[key]), dtype=torch.uint8, device=self._execution_device)
                for key, shape in zip(none, shapes.values(), strict=True)
                if none[key] is not None
            }
            with torch.no_grad():
                network.null_condition = {**network.null_condition, **look(self.model, pictures)}
        return network

    @property
    def _policy_model(self) -> Any:
        """The network that sees."""
        return self.model.base_model if isinstance(self.model, ViscousFlowModel) else self.model

    def _tasks(self, task: int | Sequence[int] | None, rows: int) -> dict[str, Tensor]:
        known = int(self.policy["num_tasks"])
        if (task is None) != (known == 0):
            raise ValueError(f"this policy knows {known} tasks: {'give' if known else 'do not give'} one.")
        if task is None:
            return {}
        labels = torch.as_tensor(task).long()
        labels = labels.expand(rows) if labels.ndim == 0 else labels
        if len(labels) != rows or not ((labels >= 0) & (labels < known)).all():
            raise ValueError(f"give one task from 0 to {known - 1} for each of {rows} rows, got {labels.tolist()}.")
        return {"class_labels": labels.to(self._execution_device)}

    def _state(self, observation: Observation, key: str) -> Tensor:
        values = self._window(observation, key, 3).float()
        if not torch.isfinite(values).all():
            raise ValueError(f"the observation {key!r} holds NaN or infinite values.")
        statistics = Normalisation(**self.description["observation_normalisation"][key])
        width = np.size(statistics.mean)
        if width not in (1, values.shape[-1]):
            raise ValueError(f"the observation {key!r} must have {width} numbers a step, got {values.shape[-1]}.")
        return statistics.apply(values)

    def _images(self, observation: Observation, name: str, key: str) -> Tensor:
        """(batch, observation_horizon, channels, height, width), in the size the data were brought to where they were."""
        window = self._window(observation, key, 5)
        if window.dtype != torch.uint8:
            raise ValueError(f"the observation {key!r} must hold grey levels 0 to 255 as uint8, got {window.dtype}.")
        channels, *size = self._policy_model.config["images"][name][1:]
        fits = list(window.shape[2:4]) == size or window.shape[4] != channels or channels not in (1, 3)
        if self.policy.get("image_size") and not fits:  # what is wrong otherwise, the network says
            window = torch.from_numpy(resized(window.cpu().numpy(), size))
        return window.movedim(-1, 2)

    def _window(self, observation: Observation, key: str, ndim: int) -> Tensor:
        """(batch, observation_horizon, ...)."""
        if key not in observation:
            raise ValueError(f"this policy needs the observation {key!r}, got {', '.join(observation) or 'nothing'}.")
        values = torch.as_tensor(observation[key])
        values = values[None] if values.ndim == ndim - 1 else values
        if values.ndim != ndim or values.shape[1] != self.observation_horizon:
            raise ValueError(
                f"the observation {key!r} must be a window of {self.observation_horizon} steps, (batch, {self.observation_horizon}, ...) "
                f"with {ndim} axes, got shape {tuple(values.shape)}."
            )
        return values

    def as_policy(
        self, task: int | None = None, scheduler: str | None = None, **options: Any
    ) -> Callable[..., np.ndarray]:
        """The policy as `environments.rollout` calls it: (windows, generators) -> actions.

        Args: `scheduler`: the name of another one, see `with_scheduler`; `options`: of `__call__`.
        """
        pipeline = self if scheduler is None else self.with_scheduler(scheduler)

        def decide(observations: Observation, generators: list[torch.Generator]) -> np.ndarray:
            return pipeline(observations, task, generator=generators, **options).actions

        return decide

    def reset(self, ensemble: float | None = None) -> None:
        """Begin an episode.  Args: `ensemble`: average the overlapping chunks with weights exp(-ensemble x age of the newer ones), deciding at
        every step (temporal ensembling, arXiv 2304.13705); None executes `action_horizon` steps of each chunk.
        """
        self._horizon = RecedingHorizon(self.observation_horizon, self.action_horizon, ensemble)

    def act(self, observation: Observation, task: int | None = None, **options: Any) -> np.ndarray:
        """One step of an episode: a single raw observation, key -> (...), to a raw action (action_dim,).

        Args: `options`: of `__call__`.  Raises: ValueError when `reset` was not called.
        """
        horizon: RecedingHorizon | None = getattr(self, "_horizon", None)
        if horizon is None:
            raise ValueError("call reset() at the beginning of an episode.")
        return horizon.step(observation, lambda window: self(window, task, **options).chunk[0])
