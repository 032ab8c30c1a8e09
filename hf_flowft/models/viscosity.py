"""Generalised artificial viscosity (GAV, after arXiv 2510.02081): a trained flow plus dissipation of a known rate."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from ..conventions import output_from_velocity, sigma_from_t, sigma_from_timestep, t_from_sigma, timestep_from_sigma
from ..jacobians import expansion_rate, lipschitz
from ..velocity import Velocity
from .bases import base_config, build_base, event_shape
from .certificate import ContractionCertificate
from .output import FlowModelOutput
from .reference import ResidualMixin
from .residual import ViscousResidual


class ViscousFlowModel(ViscousResidual, ResidualMixin, ConfigMixin):
    """A base flow with viscosity, in diffusers' convention; at the start it is the base, bit for bit.

        in_loop   v(x, t, c) = v_base(x, t, c) + gate(t) mu(x - m(t, c)) + g(t, c)
        cascade   v = 2 v_base(x, 2t, c) for t < 1/2,   v = 2 [mu(x - m(s, c)) + g(s, c)], s = 2t - 1, for t >= 1/2

    The cascade is the base's flow followed by the viscosity's, as one field that any scheduler runs: use a grid that
    hits 1/2 (an even number of uniform steps) and a method that does not look ahead to the end of its step (Euler,
    midpoint). The centre m and the forcing g never see the state, so J = J_base + gate J_mu, and logarithmic norms
    add: the flow contracts where the rate exceeds the expansion of the base. Contraction of everything contradicts
    several modes; `gate_start` > 0 leaves the early flow alone: gate(t) = relu((t - t_c) / (1 - t_c)).

    The base is frozen and stays in eval mode until `unfreeze_base`. The viscosity runs in the dtype of its parameters,
    also under autocast.

    Args:
        base: config of the base, with its `_class_name`; see `from_base`.
        event_shape: shape of one sample; it is flattened inside the viscosity.
        structure: gradient (proven, Euclidean), metric (proven, in a learned norm), dominance (proven, in a weighted l1
            norm; small samples), paper (the literal form; not certified), or mlp (ablation: a plain residual of x, t
            and c instead of mu and g).
        wiring: in_loop or cascade.
        hidden_dim: rows of each W_j (gradient, metric), or hidden units (mlp).
        num_terms: M, the number of terms of mu.
        activation: f: tanh, arctan, softsign, leaky_relu or identity.
        rank: rank of the Cayley rotations (metric, paper); 1 turns a single plane.
        gate_start: t_c in [0, 1); 0 for no gate (in_loop only).
        num_classes: labels 0 .. num_classes - 1 that m and g see, and `num_classes` for "no label"; 0: they see none.
        condition_dim: size of the vector condition that m and g see; 0: they see none.
    """

    @register_to_config
    def __init__(
        self,
        base: dict[str, Any],
        event_shape: list[int],
        structure: Literal["gradient", "metric", "dominance", "paper", "mlp"] = "gradient",
        wiring: Literal["in_loop", "cascade"] = "in_loop",
        hidden_dim: int = 128,
        num_terms: int = 1,
        activation: str = "tanh",
        rank: int = 2,
        gate_start: float = 0.0,
        num_classes: int = 0,
        condition_dim: int = 0,
    ):
        super().__init__()
        self.base_model = build_base(base)
        self.add_parts()
        self.freeze_base()

    @classmethod
    def from_base(cls, base_model: ModelMixin, **options: Any) -> ViscousFlowModel:
        """Viscosity on a copy of `base_model`, in its dtype and on its device.

        `options`: the arguments of the class but `base`; `event_shape` is read from the base's config where that says it.
        """
        config = base_config(base_model)
        options = {"event_shape": options.get("event_shape") or event_shape(config)} | options
        model = cls(base=config, **options)
        model.base_model = copy.deepcopy(base_model)
        for name, part in model.named_children():
            if name != "base_model":
                part.to(device=base_model.device, dtype=base_model.dtype)
        model.freeze_base()
        return model.eval()

    def freeze_base(self) -> None:
        """Train the residual only: the base takes no gradients and stays in eval mode."""
        self.base_frozen = True
        self.base_model.requires_grad_(False)
        self.base_model.eval()

    def unfreeze_base(self) -> None:
        """Train base and residual together."""
        self.base_frozen = False
        self.base_model.requires_grad_(True)
        self.base_model.train(self.training)

    def train(self, mode: bool = True) -> ViscousFlowModel:
        """As `nn.Module.train`; a frozen base stays in eval mode."""
        super().train(mode)
        if self.base_frozen:
            self.base_model.eval()
        return self

    def forward(
        self, sample: Tensor, timestep: Tensor | float, *, return_dict: bool = True, **condition: Tensor
    ) -> FlowModelOutput | tuple[Tensor]:
        """Args: `sample`: (batch, *event_shape); `timestep`: number or (batch,) in [0, 1000]; `condition`: what the
        base takes, of which m and g see `class_labels` and `condition`.  Raises: ValueError for another shape or a
        missing condition.
        """
        self._check(sample, condition)
        timestep = torch.as_tensor(timestep, dtype=torch.float32, device=sample.device).expand(sample.shape[0])
        if self.config.wiring == "cascade":
            out = self._cascade(sample, timestep, condition)
        else:
            out = self.base_model(sample, timestep, return_dict=False, **condition)[0]
            out = out + output_from_velocity(self._added(sample, timestep, condition)).to(out.dtype)
        return FlowModelOutput(sample=out) if return_dict else (out,)

    def certificate(
        self,
        states: Tensor | None = None,
        times: Sequence[float] | None = None,
        condition: dict[str, Tensor] | None = None,
    ) -> ContractionCertificate:
        """What is proven about the viscosity and, given states, what they let one estimate about the whole flow.

            |x(1) - x'(1)| <= exp(nu - delta * integral of the gate) |x(0) - x'(0)|      in the certificate's metric

        Args: `states`: (len(times), batch, *event_shape), e.g. rollouts of the base (cascade: on the base's own
        clock); `times`: t of each; `condition`: rows of (batch, ...).  Raises: ValueError when only one of the two is
        given or their lengths differ.
        """
        if (states is None) != (times is None) or (states is not None and len(states) != len(times)):
            raise ValueError(
                "give states of shape (len(times), batch, *event_shape) together with their times, or neither."
            )
        nu, slope = (None, None) if states is None else self._base_rates(states, times, condition or {})
        return self.certified(nu, slope)

    def _base_rates(self, states: Tensor, times: Sequence[float], condition: dict[str, Tensor]) -> tuple[float, float]:
        """The largest logarithmic norm and the largest singular value of the base's Jacobian over the states."""
        field = Velocity(self.base_model).field(condition)
        measure = expansion_rate if self.config.structure == "mlp" else self.dissipation.expansion_rate
        expansions = [measure(field, x, t).max() for x, t in zip(states, times, strict=True)]
        slopes = [lipschitz(field, x, t).max() for x, t in zip(states, times, strict=True)]
        return float(torch.stack(expansions).max()), float(torch.stack(slopes).max())

    def _added(self, sample: Tensor, timestep: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """The residual's velocity; untrained it is +0.0, and adds -0.0 to the output: no bit changes."""
        labels = condition["class_labels"] if self.config.num_classes else None
        vector = condition["condition"] if self.config.condition_dim else None
        return self.residual(sample, timestep, labels, vector)

    def _cascade(self, sample: Tensor, timestep: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """The base at double speed before t = 1/2, the viscosity at double speed after it, each row by its own t."""
        t = t_from_sigma(sigma_from_timestep(timestep))
        in_base = t < 0.5
        own = timestep_from_sigma(sigma_from_t((2 * t - 1).clamp(min=0)))
        out = output_from_velocity(self._added(sample, own, condition)).to(sample.dtype)
        if in_base.any():
            base_timestep = timestep_from_sigma(sigma_from_t((2 * t).clamp(max=1)))
            base_out = self.base_model(sample, base_timestep, return_dict=False, **condition)[0]
            out = torch.where(in_base.reshape(-1, *[1] * (sample.ndim - 1)), base_out, out)
        return 2 * out

    def _check(self, sample: Tensor, condition: dict[str, Tensor]) -> None:
        shape = list(self.config.event_shape)
        if list(sample.shape[1:]) != shape:
            raise ValueError(f"this model takes samples of shape (batch, *{shape}), got {tuple(sample.shape)}.")
        for option, key in (("num_classes", "class_labels"), ("condition_dim", "condition")):
            if self.config[option] and condition.get(key) is None:
                raise ValueError(f"{option} is {self.config[option]}, so {key} must be given.")


def in_words(structure: str, wiring: str) -> str:
    """What a residual of this structure and wiring is, in a sentence."""
    kinds = {
        "mlp": "The ablation of generalized artificial viscosity (GAV): a plain residual network, without dissipation, on the frozen base",
        "paper": "Generalized artificial viscosity (GAV) as it was published, without certified rates: a residual on the frozen base",
    }
    certified = (
        f"Generalized artificial viscosity (GAV) of structure `{structure}`: a dissipative residual on the frozen base"
    )
    acts = "" if wiring == "in_loop" else ", which acts on the base's output as a second half of the time"
    return f"{kinds.get(structure, certified)}{acts}."
