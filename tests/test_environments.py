"""Environments: the same start for the same seed, the simulators' own physics, the recorded human data, and experts that succeed."""

import importlib
import importlib.util
import itertools
import sys

import numpy as np
import pytest

from hf_flowft.cli import main
from hf_flowft.data.robot.lerobot import open_lerobot
from hf_flowft.environments import (
    ENVIRONMENTS,
    SEEDS,
    demonstrate,
    initial_seeds,
    make_environment,
    write_demonstrations,
)
from hf_flowft.environments.metaworld import TASKS
from hf_flowft.environments.planner_pusht import outline_point, tee_distance
from hf_flowft.environments.pusht import GOAL_POSE, TEE, tee_keypoints, tee_pose


def needs(package):
    """Skip where a package of the extra is missing."""
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed: pip install hf_flowft[policy]")


needs_pusht, needs_metaworld, needs_kitchen = needs("gym_pusht"), needs("metaworld"), needs("gymnasium_robotics")


@pytest.fixture(scope="module")
def pusht():
    """Push-T with states."""
    return make_environment("pusht")


@pytest.fixture(scope="module")
def human(shared_data):
    """The recorded human demonstrations as arrays by key, and the images of the same rows."""
    parquet = pytest.importorskip("pyarrow.parquet")
    folder = shared_data / "pusht"
    if not (folder / "lerobot_v30").is_dir():
        pytest.skip(f"no Push-T data in {folder}")
    table = parquet.read_table(folder / "lerobot_v30" / "data" / "chunk-000" / "file-000.parquet")
    keys = ("observation.state", "observation.environment_state", "action", "next.reward", "episode_index")
    return {key: np.array(table[key].to_pylist()) for key in keys} | {"folder": folder}


def equal(a, b):
    """Whether two observations are equal, bit by bit."""
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def test_splits_of_seeds_do_not_overlap():
    """What is demonstrated is never validated on, what is validated on never tested on."""
    for first, second in itertools.combinations(SEEDS.values(), 2):
        assert not set(first) & set(second)
    assert initial_seeds("test", 3, offset=5) == [100_005, 100_006, 100_007]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("tests", 3), "choose one of demonstrations, test, validation"),
        (("test", 100_001), "has 100000"),
        (("test", 0), "count=0"),
    ],
)
def test_seeds_that_do_not_exist(arguments, words):
    """The error says what there is."""
    with pytest.raises(ValueError, match=words):
        initial_seeds(*arguments)


@pytest.mark.parametrize(
    ("name", "nearest"), [("push-t", "pusht"), ("assembly", "metaworld/assembly-v3"), ("kitchn", "kitchen")]
)
def test_unknown_environments(name, nearest):
    """The error names the nearest that exists."""
    with pytest.raises(ValueError, match=f"did you mean '{nearest}'"):
        make_environment(name)


@pytest.mark.parametrize(
    ("name", "package"), [("pusht", "gym_pusht"), ("metaworld/push-v3", "metaworld"), ("kitchen", "gymnasium_robotics")]
)
def test_a_missing_simulator_says_what_to_install(name, package, monkeypatch, tmp_path, capsys):
    """One sentence with the command; on the console too."""
    for module in (
        package,
        "gym_pusht.envs.pusht",
        "metaworld.env_dict",
        "gymnasium_robotics.envs.franka_kitchen.kitchen_env",
    ):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install hf_flowft\[policy\]"):
        make_environment(name)
    assert main(["demonstrate", name, "--out", str(tmp_path / "made")]) == 2
    assert "error: environments need " in capsys.readouterr().err


def test_tee_geometry():
    """Poses and keypoints invert each other; distances from the T and points on its outline agree with a hand-made case."""
    pose = np.array([200.0, 300.0, 2.5])
    assert tee_pose(tee_keypoints(pose)) == pytest.approx(pose)
    upright = np.array([0.0, 0.0, 0.0])
    assert tee_keypoints(upright) == pytest.approx(TEE)
    points = np.array([[0.0, -10.0], [0.0, 60.0], [40.0, 70.0], [63.0, 34.0]])
    assert tee_distance(points, upright) == pytest.approx([10.0, 0.0, 25.0, 5.0])
    for share in np.linspace(0, 0.99, 12):
        point, inward = outline_point(share, pose)
        assert tee_distance(point[None] - 3 * inward, pose) == pytest.approx([3.0])


@needs_pusht
def test_pusht_starts_as_gym_pusht_does(pusht):
    """The start of a seed is the simulator's own, whatever was simulated before."""
    from gym_pusht.envs.pusht import PushTEnv

    theirs, _ = PushTEnv(obs_type="environment_state_agent_pos").reset(seed=100_003)
    pusht.reset(1)
    pusht.step(np.array([10.0, 500.0]))
    ours = pusht.reset(100_003)
    assert np.array_equal(ours["observation.state"], theirs["agent_pos"].astype(np.float32))
    assert np.array_equal(ours["observation.environment_state"], theirs["environment_state"].astype(np.float32))


