"""Rollouts on a toy whose outcome is known by hand, and on Push-T: windows, horizons, noise, batches and processes change what they should."""

import importlib.util
import math
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from hf_flowft.environments import (
    action_jerk,
    expert_policy,
    film,
    hold_still_policy,
    initial_seeds,
    random_policy,
    rollout,
    write_video,
)
from hf_flowft.environments.base import Step
from hf_flowft.environments.episode import Settings
from hf_flowft.environments.fleet import ProcessFleet
from hf_flowft.environments.known import ENVIRONMENTS
from hf_flowft.results import changes

needs_pusht = pytest.mark.skipif(
    importlib.util.find_spec("gym_pusht") is None, reason="gym_pusht is not installed: pip install hf_flowft[policy]"
)


class Toy:
    """A point at x, which starts at the seed and moves by the action; the reward is x, and 10 is success."""

    name, fps, max_steps, success, action_dim = "toy", 10, 6, "x is 10 or more", 1
    action_low, action_high = np.array([-2.0], np.float32), np.array([2.0], np.float32)
    observation_shapes = {"x": (1,)}

    def reset(self, seed):
        self.x = float(seed)
        return {"x": np.array([self.x], np.float32)}

    def step(self, action):
        self.x += float(action[0])
        done = self.x >= 10
        return Step({"x": np.array([self.x], np.float32)}, self.x, done, {"success": done})

    def hold_action(self):
        return np.zeros(1, np.float32)

    def render(self):
        return np.full((8, 9, 3), 20 * int(self.x), np.uint8)

    def close(self):
        pass


@pytest.fixture
def toy(monkeypatch):
    """The toy under the name "toy"."""
    monkeypatch.setitem(ENVIRONMENTS, "toy", Toy)


class Script:
    """A policy that notes what it sees and moves by 1 a step, or by draws from the generators."""

    def __init__(self, action_horizon=2, noisy=False):
        self.action_horizon, self.noisy, self.windows = action_horizon, noisy, []

    def __call__(self, observations, generators):
        self.windows.append(observations["x"].copy())
        assert len(generators) == len(observations["x"])
        if not self.noisy:
            return np.ones((len(generators), self.action_horizon, 1))
        return np.stack([torch.randn(self.action_horizon, 1, generator=g).numpy() for g in generators])


def test_outcomes_by_hand(toy):
    """From 7 success comes in the third step and ends the episode; from 0 the six steps of the environment end at 6."""
    result = rollout(Script(), "toy", [7, 0], action_horizon=2)
    assert result.success.tolist() == [True, False]
    assert result.max_reward.tolist() == result.final_reward.tolist() == [10, 6]
    assert result.steps.tolist() == [3, 6]
    assert math.isnan(result.jerk[0])
    assert result.jerk[1] == 0
    assert result.call_sizes.tolist() == [2, 2, 1]


def test_summary(toy):
    """Means, and standard errors s / sqrt(n), in the form of results files; without an episode of four steps, no jerk."""
    summary = rollout(Script(), "toy", [7, 0], action_horizon=2).summary()
    assert summary["success"] == {
        **{"value": 0.5, "stderr": 0.5, "repeats": 2, "values": [1.0, 0.0]},
        **{"count": 2, "direction": "higher"},
    }
    assert (summary["max_reward"]["value"], summary["max_reward"]["stderr"]) == pytest.approx((8, 2))
    assert summary["jerk"]["count"] == 1
    assert "jerk" not in rollout(Script(), "toy", [9], action_horizon=2).summary()
    same = changes(summary, summary)
    assert {change["verdict"] for change in same.values()} == {"unclear"}


def test_windows_and_horizons(toy):
    """The first window repeats the first observation; later ones hold the last observations, oldest first, a chunk apart."""
    policy = Script(action_horizon=2)
    rollout(policy, "toy", [0], observation_horizon=3, action_horizon=2)
    assert [window.ravel().tolist() for window in policy.windows] == [[0, 0, 0], [0, 1, 2], [2, 3, 4]]


