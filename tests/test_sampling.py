"""Drawing samples in batches changes nothing but the memory."""

import pytest
import torch
from closed_forms import GaussianFlow
from torch import nn

from hf_flowft.sampling import draw_rows, generate
from hf_flowft.solvers import integrate, uniform_times
from hf_flowft.velocity import Velocity


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("trajectory", [False, True])
def test_samples_do_not_depend_on_the_batch_size(batch_size, trajectory, generator):
    """The whole at once, or in batches, with the conditions of each sample."""
    velocity, times = Velocity(GaussianFlow(1.0, 0.5)), uniform_times(4)
    x_0, condition = torch.randn(7, 2, generator=generator), {"class_labels": torch.arange(7) % 3}
    whole = integrate(velocity.field(condition), x_0, times, "heun", trajectory=True)
    found = generate(velocity, x_0, condition, times, "heun", batch_size=batch_size, trajectory=trajectory)
    torch.testing.assert_close(found, (whole.trajectory if trajectory else whole.x).detach())
    assert not found.requires_grad


def test_every_module_gets_its_mode_back(generator):
    """Sampling is in eval mode; afterwards what trained trains, and what was frozen in eval mode stays there."""

    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.active, self.frozen = nn.Dropout(0.5), nn.BatchNorm1d(2).eval()

        def forward(self, x, t):
            return self.frozen(self.active(x))

    velocity = Velocity(Noisy())
    x_0 = torch.randn(5, 2, generator=generator)
    first, second = (generate(velocity, x_0, {}, uniform_times(2)) for _ in range(2))
    assert torch.equal(first, second)
    assert (velocity.training, velocity.model.active.training, velocity.model.frozen.training) == (True, True, False)


@pytest.mark.parametrize("num_rows", [3, 10, 25])
def test_rows_are_drawn_in_whole_passes(num_rows, generator):
    """Each row of the table is used equally often, give or take one, and the columns stay together."""
    rows = draw_rows({"a": torch.arange(10), "b": 2 * torch.arange(10)}, num_rows, generator)
    counts = rows["a"].bincount(minlength=10)
    assert len(rows["a"]) == num_rows
    assert counts.max() - counts.min() <= 1
    assert torch.equal(rows["b"], 2 * rows["a"])
    assert draw_rows({}, num_rows, generator) == {}
