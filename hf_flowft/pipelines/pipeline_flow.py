"""Sampling, encoding and likelihood of a flow model, under diffusers' pipeline contract."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from diffusers import ModelMixin, SchedulerMixin
from torch import Tensor

from ..conventions import Prediction, time_grid
from ..likelihood import log_likelihood
from ..models.bases import label_rows
from ..sampling import regress
from ..solvers import ADAPTIVE_METHODS, integrate, integrate_adaptive
from ..velocity import GuidedVelocity, Velocity
from .denoising import check_scheduler, denoise, named_scheduler
from .description import event_shape
from .inputs import (
    adaptive_method,
    check_names,
    check_output_type,
    condition_tensors,
    grid_arguments,
    refuse_noise,
    starting_noise,
)
from .output import FlowPipelineOutput, to_output
from .saved import SavedPipeline

MAX_CONDITIONS = 2048


class FlowPipeline(SavedPipeline):
    """A flow model with its scheduler, its normalisation, and the conditions it was trained under.

    Args:
        model: a diffusers-style flow model (`VelocityMLP`, `UNet2DModel`, `ViscousFlowModel` ...).
        scheduler: any flow scheduler.
        description: JSON-able facts: `event_shape`, `normalisation` {mean, std}, `is_image`, `value_range`, `label_names`, `coupling` it was trained
            with, `null_condition` for guidance, `predicts` (velocity, noise or mean; see `conventions.Prediction`). `describe_data` makes it from a
            `FlowData`.
        conditions: rows of the conditions it was trained under (at most 2048), for replay and self pairs; saved with the pipeline.
    """

    model_cpu_offload_seq = "model"
    _callback_tensor_inputs = ["latents"]

    def __init__(
        self,
        model: ModelMixin,
        scheduler: SchedulerMixin,
        description: dict[str, Any] | None = None,
        conditions: dict[str, Tensor] | None = None,
    ):
        super().__init__()
        self.register_modules(model=model, scheduler=scheduler)
        self.register_to_config(description=dict(description or {}))
        self.conditions = {key: value[:MAX_CONDITIONS].clone() for key, value in (conditions or {}).items()}

    @classmethod
    def kinds(cls) -> dict[str, type[SavedPipeline]]:
        """Itself, and policies, which are flow pipelines too."""
        from .pipeline_flow_policy import FlowPolicyPipeline  # which is built on this class

        return {kind.__name__: kind for kind in (FlowPipeline, FlowPolicyPipeline) if issubclass(kind, cls)}

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(event_shape(self.description, self.model))

    @property
    def shift(self) -> float:
        """The shift of the scheduler's grid (1 for schedulers without one)."""
        return float(self.scheduler.config.get("shift", 1.0))

    @property
    def predicts(self) -> Prediction:
        """What the network has learned: a velocity, unless the description says otherwise."""
        return self.description.get("predicts", "velocity")

    def with_scheduler(self, name: str) -> Self:
        """The same network, sampled in another way; this pipeline stays as it is.

        Args: `name`: ode, sde:0.5, ddpm, ddim, dpm ...; see `denoising.named_scheduler`.  Raises: ValueError for one that does not go with the network.
        """
        other, coupling = copy.copy(self), self.description.get("coupling", "unknown")
        other.scheduler = named_scheduler(name, self.scheduler, self.predicts, coupling)
        return other

    @property
    def num_timesteps(self) -> int:
        """Evaluations of the last call."""
        return self._num_timesteps

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        class_labels: Sequence[int] | int | Tensor | None = None,
        condition: Tensor | None = None,
        *,
        guidance_scale: float = 1.0,
        num_inference_steps: int = 16,
        sigmas: Sequence[float] | None = None,
        solver: str | None = None,
        rtol: float = 1e-5,
        atol: float = 1e-5,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str | None = None,
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Tensor]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> FlowPipelineOutput | tuple[Any, int]:
        """Draw samples.

        Args:
            batch_size: number of samples, when no latents, labels or conditions say it.
            class_labels: one label for all, or one a sample.
            condition: (batch, condition_dim) vectors, in the units of the data.
            guidance_scale: classifier-free guidance; 1 is off, other values need a model trained with dropped conditions.
            num_inference_steps: steps of the scheduler's solver.
            sigmas: a grid of one's own, decreasing from 1.
            solver: an adaptive method (dopri5 ...) instead of the scheduler, to tolerances `rtol` and `atol`.
            generator: one, or one a sample.
            latents: (batch, *event) noise to start from.
            output_type: pil, np, pt (data units) or latent (model units); default pil for images, np otherwise.
            callback_on_step_end: called with (pipeline, index, timestep, {names asked for}); may return changed tensors.
        Raises: ValueError for a wrong output type, missing or unexpected conditions, or an unknown solver.
        """
        output_type = check_output_type(output_type, self.event_shape, bool(self.description.get("is_image")))
        check_names(callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        batch_size = batch_size if latents is None else len(latents)
        given = self._condition(batch_size, class_labels, condition)
        x, evaluations = self._draw(
            len(next(iter(given.values()))) if given else batch_size,
            given,
            guidance_scale=guidance_scale,
            num_inference_steps=num_inference_steps,
            sigmas=sigmas,
            solver=solver,
            rtol=rtol,
            atol=atol,
            generator=generator,
            latents=latents,
            callback=callback_on_step_end,
            callback_inputs=callback_on_step_end_tensor_inputs,
        )
        samples = to_output(x, output_type, self.normalisation, self.description.get("value_range", (0.0, 1.0)))
        self.maybe_free_model_hooks()
        return FlowPipelineOutput(samples, evaluations) if return_dict else (samples, evaluations)

    def _draw(  # type: ignore[no-untyped-def]
        self,
        batch_size,
        given,
        *,
        guidance_scale=1.0,
        num_inference_steps=16,
        sigmas=None,
        solver=None,
        rtol=1e-5,
        atol=1e-5,
        generator=None,
        latents=None,
        callback=None,
        callback_inputs=("latents",),
    ) -> tuple[Tensor, int]:
        """Samples in model units (batch, *event) and the evaluations each took; `given`: conditions by name, the rest as `__call__`."""
        network = self._network(guidance_scale)
        x = starting_noise((batch_size, *self.event_shape), generator, latents, self._execution_device)
        if self.predicts == "mean":
            refuse_noise(latents, sigmas, solver)
            x, self._num_timesteps = regress(network, x, given), 1
        elif solver is not None:
            field, method = self.velocity(guidance_scale).field(given), adaptive_method(solver)
            solution = integrate_adaptive(field, x, (0.0, 1.0), method, rtol=rtol, atol=atol)
            x, self._num_timesteps = solution.x, solution.num_evaluations
        else:
            x = self._denoise(network, x, given, num_inference_steps, sigmas, generator, callback, callback_inputs)
        return x, self._num_timesteps * (1 if guidance_scale == 1 else 2)

    def _denoise(self, network, x, given, num_steps, sigmas, generator, callback, callback_inputs) -> Tensor:  # type: ignore[no-untyped-def]
        """The scheduler's loop, with its progress bar and callback."""
        check_scheduler(self.scheduler, self.predicts)
        self.scheduler.set_timesteps(**grid_arguments(self.scheduler, num_steps, sigmas), device=x.device)
        self._num_timesteps = len(self.scheduler.timesteps)
        with self.progress_bar(total=self._num_timesteps) as bar:

            def after_step(index: int, timestep: Tensor, x: Tensor) -> Tensor:
                if callback is not None:
                    asked = {name: {"latents": x}[name] for name in callback_inputs}
                    x = (callback(self, index, timestep, asked) or {}).get("latents", x)
                bar.update()
                return x

            return denoise(network, self.scheduler, x, given, generator, after_step)

    @torch.no_grad()
    def encode(
        self,
        x: Tensor,
        class_labels: Sequence[int] | int | Tensor | None = None,
        condition: Tensor | None = None,
        num_steps: int = 64,
        solver: str = "rk4",
    ) -> Tensor:
        """The noise that data points come from, by the reverse ODE: data units (batch, *event) -> noise (batch, *event)."""
        z = self.normalisation.apply(x.to(self._execution_device, torch.float32))
        given = self._condition_of(z, class_labels, condition)
        field = self.velocity().field(given)
        if solver in ADAPTIVE_METHODS:
            return integrate_adaptive(field, z, (1.0, 0.0), solver).x
        return integrate(field, z, time_grid(num_steps, self.shift)[::-1], solver).x

    def log_likelihood(
        self,
        x: Tensor,
        class_labels: Sequence[int] | int | Tensor | None = None,
        condition: Tensor | None = None,
        *,
        num_steps: int = 32,
        solver: str = "rk4",
        num_probes: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """log p(x) in nats, as a density in data units: (batch, *event) -> (batch,).

        Args: `num_probes`: 0 for the exact trace, k for Hutchinson's estimate; by default exact up to 64 dimensions, 4 probes above.
        """
        z = self.normalisation.apply(x.to(self._execution_device, torch.float32))
        given = self._condition_of(z, class_labels, condition)
        if num_probes is None:
            num_probes = 0 if z[0].numel() <= 64 else 4
        times = time_grid(num_steps, self.shift)
        log_p = log_likelihood(
            self.velocity().field(given), z, times, solver, num_probes=num_probes, generator=generator
        )
        return log_p - self.normalisation.log_volume(self.event_shape)

    def velocity(self, guidance_scale: float = 1.0) -> Velocity:
        """The model as a velocity field v(x, t, **condition), with guidance.

        Raises: ValueError for a model that is no flow, and for guidance of one that was trained without dropped conditions.
        """
        if self.predicts != "velocity":
            raise ValueError(
                f"this model predicts the {self.predicts}, not a velocity: encoding, likelihoods, adaptive solvers and the metrics of flows are not for it."
            )
        return self._network(guidance_scale)

    def _network(self, guidance_scale: float) -> Velocity:
        """Whatever the model predicts behind the door of `Velocity`; guidance is linear, so it is the same for all."""
        velocity = Velocity(self.model)
        if guidance_scale == 1:
            return velocity
        null = self.description.get("null_condition")
        if not null:
            raise ValueError(
                "guidance_scale needs a model trained with train.condition_dropout > 0; this one knows no 'no condition'."
            )
        return GuidedVelocity(velocity, guidance_scale, null)

    def _condition(self, batch_size: int, class_labels: Any, condition: Tensor | None) -> dict[str, Tensor]:
        rows = label_rows(self.model)  # the last is "no label", which means something where it was trained
        known = rows if self.description.get("null_condition") else self.model.config.get("num_classes") or rows
        given = condition_tensors(batch_size, class_labels, condition, self.conditions, known)
        units = self.condition_normalisation
        if "condition" in given:
            width, wanted = given["condition"].shape[1], torch.tensor(units.mean).numel()
            if isinstance(units.mean, list) and width != wanted:
                raise ValueError(f"condition must be vectors of {wanted} numbers, got {width}.")
            given["condition"] = units.apply(given["condition"])
        return {key: value.to(self._execution_device) for key, value in given.items()}

    def _condition_of(self, z: Tensor, class_labels: Any, condition: Tensor | None) -> dict[str, Tensor]:
        if tuple(z.shape[1:]) != self.event_shape:
            raise ValueError(f"samples of this pipeline have shape {self.event_shape}, got {tuple(z.shape[1:])}.")
        given = self._condition(len(z), class_labels, condition)
        if any(len(value) != len(z) for value in given.values()):
            raise ValueError(
                f"give one label or condition a sample: {len(z)} samples, got {[len(v) for v in given.values()]}."
            )
        return given