def test_slots_take_the_next_seed(toy):
    """With one environment for three episodes the outcomes are those of three environments."""
    one, three = (rollout(Script(), "toy", [9, 0, 5], action_horizon=2, num_envs=n) for n in (1, 3))
    assert one.steps.tolist() == three.steps.tolist() == [1, 6, 5]
    assert one.call_sizes.max() == 1


def test_noise_belongs_to_the_episode(toy):
    """An episode goes the same way alone, in company, and in another place; another seed of the rollout goes another way."""

    def ends(seeds, **options):
        result = rollout(Script(noisy=True), "toy", seeds, action_horizon=2, **options)
        return dict(zip(seeds, result.final_reward, strict=True))

    together = ends([0, 1, 2, 3])
    assert ends([2]) == {2: together[2]}
    assert ends([3, 1, 0, 2], num_envs=2) == together
    assert ends([0, 1, 2, 3], seed=1)[0] != together[0]


def test_corruptions_reach_the_policy_and_the_actions(toy):
    """A dropped sensor reads its mean while the point moves on; actions three steps late are three steps of standing still."""
    policy = Script(action_horizon=2)
    units = {"x": {"mean": [3.5], "std": [1.0]}}
    result = rollout(policy, "toy", [0], action_horizon=2, corruption="drop:1+delay:3", normalisation=units)
    assert {window.item() for windows in policy.windows for window in windows.ravel()} == {3.5}
    assert result.final_reward.tolist() == [3]
    with pytest.raises(ValueError, match="normalisation"):
        rollout(policy, "toy", [0], action_horizon=2, corruption="gaussian:0.1")


def test_jerk_in_closed_form():
    """The third difference of c t^3 is 6 c; in rollouts the unit is half the range of actions."""
    t = np.arange(10.0)[:, None]
    assert action_jerk(0.5 * t**3) == pytest.approx(9)
    assert action_jerk(np.hstack([t**3, t**2])) == pytest.approx(36)


def test_jerk_in_units_of_the_range(toy):
    """Actions 1, -1, 1, -1 ... have third differences of 8; halves of the range (2) make 4, squared 16."""

    def zigzag(observations, generators):
        return np.tile([[[1.0], [-1.0]]], (len(generators), 1, 1))

    assert rollout(zigzag, "toy", [0], action_horizon=2).jerk.tolist() == [16]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seeds": []}, "seeds"),
        ({"seeds": [1, 1]}, "different"),
        ({"max_steps": 0}, "max_steps"),
        ({"num_envs": 0}, "num_envs"),
        ({"record": [2]}, "record"),
        ({"action_horizon": 3}, r"shape \(1, 2, 1\) to toy, expected .* = \(1, 3, 1\)"),
        ({"env_name": "toi"}, "did you mean 'toy'"),
    ],
)
def test_options_that_make_no_sense(toy, options, words):
    """Each is named."""
    arguments = {"env_name": "toy", "seeds": [0], "action_horizon": 2} | options
    with pytest.raises(ValueError, match=words):
        rollout(Script(), **arguments)


def test_actions_that_are_not_finite_are_placed(toy):
    """The error names the episode and the step."""

    def broken(observations, generators):
        actions = np.ones((len(generators), 2, 1))
        actions[observations["x"][:, -1, 0] == 4, 1] = np.nan
        return actions

    with pytest.raises(ValueError, match="episode of seed 2, step 3: the action for toy is not finite"):
        rollout(broken, "toy", [1, 2], action_horizon=2)


def test_the_best_and_the_worst_are_filmed(toy, tmp_path):
    """good.gif is the episode of the highest reward, bad.gif that of the lowest; of a single one there is one film."""
    result = rollout(Script(), "toy", [3, 7, 0], action_horizon=2)
    paths = film(Script(), result, tmp_path, 10, action_horizon=2)
    assert [path.name for path in paths] == ["good.gif", "bad.gif"]
    lengths = []
    for path in paths:
        with Image.open(path) as gif:
            lengths.append(gif.n_frames)
    assert lengths == [result.steps[1] + 1, result.steps[2] + 1]
    alone = rollout(Script(), "toy", [3], action_horizon=2)
    assert [path.name for path in film(Script(), alone, tmp_path / "one", 10, action_horizon=2)] == ["good.gif"]


