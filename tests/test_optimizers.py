"""AdamW with moments in eight bits: small in memory, near to AdamW, and resumed to the bit."""

import sys

import pytest
import torch
from test_resume import assert_same
from tiny import network, toy

from hf_flowft import EvalConfig, FlowMatchingObjective, FlowTrainer, TrainConfig
from hf_flowft.training.checkpoint import checkpoint_path
from hf_flowft.training.optimizers import make_optimizer

DATA = toy()
EVAL = EvalConfig(every=6, num_repeats=2, select_num_steps=[1], max_samples=16)
EIGHT = TrainConfig(optimizer="adamw_8bit", num_steps=6, batch_size=16, checkpoint_every=3, log_every=1)


def trainer(folder, checkpoint=""):
    """Six steps of a network with tensors large enough for eight bits, with a checkpoint after the third."""
    config = TrainConfig(**{**vars(EIGHT), "resume_from_checkpoint": str(checkpoint)})
    return FlowTrainer(network(DATA, hidden_dim=128), DATA, FlowMatchingObjective(), config, EVAL, folder)


def test_moments_take_a_byte(tmp_path):
    """Of every large tensor both moments are whole numbers of a byte, one for each weight; small tensors keep theirs in full."""
    pytest.importorskip("bitsandbytes")
    trained = trainer(tmp_path / "run")
    trained.train()
    kept = trained.optimizer.state
    assert {p.numel() >= 4096: state["state1"].dtype for p, state in kept.items()} == {
        True: torch.uint8,
        False: torch.float32,
    }
    assert all(state[name].numel() == p.numel() for p, state in kept.items() for name in ("state1", "state2"))


def test_its_first_steps_are_those_of_adamw(generator):
    """With learning rate .01, a hundredth of that off after five steps of a smooth loss."""
    pytest.importorskip("bitsandbytes")
    start = torch.randn(64, 128, generator=generator)
    ends = []
    for name in ("adamw", "adamw_8bit"):
        p = torch.nn.Parameter(start.clone())
        optimizer = make_optimizer(TrainConfig(optimizer=name, learning_rate=0.01), [p], is_divided=False)
        for _ in range(5):
            optimizer.zero_grad()
            (p - 3).square().sum().backward()
            optimizer.step()
        ends.append(p.detach())
    moved = (ends[0] - start).abs().mean()
    assert (ends[0] - ends[1]).abs().mean() < 0.02 * moved
    assert moved > 0.04


def test_a_resumed_run_is_the_whole_one(tmp_path):
    """From the checkpoint after three steps: weights, averages and losses to the bit."""
    pytest.importorskip("bitsandbytes")
    trainer(tmp_path / "whole").train()
    trainer(tmp_path / "resumed", checkpoint_path(tmp_path / "whole", 3)).train()
    assert_same(tmp_path / "whole", tmp_path / "resumed")


def test_where_it_is_not_there(monkeypatch):
    """Without bitsandbytes, or with a model divided over processes: said, with what to do."""
    parameters = [torch.nn.Parameter(torch.zeros(2))]
    with pytest.raises(ValueError, match=r"not written for FSDP.*use adamw"):
        make_optimizer(EIGHT, parameters, is_divided=True)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(ValueError, match="needs bitsandbytes: pip install bitsandbytes"):
        make_optimizer(EIGHT, parameters, is_divided=False)