@needs_pusht
def test_pusht_states_are_set_exactly(pusht):
    """A moment read off is put back to the last bit; the keypoints of a pose are the formula's."""
    pusht.reset(2)
    for _ in range(5):
        pusht.step(np.array([300.0, 200.0]))
    moment = pusht.get_state()
    pusht.reset(3)
    seen = pusht.set_state(moment)
    assert pusht.get_state() == pytest.approx(moment, abs=1e-9)
    assert seen["observation.environment_state"].reshape(8, 2) == pytest.approx(tee_keypoints(moment[2:5]), abs=1e-4)
    with pytest.raises(ValueError, match="5 or 10 finite numbers"):
        pusht.set_state(np.zeros(4))


@needs_pusht
def test_pusht_reward_is_the_coverage(pusht):
    """In its place the T is covered wholly: reward 1, done; far away reward 0; a shift by d along the goal's stem costs the known area."""
    pusht.set_state(np.array([20.0, 20.0, *GOAL_POSE]))
    step = pusht.step(pusht.hold_action())
    assert (step.reward, step.done) == (1.0, True)
    assert step.info["success"]
    assert step.info["coverage"] == pytest.approx(1.0)
    shift = 12.0  # along the stem: the bar loses 120 d, the stem's far end nothing but what leaves the goal, area 120*30 + 30*90
    along = shift * np.array([-np.sin(GOAL_POSE[2]), np.cos(GOAL_POSE[2])])
    pusht.set_state(np.array([20.0, 20.0, *(np.array(GOAL_POSE[:2]) + along), GOAL_POSE[2]]))
    step = pusht.step(pusht.hold_action())
    coverage = 1 - 120 * shift / (120 * 30 + 30 * 90)
    assert step.info["coverage"] == pytest.approx(coverage)
    assert step.reward == pytest.approx(coverage / 0.95)
    assert not step.done


@needs_pusht
@pytest.mark.parametrize("episode", [0, 20, 43, 100, 205])
def test_recorded_actions_reach_the_recorded_end(pusht, human, episode):
    """Human actions, replayed from the recorded start, lead where they led: within 1 px in every step, and to the recorded rewards."""
    rows = np.flatnonzero(human["episode_index"] == episode)
    states, keypoints = human["observation.state"][rows], human["observation.environment_state"][rows]
    seen = pusht.set_state(np.array([*states[0], *tee_pose(keypoints[0])]))
    for step, row in enumerate(rows):
        assert seen["observation.state"] == pytest.approx(states[step], abs=1)
        assert seen["observation.environment_state"] == pytest.approx(keypoints[step], abs=1)
        outcome = pusht.step(human["action"][row])
        seen = outcome.observation
        assert outcome.reward == pytest.approx(human["next.reward"][row], abs=0.02)


@needs_pusht
def test_pixels_are_those_of_the_recorded_camera(human):
    """Pictures of recorded states agree with the stored camera images to a grey level on average."""
    images = np.load(human["folder"] / "pusht_img_uint8.npz")["img"]
    environment = make_environment("pusht-pixels")
    for row in (0, 100, 5000, 12_000):
        pose = tee_pose(human["observation.environment_state"][row])
        seen = environment.set_state(np.array([*human["observation.state"][row], *pose]))["observation.image"]
        assert seen.dtype == np.uint8
        assert np.abs(seen.astype(float) - images[row]).mean() < 1


@needs_pusht
@pytest.mark.parametrize(("action", "words"), [([1.0], r"has shape \(2,\)"), ([np.nan, 0.0], "is not finite")])
def test_bad_actions(pusht, action, words):
    """A wrong shape or NaN is refused before it reaches the physics."""
    pusht.reset(0)
    with pytest.raises(ValueError, match=f"pusht.*{words}"):
        pusht.step(np.array(action))


@needs_pusht
def test_pusht_demonstrations_replay_to_their_success():
    """The planner's recorded actions, executed from the start of the seed, give the recorded observations to the last bit, and end in success."""
    made = demonstrate("pusht", 2, offset=40)
    assert made.attempts >= len(made.episodes) == 2
    environment = make_environment("pusht")
    for episode in made.episodes:
        assert episode.seed in SEEDS["demonstrations"]
        arrays = episode.arrays
        seen = environment.reset(episode.seed)
        for index, action in enumerate(arrays["action"]):
            assert equal(seen, {key: arrays[key][index] for key in seen})
            outcome = environment.step(action)
            seen = outcome.observation
            assert arrays["next.success"][index] == outcome.done == (index == len(arrays["action"]) - 1)
        assert arrays["action"].dtype == np.float32
        assert arrays["next.reward"][-1] == 1