def test_videos(toy, tmp_path):
    """Recorded episodes have a frame for the start and each step; the gif holds them at the right speed."""
    result = rollout(Script(), "toy", [7, 0, 3], action_horizon=2, record=[0, 2])
    assert [frames.shape for frames in result.frames.values()] == [(4, 8, 9, 3), (7, 8, 9, 3)]
    assert result.frames[0][:, 0, 0, 0].tolist() == [140, 160, 180, 200]
    path = write_video(result.frames[2], tmp_path / "new" / "a.gif", fps=10)
    with Image.open(path) as gif:
        assert (gif.n_frames, gif.size, gif.info["duration"]) == (7, (9, 8), 100)
    with pytest.raises(ValueError, match=r"\.gif or \.mp4"):
        write_video(result.frames[0], tmp_path / "a.avi", fps=10)
    with pytest.raises(ValueError, match="uint8 frames"):
        write_video(result.frames[0].astype(float), tmp_path / "a.gif", fps=10)


def test_mp4(tmp_path, monkeypatch):
    """With the optional package an mp4 holds all frames; without, the error says what to install."""
    frames = np.random.default_rng(0).integers(0, 255, (12, 64, 65, 3)).astype(np.uint8)
    if importlib.util.find_spec("imageio_ffmpeg"):
        import imageio_ffmpeg

        path = write_video(frames, tmp_path / "a.mp4", fps=10)
        assert imageio_ffmpeg.count_frames_and_secs(str(path))[0] == 12
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ImportError, match=r"pip install hf_flowft\[policy\]"):
        write_video(frames, tmp_path / "b.mp4", fps=10)


@needs_pusht
def test_baselines_on_pusht():
    """Holding still moves nothing: the reward stays that of the start; random actions are drawn in range and do not succeed in 10 steps."""
    seeds = initial_seeds("test", 3)
    still = rollout(hold_still_policy("pusht"), "pusht", seeds, max_steps=10)
    assert still.max_reward.tolist() == still.final_reward.tolist()
    assert still.jerk == pytest.approx(np.zeros(3), abs=1e-9)
    wild = rollout(random_policy("pusht"), "pusht", seeds, max_steps=10)
    assert not wild.success.any()
    assert (wild.jerk > 1).all()


@needs_pusht
@pytest.mark.slow
def test_the_planner_as_a_policy_succeeds():
    """Replanning every eight steps from what is observed reaches the goal."""
    assert rollout(expert_policy("pusht"), "pusht", initial_seeds("validation", 1)).success.all()


@needs_pusht
@pytest.mark.slow
def test_processes_change_nothing():
    """Two processes give the numbers of one to the last bit, noise and recordings included, and report errors from there."""
    units = {"observation.state": {"mean": [256.0] * 2, "std": [256.0] * 2}}
    options = {"max_steps": 20, "record": [1], "corruption": "gaussian:0.02+freeze:0.1+delay:1", "normalisation": units}
    seeds = initial_seeds("test", 5)
    noisy = hold_still_policy("pusht")  # it answers to the noisy position
    one, two = (rollout(noisy, "pusht", seeds, num_envs=4, num_processes=n, **options) for n in (1, 2))
    for name in ("success", "max_reward", "final_reward", "steps", "jerk"):
        assert np.array_equal(getattr(one, name), getattr(two, name))
    assert one.jerk.min() > 0
    assert np.array_equal(one.frames[1], two.frames[1])

    def broken(observations, generators):
        return np.full((len(generators), 8, 2), np.inf)

    with pytest.raises(ValueError, match="step 0: the action for pusht is not finite"):
        rollout(broken, "pusht", seeds, num_processes=2)


def test_a_process_that_dies_says_what_to_take_fewer_of(monkeypatch):
    """Whatever ended it, the error is one of the user's, in words the verb offers."""
    settings = Settings("pusht", 2, 8, 20, "", None, 0, frozenset())
    fleet = ProcessFleet(settings, 1)
    fleet._processes[0].kill()
    with pytest.raises(ValueError, match=r"died \(exit code -9\).*--processes.*--num-envs"):
        fleet.carry_out({0: 1})
    fleet.close()
