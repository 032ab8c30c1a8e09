"""What a viscosity adds to the velocity of a base: gate(t) mu(x - m(t, c)) + g(t, c), or the plain network of the ablation."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..conventions import sigma_from_timestep, t_from_sigma
from .certificate import ContractionCertificate, Guarantee
from .dissipation import ACTIVATIONS, STRUCTURES, Dissipation
from .heads import ConditionHead, PlainResidual

UNSTRUCTURED = Guarantee(
    "the Euclidean norm", None, None, None, None, None, "A plain MLP has no structure to prove it from."
)


class ViscousResidual(nn.Module):
    """The parts of a residual and their sum, for models whose config has its options; exactly zero at the start.

    The centre m and the forcing g never see the state, so the Jacobian is that of gate(t) mu.
    """

    config: Any
    dissipation: Dissipation
    head: ConditionHead
    plain: PlainResidual

    def add_parts(self) -> None:
        """Make the networks the config asks for.  Raises: ValueError for options that do not exist or do not go together."""
        config = self.config
        _check_options(config)
        size, labels, vector = math.prod(config.event_shape), config.get("num_classes", 0), config.condition_dim
        if config.structure == "mlp":
            self.plain = PlainResidual(size, labels, vector, config.hidden_dim)
            return
        dissipation = STRUCTURES[config.structure]
        self.dissipation = dissipation(size, config.activation, config.hidden_dim, config.num_terms, config.rank)
        self.head = ConditionHead(2 * size + self.dissipation.num_biases, labels, vector)

    def gate(self, t: Tensor) -> Tensor:
        """relu((t - t_c) / (1 - t_c)), or 1 without a gate: (batch,) -> (batch,)."""
        start = self.config.gate_start
        return torch.relu((t - start) / (1 - start)) if start else torch.ones_like(t)

    @property
    def gate_integral(self) -> float:
        """The integral of the gate over [0, 1]: (1 - t_c) / 2, or 1 without a gate."""
        return (1 - self.config.gate_start) / 2 if self.config.gate_start else 1.0

    def certified(
        self, base_expansion: float | None = None, base_lipschitz: float | None = None
    ) -> ContractionCertificate:
        """What is proven, and with the rates of the base what follows for the whole flow."""
        wiring = self.config.get("wiring", "in_loop")
        guarantee = UNSTRUCTURED if self.config.structure == "mlp" else self.dissipation.guarantee()
        return ContractionCertificate(
            structure=self.config.structure,
            wiring=wiring,
            viscosity=guarantee,
            gate_integral=self.gate_integral,
            speed=2 if wiring == "cascade" else 1,
            base_expansion=base_expansion,
            base_lipschitz=base_lipschitz,
        )

    def residual(self, sample: Tensor, timestep: Tensor, labels: Tensor | None, vector: Tensor | None) -> Tensor:
        """What is added to the velocity, never under autocast.

        Args: `sample`: (batch, *event_shape); `timestep`: (batch,), 1000 sigma; `labels`: (batch,); `vector`: (batch, condition_dim); both None
        where the config has none.  Returns: (batch, *event_shape) in the dtype of the parameters; untrained it is +0.0 (from g, whatever the sign
        of the zero of mu).
        """
        t = t_from_sigma(sigma_from_timestep(timestep))
        with torch.autocast(sample.device.type, enabled=False):
            if self.config.structure == "mlp":
                x = sample.flatten(1).to(self.plain.output.weight.dtype)
                return self.plain(x, t, labels, vector).reshape(sample.shape)
            x = sample.flatten(1).to(self.head.output.weight.dtype)
            sizes = [x.shape[1], x.shape[1], self.dissipation.num_biases]
            centre, forcing, bias = self.head(timestep, labels, vector).split(sizes, dim=1)
            gate = self.gate(t)[:, None].to(x.dtype)
            return (gate * self.dissipation(x - centre, bias) + forcing).reshape(sample.shape)


def _check_options(config: Any) -> None:
    wiring = config.get("wiring", "in_loop")
    choices = (
        ("structure", config.structure, (*STRUCTURES, "mlp")),
        ("wiring", wiring, ("in_loop", "cascade")),
        ("activation", config.activation, tuple(ACTIVATIONS)),
    )
    for name, value, accepted in choices:
        if value not in accepted:
            raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(accepted)}.")
    for name in ("hidden_dim", "num_terms", "rank"):
        if config[name] < 1:
            raise ValueError(f"{name} must be at least 1, got {config[name]}.")
    if not 0 <= config.gate_start < 1:
        raise ValueError(f"gate_start must lie in [0, 1), got {config.gate_start}.")
    if config.gate_start and (wiring == "cascade" or config.structure == "mlp"):
        raise ValueError(
            "a gate is for viscosity in the loop; set gate_start=0 with wiring='cascade' or structure='mlp'."
        )
