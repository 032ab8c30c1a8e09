"""The learning rate and the average of the weights are functions of the step, with closed forms."""

import math

import pytest
import torch
from tiny import network, toy

from hf_flowft import FlowMatchingObjective, FlowTrainer, TrainConfig
from hf_flowft.times import TemperatureSchedule
from hf_flowft.training.ema import EMA, copy_into


def test_learning_rate_is_a_function_of_the_step():
    """Closed forms; a warm-up multiplies any of them."""
    at = lambda step, **o: TrainConfig(num_steps=100, learning_rate=2.0, **o).lr_at(step)  # noqa: E731
    assert [at(s) for s in (0, 50, 99)] == [2, 2, 2]
    assert [at(s, lr_schedule="linear") for s in (0, 25, 99)] == pytest.approx([2, 1.5, 0.02])
    assert [at(s, lr_schedule="cosine") for s in (0, 50, 75)] == pytest.approx([2, 1, 1 - math.sqrt(0.5)])
    assert [at(s, lr_warmup_steps=4) for s in (0, 1, 3, 4)] == pytest.approx([0.5, 1, 2, 2])
    assert at(1, lr_schedule="linear", lr_warmup_steps=4) == pytest.approx(2 * 0.99 * 0.5)
    temperature = TemperatureSchedule(initial_temperature=9.0, end=0.5)
    alpha = [at(s, lr_schedule="alpha", temperature=temperature) for s in (0, 25, 50, 99)]
    assert alpha == pytest.approx([2 * 0.1, 2 * 0.55, 2, 2])


def test_the_learning_rate_is_used():
    """The log tells the rate each step was made with."""
    config = TrainConfig(num_steps=4, batch_size=8, log_every=1, lr_schedule="linear", learning_rate=1.0)
    run = FlowTrainer(network(toy()), toy(), FlowMatchingObjective(), config)
    run.train()
    assert [entry["lr"] for entry in run.history] == [1.0, 0.75, 0.5, 0.25]


@pytest.mark.parametrize("mode", ["constant", "warmup", "power"])
def test_averages_have_their_closed_form(mode):
    """shadow_n = sum_k (1 - d_k) prod_(j > k) d_j p_k + prod d_j p_init, with the decays of the paper's modes."""
    parameter = torch.nn.Parameter(torch.tensor([5.0]))
    ema = EMA({"p": parameter}, 0.6, mode)
    decay = {"constant": lambda k: 0.6, "warmup": lambda k: (1 + k) / (10 + k), "power": lambda k: 1 - (1 + k) ** -0.75}
    decays = [min(0.6, decay[mode](k)) for k in range(8)]
    for k in range(8):
        parameter.data.fill_(float(k))
        ema.update(k)
    weights = [(1 - decays[k]) * math.prod(decays[k + 1 :]) for k in range(8)]
    expected = sum(w * k for k, w in enumerate(weights)) + 5 * math.prod(decays)
    assert float(ema.shadow["p"]) == pytest.approx(expected, rel=1e-5)
    with ema.applied():
        assert torch.equal(parameter, ema.shadow["p"])
    assert parameter.item() == 7


def test_averages_are_float32_and_give_the_weights_back():
    """Also for a half-precision model, and when what runs under them fails."""
    parameter = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    ema = EMA({"p": parameter}, 0.999, "constant")
    parameter.data.fill_(2)
    ema.update(0)
    assert ema.shadow["p"].dtype == torch.float32
    assert float(ema.shadow["p"][0]) == pytest.approx(1.001)
    with pytest.raises(RuntimeError), ema.applied():
        raise RuntimeError
    assert (parameter == 2).all()
    with pytest.raises(ValueError, match=r"must be in \[0, 1\), got 1"):
        EMA({}, 1.0)
    for wrong in ({"q": torch.ones(3)}, {"p": torch.ones(1)}):
        with pytest.raises(ValueError, match="saved tensor"):
            copy_into({"p": parameter}, wrong)
