"""Training times follow their densities; temperatures start and end exactly where they say."""

import math
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from scipy import stats
from scipy.special import logit

from hf_flowft.conventions import shift_t
from hf_flowft.times import TemperatureName, TemperatureSchedule, TimeDensity

SCHEDULES = pytest.mark.parametrize("name", get_args(TemperatureName))


@pytest.mark.parametrize(
    ("density", "distribution"),
    [
        (TimeDensity(), stats.uniform().cdf),
        (TimeDensity("logit_normal", mean=0.5, std=0.7), lambda t: stats.norm(0.5, 0.7).cdf(logit(t))),
        (TimeDensity("beta", a=1.0, b=1.5), stats.beta(1.0, 1.5).cdf),
        (TimeDensity("logit_normal", shift=3.0), lambda t: stats.norm(-math.log(3), 1).cdf(logit(t))),
    ],
    ids=["uniform", "logit_normal", "beta", "shifted"],
)
def test_times_follow_their_density(density, distribution, generator):
    """Kolmogorov-Smirnov against SciPy; a shift s moves the mean of a logit by -log s."""
    t = density.sample(20_000, generator).double().numpy()
    assert (t.min() >= 0, t.max() <= 1) == (True, True)
    assert stats.kstest(np.clip(t, 1e-9, 1 - 1e-9), distribution).pvalue > 1e-3


@pytest.mark.parametrize("name", ["uniform", "logit_normal", "beta"])
def test_shift_moves_the_same_draws(name, generator):
    """The shifted density is the shift of the density, number by number, and s > 1 leans to the noise."""
    state = generator.get_state()
    plain = TimeDensity(name).sample(100, generator)
    generator.set_state(state)
    shifted = TimeDensity(name, shift=3.0).sample(100, generator)
    assert (shifted == shift_t(plain, 3.0)).all()
    assert (shifted <= plain).all()


@pytest.mark.parametrize(
    "change", [{"std": 0.0}, {"a": -1.0}, {"b": math.nan}, {"shift": -1.0}, {"name": "normal"}], ids=str
)
def test_bad_densities_are_refused(change):
    """Parameters that are not positive, and unknown names, are named."""
    with pytest.raises(ValueError, match="|".join(str(value) for value in change.values())):
        TimeDensity(**change)


@SCHEDULES
@pytest.mark.parametrize(
    ("start", "final", "end"), [(19.0, 0.0, 0.8), (3.0, 0.5, 1.0), (2.0, 0.001, 0.5), (1.0, 1.0, 0.8)]
)
def test_temperatures_start_and_end_exactly(name, start, final, end):
    """tau(0) is the initial and tau(1) the final temperature to the last bit, held from `end` on."""
    schedule = TemperatureSchedule(name, initial_temperature=start, final_temperature=final, end=end)
    assert schedule.temperature(0.0) == start
    assert [schedule.temperature(s) for s in (end, (1 + end) / 2, 1.0)] == [final] * 3
    assert schedule.alpha(1.0) == 1 / (1 + final)


@SCHEDULES
@pytest.mark.parametrize("final", [0.0, 0.001, 0.5])
def test_temperatures_never_rise(name, final):
    """Cooling is monotone, so alpha, the weight of the target, never falls."""
    schedule = TemperatureSchedule(name, initial_temperature=9.0, final_temperature=final)
    temperatures = [schedule.temperature(s) for s in np.linspace(0, 1, 401)]
    assert (np.diff(temperatures) <= 1e-12).all()
    assert min(temperatures) == final


@pytest.mark.parametrize(
    ("name", "quarter"),
    [
        ("linear", 9 * 0.75),
        ("cosine", 9 * (1 + math.cos(math.pi / 4)) / 2),
        ("exponential", 9 * (0.01 / 9) ** 0.25),
        ("alpha_linear", 1 / (0.1 + 0.9 * 0.25) - 1),
        ("alpha_cosine", 1 / (0.1 + 0.9 * (1 - math.cos(math.pi / 4)) / 2) - 1),
        ("step", 9 * 0.75),
    ],
)
def test_temperatures_follow_their_formula(name, quarter):
    """tau a quarter of the way down from 9 to 0."""
    assert TemperatureSchedule(name, initial_temperature=9.0, end=0.8).temperature(0.2) == pytest.approx(quarter)


def test_alpha_linear_is_linear_in_alpha():
    """Equal steps of training move the target by equal parts: the second difference of alpha is zero."""
    schedule = TemperatureSchedule("alpha_linear", initial_temperature=19.0, end=1.0)
    alphas = [schedule.alpha(s) for s in np.linspace(0, 1, 41)]
    assert alphas[0] == pytest.approx(0.05)
    np.testing.assert_allclose(np.diff(alphas, 2), 0, atol=1e-12)


def test_step_has_its_number_of_stages():
    """tau is piecewise constant with `num_stages` values, equally spaced from the initial to the final one."""
    schedule = TemperatureSchedule("step", initial_temperature=4.0, num_stages=5)
    assert sorted({schedule.temperature(s) for s in np.linspace(0, 1, 1001)}) == [0.0, 1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"final_temperature": -1.0}, "final_temperature must be a number >= 0, got -1"),
        ({"initial_temperature": math.inf}, "must be finite"),
        ({"initial_temperature": 1.0, "final_temperature": 2.0}, "at least final_temperature, got 1.0 and 2.0"),
        ({"end": 0.0}, "0 < end <= 1"),
        ({"end": math.nan}, "0 < end <= 1"),
        ({"num_stages": 1}, "num_stages >= 2"),
        ({"name": "quadratic"}, "TemperatureSchedule.name must be one of linear, cosine, .* got 'quadratic'"),
    ],
    ids=str,
)
def test_bad_schedules_are_refused(change, named):
    """What cannot be annealed is named, with what is accepted."""
    with pytest.raises(ValueError, match=named):
        replace(TemperatureSchedule(), **change)
