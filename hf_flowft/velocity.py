"""The one door between networks and the mathematics: any model becomes a velocity v(x, t, **condition) in the papers' convention."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal, get_args

import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from .conventions import sigma_from_t, timestep_from_sigma, velocity_from_output
from .solvers import Field

Convention = Literal["diffusers", "flow"]


class Sized(ABC):
    """A network whose samples may fill only a part of their tensor, as their condition says."""

    @abstractmethod
    def without_padding(self, x: Tensor, **condition: Tensor) -> Tensor:
        """Samples (batch, *event) with zeros outside of their sizes."""


class Velocity(nn.Module):
    """A network as a velocity field, v = dx/dt with t = 0 noise and t = 1 data.

    `convention` says how the network speaks: `diffusers`: `model(sample, timestep, **condition)` returns noise - data at timestep
    1000 (1 - t) (every flow model of diffusers); `flow`: `model(x, t, **condition)` returns v itself with `t`: (batch,). By
    default a diffusers `ModelMixin` speaks `diffusers` and any other `nn.Module` speaks `flow`.
    """

    def __init__(self, model: nn.Module, convention: Convention | None = None):
        super().__init__()
        if convention not in (None, *get_args(Convention)):
            raise ValueError(f"unknown convention {convention!r}; choose one of {', '.join(get_args(Convention))}.")
        self.model = model
        self.convention = convention or ("diffusers" if isinstance(model, ModelMixin) else "flow")

    def forward(self, x: Tensor, t: float | Tensor, **condition: Tensor) -> Tensor:
        """v(x, t | condition).

        Args: `x`: (batch, *event); `t`: a float, a 0-dim tensor or (batch,), in [0, 1]; `condition`: tensors of (batch, ...).
        Returns: (batch, *event), in the dtype of `x`.  Raises: ValueError when the model's output has another shape than `x`, or
        `t` is neither one number nor one a sample.
        """
        dtype = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), x.dtype)
        sample = x if x.dtype == dtype else x.to(dtype)
        if self.convention == "diffusers":
            timestep = _rows(timestep_from_sigma(sigma_from_t(_float32(t))), x)
            v = velocity_from_output(self.model(sample, timestep=timestep, return_dict=False, **condition)[0])
        else:
            v = self.model(sample, _rows(_float32(t), x), **condition)
        if not isinstance(v, Tensor):
            raise ValueError(
                f"a velocity is one tensor, but the model returns a {type(v).__name__}: wrap it, or return v."
            )
        if v.shape != x.shape:
            raise ValueError(
                f"a velocity has the shape of its sample, but the model maps {tuple(x.shape)} to {tuple(v.shape)}; "
                "check its output channels (models that also predict a variance are not flow models)."
            )
        return v.to(x.dtype)

    def without_padding(self, x: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """Samples (batch, *event) with zeros outside of their sizes, where the network knows of sizes; otherwise as they are."""
        return self.model.without_padding(x, **condition) if isinstance(self.model, Sized) else x

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    def field(self, condition: dict[str, Tensor] | None = None) -> Field:
        """The velocity under a fixed condition, as the solvers take it: field(x, t)."""
        fixed = condition or {}
        return lambda x, t: self(x, t, **fixed)


def _float32(t: float | Tensor) -> float | Tensor:
    """Time never coarser than float32, whatever the precision of the samples; Python floats stay double."""
    return t if not isinstance(t, Tensor) or t.dtype == torch.float64 else t.float()


def _rows(t: float | Tensor, x: Tensor) -> Tensor:
    """Time as (batch,) float32 on the device of x."""
    if isinstance(t, Tensor):
        if t.ndim and t.shape != x.shape[:1]:
            raise ValueError(
                f"t must have shape () or ({x.shape[0]},) for x of shape {tuple(x.shape)}, got {tuple(t.shape)}."
            )
        return t.to(x.device, torch.float32).expand(x.shape[0])
    return torch.full((x.shape[0],), t, dtype=torch.float32, device=x.device)


class FrozenVelocity(Velocity):
    """A frozen copy of a network: always in eval mode (dropout off), no gradients, whatever happens around it."""

    def __init__(self, model: nn.Module, convention: Convention | None = None):
        super().__init__(copy.deepcopy(model), convention)
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> FrozenVelocity:
        """Stays in eval mode."""
        return super().train(False)

    def forward(self, x: Tensor, t: float | Tensor, **condition: Tensor) -> Tensor:
        """As `Velocity`, without gradients."""
        with torch.no_grad():
            return super().forward(x, t, **condition)


class SharedVelocity(FrozenVelocity):
    """The frozen base that is still inside of the network being trained (under adapters, say): no second copy.

    Args: `model`: the network; `base`: a context manager in which it computes what the base does.
    The network is not registered here: its tensors belong to whoever trains it, which also moves it to its device. While a call runs, every
    use of the network is one of the base, so calls must not run in another thread than the training.
    """

    def __init__(
        self,
        model: nn.Module,
        base: Callable[[], AbstractContextManager[None]],
        convention: Convention | None = None,
    ):
        super().__init__(nn.Identity(), convention)
        self.convention = convention or Velocity(model).convention
        del self.model
        self.__dict__.update(model=model, _base=base)

    def forward(self, x: Tensor, t: float | Tensor, **condition: Tensor) -> Tensor:
        """As `FrozenVelocity`; the network is in eval mode meanwhile, and as it was afterwards."""
        training = [module for module in self.model.modules() if module.training]
        self.model.eval()
        try:
            with self.__dict__["_base"]():
                return super().forward(x, t, **condition)
        finally:
            torch.clear_autocast_cache()  # before PyTorch 2.10, what autocast has cast without gradients would serve the training
            for module in training:
                module.training = True


class ParkedVelocity(FrozenVelocity):
    """A frozen copy that stays on a device and in a precision of its own, whatever becomes of who asks it: samples come to it, answers go back.

    Args: `model`; `device`, `dtype`: of the copy, None for the model's.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        convention: Convention | None = None,
    ):
        super().__init__(model, convention)
        parked = self.model.to(device=device, dtype=dtype)
        del self.model
        self.__dict__["model"] = parked  # not registered: who moves or saves this module passes it by

    def forward(self, x: Tensor, t: float | Tensor, **condition: Tensor) -> Tensor:
        """As `FrozenVelocity`; the answer is where `x` is, and in its dtype."""
        time = t.to(self.device) if isinstance(t, Tensor) else t
        given = {key: value.to(self.device) for key, value in condition.items()}
        return super().forward(x.to(self.device), time, **given).to(x.device)


class GuidedVelocity(Velocity):
    """Classifier-free guidance: v = v(null) + scale (v(condition) - v(null)), both in one forward pass of twice the batch.

    `null_condition`: for each condition the number, or the tensor of one row, that means "none" (Ho & Salimans 2022).
    """

    def __init__(self, velocity: Velocity, scale: float, null_condition: dict[str, Any]):
        super().__init__(velocity.model, velocity.convention)
        self.scale = scale
        self.null_condition = null_condition

    def forward(self, x: Tensor, t: float | Tensor, **condition: Tensor) -> Tensor:
        """The guided velocity; shapes as `Velocity`."""
        missing = set(condition) - set(self.null_condition)
        if missing:
            raise ValueError(f"guidance needs a null value for {sorted(missing)}; the model was trained without one.")
        null = {key: torch.as_tensor(self.null_condition[key]).to(c).expand_as(c) for key, c in condition.items()}
        both = {key: torch.cat([null[key], c]) for key, c in condition.items()}
        t_both = torch.cat([t, t]) if isinstance(t, Tensor) and t.ndim else t
        without, with_condition = super().forward(torch.cat([x, x]), t_both, **both).chunk(2)
        return without + self.scale * (with_condition - without)