@needs_pusht
@pytest.mark.slow
def test_demonstrations_do_not_depend_on_the_processes():
    """Two processes make the episodes one makes; noise makes others."""
    alone, shared = (demonstrate("pusht", 3, processes=n) for n in (1, 2))
    assert shared.attempts == alone.attempts
    for a, b in zip(alone.episodes, shared.episodes, strict=True):
        assert a.seed == b.seed
        assert equal(a.arrays, b.arrays)
    noisy = demonstrate("pusht", 1, noise=0.02).episodes[0]
    assert not np.array_equal(noisy.arrays["action"][:5], alone.episodes[0].arrays["action"][:5])


def test_demonstrations_that_cannot_be():
    """Without an expert, or with an expert that has no time, the error says so."""
    with pytest.raises(ValueError, match="num_episodes"):
        demonstrate("pusht", 0)
    if importlib.util.find_spec("gym_pusht"):
        with pytest.raises(ValueError, match="succeeded 0 times in 20 attempts"):
            demonstrate("pusht", 1, max_steps=1)


@needs_metaworld
@pytest.mark.slow
def test_metaworld_tasks_are_the_packages():
    """The names written here are those of the installed package, each with an expert."""
    assert set(TASKS) == set(importlib.import_module("metaworld.policies").ENV_POLICY_MAP)
    assert {f"metaworld/{task}" for task in TASKS} < set(ENVIRONMENTS)


@needs_metaworld
@pytest.mark.slow
@pytest.mark.parametrize("task", ["assembly-v3", "peg-insert-side-v3"])
def test_metaworld_is_a_function_of_the_seed(task):
    """A start is the same after other episodes; a state put back goes on to the last bit; goals of different splits differ."""
    environment, other = make_environment(f"metaworld/{task}"), make_environment(f"metaworld/{task}")
    actions = np.random.default_rng(0).uniform(-1, 1, (12, 4)).astype(np.float32)
    environment.reset(8)
    for action in actions:
        environment.step(action)
    assert equal(environment.reset(100_000), other.reset(100_000))
    for action in actions[:4]:
        environment.step(action)
    moment = environment.get_state()
    first = [environment.step(action).observation for action in actions]
    seen = environment.set_state(moment)
    assert np.array_equal(seen["observation.environment_state"][:4], seen["observation.state"])
    assert all(equal(environment.step(action).observation, then) for action, then in zip(actions, first, strict=True))
    seeds = [seed for split in SEEDS for seed in initial_seeds(split, 3)]
    starts = [environment.reset(seed)["observation.environment_state"] for seed in seeds]
    assert len({tuple(start[4:18]) + tuple(start[-3:]) for start in starts}) == len(seeds)


@needs_metaworld
@pytest.mark.slow
def test_metaworld_demonstrations_succeed_and_replay():
    """The expert's episodes end at their first success, and their actions lead there again."""
    episode = demonstrate("metaworld/push-v3", 1, noise=0.1).episodes[0]
    environment = make_environment("metaworld/push-v3")
    seen = environment.reset(episode.seed)
    for index, action in enumerate(episode.arrays["action"]):
        assert equal(seen, {key: episode.arrays[key][index] for key in seen})
        outcome = environment.step(action)
        seen = outcome.observation
    assert outcome.info["success"]
    assert episode.arrays["next.success"].sum() == 1
    assert np.abs(episode.arrays["action"]).max() <= 1


@needs_metaworld
@pytest.mark.slow
def test_demonstrations_of_several_tasks_are_one_data_set(tmp_path):
    """Each environment is a task of its own, in the order given; environments of different rates do not go together."""
    names = ["metaworld/window-open-v3", "metaworld/drawer-close-v3"]
    attempts = write_demonstrations(tmp_path / "both", names, 2)
    assert list(attempts) == names
    assert open_lerobot(str(tmp_path / "both"))[0].tasks == names
    with pytest.raises(ValueError, match="one rate"):
        write_demonstrations(tmp_path / "mixed", ["pusht", names[0]], 1)


@needs_kitchen
@pytest.mark.slow
def test_kitchen():
    """It starts the same for a seed, goes on from a state to the last bit of its physics, and nothing is done by holding still."""
    environment = make_environment("kitchen")
    assert equal(environment.reset(3), environment.reset(3))
    assert {key: value.shape for key, value in environment.reset(4).items()} == environment.observation_shapes
    step = environment.step(environment.hold_action())
    assert (step.reward, step.done, step.info["tasks"]) == (0, False, [])
    moment = environment.get_state()
    environment.step(np.ones(9))
    environment.set_state(moment)
    assert np.array_equal(environment.get_state(), moment)


@needs_metaworld
@pytest.mark.slow
def test_pictures_need_opengl(monkeypatch):
    """Without OpenGL the error names the variable to set."""
    environment = make_environment("metaworld/push-v3")
    environment.reset(0)
    monkeypatch.setenv("MUJOCO_GL", "disabled")
    with pytest.raises(ValueError, match="MUJOCO_GL=egl"):
        environment.render()
