"""Peak memory of a gradient, and of a process."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..conventions import time_grid
from ..gradients import GradientMode, solve
from ..velocity import Velocity
from .bench_tools import small_unet


def reconstruction_gradient(model: nn.Module, x_0: Tensor, num_steps: int, mode: GradientMode) -> Tensor:
    """The gradient of the mean square of an Euler solve's end in the parameters of the model, flat: (number of parameters,)."""
    model.zero_grad()
    times, parameters = time_grid(num_steps, 1.0), list(model.parameters())
    solve(Velocity(model).field(), x_0, times, gradient=mode, parameters=parameters).square().mean().backward()
    return torch.cat([p.grad.flatten() for p in parameters])


def peak_memory(mode: GradientMode, counts: tuple[int, ...], quick: bool) -> list[float] | None:
    """Peak resident MB over the start of this process after a gradient through each number of steps, in increasing order.

    Runs in a process of its own. Returns None where the system does not tell (only Linux does).
    """
    torch.set_num_threads(1)
    model, x_0 = small_unet(quick), torch.randn(16, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model(x_0[:1], 0)  # the libraries are loaded
    start = memory_of_this_process()
    if start is None:
        return None
    peaks = []
    for count in counts:
        reconstruction_gradient(model, x_0, count, mode)
        peaks.append(memory_of_this_process("VmHWM:") - start)
    return peaks


def memory_of_this_process(key: str = "VmRSS:") -> float | None:
    """Resident MB now, or with "VmHWM:" at their highest; None where the system does not tell (only Linux does)."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((float(line.split()[1]) / 1024 for line in lines if line.startswith(key)), None)
