"""Training under worse sensors: what a step sees is a function of the seed and the step, for policies only."""

import pytest
import torch
from robots import demonstrations
from tiny import network, toy
from tiny_policies import pusht_policy

from hf_flowft import FlowMatchingObjective, FlowTrainer, RobotConfig, load_robot, write_lerobot
from hf_flowft.couplings import Shard
from hf_flowft.environments import augment, parse_corruptions
from hf_flowft.randomness import keyed_generator
from hf_flowft.training import EvalConfig, TrainConfig
from hf_flowft.training.batches import Augmentation, ConditionDropout, SampleOrder, drawn_batches, training_rows
from hf_flowft.training.checkpoint import list_checkpoints, load_tensors
from hf_flowft.training.resume import check_same_run

TEXT = "gaussian:0.1+drop:0.2"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Windows of demonstrations: states of 2 and 16 numbers, twice."""
    folder = tmp_path_factory.mktemp("augmented")
    pusht_policy(folder / "demonstrations")
    return load_robot(RobotConfig(path=str(folder / "demonstrations")))


def batch_of(data, step, augmentation=None, dropout=None, shard=Shard()):
    """The batch of a step."""
    rows = training_rows(data)
    order = SampleOrder(len(rows), 8, 0, shard)
    return next(drawn_batches(rows, order, FlowMatchingObjective(), step, 0, dropout, augmentation))


def test_a_step_sees_its_own_noise(data):
    """That of `augment`, keyed by the step; chunks, noise and times are those of a run without it."""
    plain, noisy = (batch_of(data, 3, augmentation) for augmentation in (None, Augmentation(TEXT, data)))
    sizes = {"observation_horizon": 2, "sensor_sizes": [2, 16]}
    generator = keyed_generator(0, "augment", 3)
    expected = augment(plain.condition["condition"], parse_corruptions(TEXT), generator, **sizes)
    assert torch.equal(noisy.condition["condition"], expected)
    assert not torch.equal(expected, plain.condition["condition"])
    for name in ("x_0", "x_1", "x_t", "t"):
        assert torch.equal(getattr(plain, name), getattr(noisy, name))
    other = batch_of(data, 4, Augmentation(TEXT, data)).condition["condition"]
    assert not torch.equal(other, expected)


def test_processes_see_their_part_of_it(data):
    whole = batch_of(data, 1, Augmentation(TEXT, data)).condition["condition"]
    parts = [batch_of(data, 1, Augmentation(TEXT, data), shard=Shard(rank, 2)) for rank in range(2)]
    assert torch.equal(torch.cat([part.condition["condition"] for part in parts]), whole)


def test_no_observation_stays_none(data):
    """A dropped condition is its null value, without noise."""
    dropout = ConditionDropout(0.5, {"condition": 7.0})
    condition = batch_of(data, 0, Augmentation(TEXT, data), dropout).condition["condition"]
    assert (condition == 7.0).all(dim=1).any()


def test_pictures_too(tmp_path):
    """Every camera, in grey levels; the number of the task stays."""
    episodes = demonstrations([9, 9, 9, 9], images=True)
    write_lerobot(tmp_path / "made", episodes, fps=10, task="move")
    config = RobotConfig(path=str(tmp_path / "made"), cameras=["observation.image"], task_conditioning=True)
    seen = load_robot(config)
    batch = seen.rows("train")
    corrupted = Augmentation("salt_pepper:0.5", seen)(batch, keyed_generator(0), Shard()).condition
    changed = corrupted["image_image"] != batch.condition["image_image"]
    assert 0.3 < changed.float().mean() < 0.6
    assert corrupted["image_image"].dtype == torch.uint8
    assert torch.equal(corrupted["class_labels"], batch.condition["class_labels"])


def test_a_resumed_run_sees_the_same(data, tmp_path):
    """Bit for bit the weights of the uninterrupted run."""

    def train(folder, **options):
        settings = TrainConfig(batch_size=8, augment=TEXT, **options)
        evaluation = EvalConfig(every=100, num_repeats=1, max_samples=8, metric="held_out_loss")
        model = network(data, condition_dim=36)
        trainer = FlowTrainer(model, data, FlowMatchingObjective(), settings, evaluation, folder)
        trainer.train()
        return load_tensors(list_checkpoints(folder)[-1], "weights")

    whole = train(tmp_path / "whole", num_steps=4)
    train(tmp_path / "parts", num_steps=2)
    resumed = train(tmp_path / "parts", num_steps=4, resume_from_checkpoint="latest")
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


def test_older_checkpoints_had_none():
    """They do not name the setting; a run with corruptions is another one."""
    check_same_run({"train": {"seed": 0}}, {"train": {"seed": 0, "augment": ""}}, "folder")
    with pytest.raises(ValueError, match=r"train.augment:  -> drop:0.1"):
        check_same_run({"train": {"seed": 0}}, {"train": {"seed": 0, "augment": "drop:0.1"}}, "folder")


def test_what_cannot_be_augmented(data):
    """Other data, other words, and actions."""
    with pytest.raises(ValueError, match=r"no demonstrations of one \(data.name robot\)"):
        FlowTrainer(network(toy()), toy(), FlowMatchingObjective(), TrainConfig(augment=TEXT))
    with pytest.raises(ValueError, match="did you mean 'gaussian'"):
        TrainConfig(augment="gauss:0.1")
    with pytest.raises(ValueError, match="it can't augment observations"):
        Augmentation("delay:2", data)
