"""Demonstrations as flow data: windows written out by hand, episodes that stay together, units that come from training and go with the model."""

import json
import pickle
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from robots import change_json, data_file, demonstrations, write_v21
from tiny import SMALL_RUN

from hf_flowft import ConditionalUNet1D, FlowODEScheduler, FlowPolicyPipeline, Run, load_config
from hf_flowft.data import Normalisation, RobotConfig, load_robot, write_lerobot
from hf_flowft.data.robot import frame_offsets, windows
from hf_flowft.data.robot.statistics import statistics, units
from hf_flowft.pipelines import describe_data

ALL = {"validation": 0.0, "test": 0.0, "normalisation": "min_max"}
P, _ = True, False  # of masks: a repeated end of the episode, and a step of its own


@pytest.fixture
def counted(tmp_path):
    """Episodes of 4 and 2 steps in which the state is the step's number in the table and the action 100 times that, less 1000 in a second axis."""
    rows = [np.arange(4.0), np.arange(4.0, 6.0)]
    episodes = [
        {
            "observation.state": x[:, None].astype(np.float32),
            "observation.environment_state": (x[:, None] / 10 + [[0, 7]]).astype(np.float32),
            "action": (100 * x[:, None] - [[0, 1000]]).astype(np.float32),
        }
        for x in rows
    ]
    return str(write_lerobot(tmp_path / "counted", episodes, 10, task="count"))


@pytest.fixture
def folder(tmp_path):
    """Twenty short episodes of three tasks."""
    tasks = [["push", "pull", "lift"][n % 3] for n in range(20)]
    return str(write_lerobot(tmp_path / "made", demonstrations([3 + n % 4 for n in range(20)]), 10, tasks=tasks))


def load(path, **options):
    """The data set, all of it for training unless said otherwise."""
    return load_robot(RobotConfig(path=path, **{**ALL, **options}))


def column(data, name, split="train"):
    """A column of a split as an array."""
    return np.asarray(data.splits[split].with_format("numpy")[name][:])


def test_windows_by_hand():
    """Two episodes of 4 and 2 rows, seen from two rows before to one row after."""
    found = windows([4, 2], [-2, 0, 1])
    assert found.rows.tolist() == [[0, 0, 1], [0, 1, 2], [0, 2, 3], [1, 3, 3], [4, 4, 5], [4, 5, 5]]
    assert found.is_pad.tolist() == [[P, _, _], [P, _, _], [_, _, _], [_, _, P], [P, _, _], [P, _, P]]


def test_offsets_in_seconds():
    """Multiples of 1/fps, as exactly as people write them."""
    assert frame_offsets([-0.1, 0, 0.1, 1.5], 10) == [-1, 0, 1, 15]
    assert frame_offsets([-1 / 3, 0.3333], 3) == [-1, 1]
    assert frame_offsets([0.033], 30, tolerance=1e-3) == [1]
    for wrong, message in (
        ([0.15], "0.15 s is no multiple of 1/fps = 0.1 s"),
        ([], "at least one"),
        ([np.nan], "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            frame_offsets(wrong, 10)
    with pytest.raises(ValueError, match="no multiple"):
        frame_offsets([0.033], 30)
    with pytest.raises(ValueError, match="at least one time step"):
        windows([3, 0], [0])


def test_chunks_and_observations_by_hand(counted):
    """Two observations and four actions: the first action is that of the older observation, the ends are held, the masks say where."""
    data = load(counted, observation_horizon=2, prediction_horizon=4, action_horizon=3)
    assert data.event_shape == (4, 2)
    steps = [[0, 0, 1, 2], [0, 1, 2, 3], [1, 2, 3, 3], [2, 3, 3, 3], [4, 4, 5, 5], [4, 5, 5, 5]]
    pads = [[P, _, _, _], [_, _, _, _], [_, _, _, P], [_, _, P, P], [P, _, _, P], [_, _, P, P]]
    actions = np.stack([100.0 * np.array(steps), 100.0 * np.array(steps) - 1000], axis=-1)
    assert np.array_equal(column(data, "sample"), actions)
    assert np.array_equal(column(data, "action_is_pad"), pads)
    seen = [[0, 0], [0, 1], [1, 2], [2, 3], [4, 4], [4, 5]]
    expected = [[value for n in pair for value in (n, n / 10, n / 10 + 7)] for pair in seen]
    assert np.allclose(column(data, "condition"), expected)
    assert column(data, "episode_index").tolist() == [0, 0, 0, 0, 1, 1]
    assert column(data, "frame_index").tolist() == [0, 1, 2, 3, 0, 1]
    batch = data.rows("train")
    assert torch.allclose(data.normalisation.undo(batch.x_1), torch.from_numpy(actions).float(), atol=1e-4)
    assert batch.x_1.aminmax() == (-1, 1)


def test_the_units_are_those_of_the_rows(counted):
    """State 0..5 and environment states 0..0.5 and 7..7.5 to [-1, 1], in the order of the keys and repeated for each observation."""
    data = load(counted, observation_horizon=3, prediction_horizon=4, action_horizon=1)
    observed = data.facts["observation_normalisation"]
    assert observed["observation.state"] == {"mean": [2.5], "std": [2.5]}
    assert np.allclose(observed["observation.environment_state"]["mean"], [0.25, 7.25])
    n = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3], [4, 4, 4], [4, 4, 5]])
    expected = np.repeat(n / 2.5 - 1, 3, axis=1)
    assert np.allclose(data.rows("train").condition["condition"], expected, atol=1e-5)
    assert np.allclose(data.conditions("train")["condition"], expected, atol=1e-5)
    assert data.rows("train").condition["condition"].dtype == torch.float32


def test_keys_in_the_order_chosen(counted):
    """Any numbers may be observed, also the action."""
    chosen = ["observation.environment_state", "action"]
    data = load(counted, state_keys=chosen, observation_horizon=1)
    assert np.allclose(column(data, "condition")[2], [0.2, 7.2, 200, -800])
    assert data.facts["policy"]["state_keys"] == chosen
    assert list(data.facts["observation_normalisation"]) == chosen


def test_the_kinds_of_units():
    """Against NumPy; constant coordinates keep a std of 1, also when only the quantiles agree or float32 would see nothing else."""
    random = np.random.default_rng(0)
    x = np.stack(
        [
            random.normal(5, 3, 2000),
            np.full(2000, 4.0),
            (np.arange(2000) < 3) * 6.0,
            1e4 + 1e-5 * random.normal(size=2000),
        ],
        axis=1,
    )
    known = statistics(x)
    low, high = np.quantile(x[:, 0], [0.01, 0.99])
    expected = {
        "min_max": ([(x[:, 0].min() + x[:, 0].max()) / 2, 4, 3, 1e4], [(x[:, 0].max() - x[:, 0].min()) / 2, 1, 3, 1]),
        "quantile": ([(low + high) / 2, 4, 3, 1e4], [(high - low) / 2, 1, 3, 1]),
        "mean_std": ([x[:, 0].mean(), 4, x[:, 2].mean(), 1e4], [x[:, 0].std(), 1, x[:, 2].std(), 1]),
    }
    for kind, (mean, std) in expected.items():
        found = units(known, kind, 4, "x")
        assert np.allclose(found.mean, mean, rtol=1e-9, atol=1e-9), kind
        assert np.allclose(found.std, std, rtol=1e-9), kind


def test_low_becomes_minus_one_and_high_one():
    units = Normalisation.between([0.0, -3.0, 2.0], [512.0, -1.0, 2.0])
    z = units.apply(torch.tensor([[0.0, -3.0, 2.0], [512.0, -1.0, 2.0]]))
    assert z.tolist() == [[-1, -1, 0], [1, 1, 0]]


@pytest.mark.parametrize(
    ("known", "kind", "message"),
    [
        ({"min": [0.0], "max": [1.0]}, "quantile", "statistics of x have no 'q01', only min, max"),
        ({"min": [0.0, 1.0], "max": [1.0]}, "min_max", "'min' in the statistics of x must be 1 finite numbers"),
        ({"mean": [0.0], "std": [float("nan")]}, "mean_std", "'std' in the statistics of x must be 1 finite numbers"),
        ({"mean": ["a"], "std": [1.0]}, "mean_std", "'mean' in the statistics of x must be numbers"),
        ({}, "minmax", "data.normalisation must be one of min_max, mean_std, quantile, got 'minmax'"),
    ],
)
def test_wrong_statistics_are_refused(known, kind, message):
    with pytest.raises(ValueError, match=message):
        units(known, kind, 1, "x")


@pytest.mark.parametrize("kind", ["min_max", "mean_std", "quantile"])
def test_statistics_of_the_training_episodes_or_of_all(folder, kind):
    """By default what is held out is not looked at; the data set's own statistics are those of all its rows."""
    data = load(folder, validation=0.2, test=0.3, normalisation=kind)
    rows = np.concatenate(
        [
            demonstrations([3 + n % 4 for n in range(20)])[n]["action"]
            for n in sorted(set(column(data, "episode_index")))
        ]
    )
    expected = units(statistics(rows), kind, 2, "x")
    assert np.allclose(data.normalisation.mean, expected.mean)
    assert np.allclose(data.normalisation.std, expected.std)
    everything = load(folder, normalisation=kind)
    own = load(folder, validation=0.2, test=0.3, normalisation=kind, statistics="dataset")
    assert np.allclose(own.normalisation.mean, everything.normalisation.mean)
    assert np.allclose(own.normalisation.std, everything.normalisation.std)
    assert not np.allclose(own.normalisation.std, data.normalisation.std)


def test_episodes_stay_together(folder):
    """No episode is in two splits, all are in one, with all their steps; another seed splits otherwise."""
    options = {"validation": 0.2, "test": 0.3}
    data, again, other = (load(folder, seed=seed, **options) for seed in (0, 0, 1))
    episodes = {split: set(column(data, "episode_index", split).tolist()) for split in data.splits}
    assert {split: len(found) for split, found in episodes.items()} == {"train": 10, "validation": 4, "test": 6}
    assert set.union(*episodes.values()) == set(range(20))
    assert sum(data.counts.values()) == sum(3 + n % 4 for n in range(20))
    assert data.facts["episodes"] == {"train": 10, "validation": 4, "test": 6}
    for split in data.splits:
        assert np.array_equal(column(data, "sample", split), column(again, "sample", split))
    assert set(column(other, "episode_index").tolist()) != episodes["train"]


def test_fewer_episodes(folder):
    """The first of the data set; and some of those for training, which leaves what is held out as it is."""
    assert set(column(load(folder, max_episodes=7), "episode_index")) == set(range(7))
    options = {"validation": 0.2, "test": 0.3}
    few, whole = load(folder, train_size=4, **options), load(folder, **options)
    assert len(set(column(few, "episode_index"))) == 4
    assert set(column(few, "episode_index")) < set(column(whole, "episode_index"))
    assert np.array_equal(column(few, "episode_index", "test"), column(whole, "episode_index", "test"))


def test_tasks(folder):
    """Chosen by their text; the others may be the base's; the policy may be told which it is."""
    data = load(folder, tasks=["lift"], base_tasks=["push"], task_conditioning=True, validation=0.2, test=0.2)
    tasks = {split: set(column(data, "task_index", split).tolist()) for split in data.splits}
    new, known = ("train", "validation", "test"), ("base_train", "base_validation", "base_test")
    assert tasks == {split: {2} for split in new} | {split: {0} for split in known}
    assert data.label_names == ["push", "pull", "lift"]
    assert data.num_classes == 3
    assert data.labels("train") == [2]
    assert data.rows("base_test").condition["class_labels"].unique().tolist() == [0]
    assert set(column(load(folder, base_tasks=["push"]), "task_index")) == {1, 2}
    assert load(folder).num_classes == 0


def test_version_2_1_gives_the_same(tmp_path):
    """Also its own statistics, pooled over the episodes."""
    episodes = demonstrations([4, 5, 6])
    old = str(write_v21(tmp_path / "old", episodes, 10, ["t"] * 3))
    new = str(write_lerobot(tmp_path / "new", episodes, 10, task="t"))
    for options in ({}, {"statistics": "dataset"}, {"statistics": "dataset", "normalisation": "mean_std"}):
        before, after = load(old, **options).rows("train"), load(new, **options).rows("train")
        assert torch.allclose(before.x_1, after.x_1, atol=1e-6)
        assert torch.allclose(before.condition["condition"], after.condition["condition"], atol=1e-6)
    with pytest.raises(ValueError, match=r"statistics of 'action' .* have no 'q01'.* data.statistics train"):
        load(old, statistics="dataset", normalisation="quantile")


def test_pictures_are_read_with_the_rows(tmp_path):
    """Windows of uint8, channels first, for each camera; the table holds their numbers only, and the reader travels to other processes."""
    episodes = demonstrations([4, 3], images=True)
    path = str(write_lerobot(tmp_path / "seen", episodes, 10, task="t"))
    cameras = ["observation.image", "observation.images.wrist"]
    data = load(path, cameras=cameras, image_size=[3, 2], state_keys=["observation.state"])
    plain = load(path, cameras=cameras)
    found = plain.rows("train", [0, 5]).condition
    pictures = np.concatenate([episode["observation.image"] for episode in episodes])[[[0, 0], [4, 5]]]
    assert np.array_equal(found["image_image"], np.moveaxis(pictures, -1, 2))
    assert found["image_image"].dtype == torch.uint8
    assert found["image_wrist"].shape == (2, 2, 1, 6, 4)
    assert data.rows("train", [0]).condition["image_image"].shape == (1, 2, 3, 3, 2)
    assert data.rows("train", [0]).condition["condition"].shape == (1, 4)
    assert column(data, "image_wrist").tolist() == [[0, 0], [0, 1], [1, 2], [2, 3], [4, 4], [4, 5], [5, 6]]
    assert plain.facts["policy"]["cameras"] == {"image": cameras[0], "wrist": cameras[1]}
    reader = pickle.loads(pickle.dumps(plain.reader))
    again = reader.batch(plain.splits["train"], [0, 5], "a copy").condition
    assert all(torch.equal(again[key], found[key]) for key in found)


def test_what_a_policy_must_know_goes_with_it(counted):
    """The description is plain JSON: what is seen and done, and the units of both."""
    description = describe_data(load(counted, prediction_horizon=4, action_horizon=3), "independent")
    assert json.loads(json.dumps(description)) == description
    assert description["normalisation"] == {"mean": [250.0, -750.0], "std": [250.0, 250.0]}
    assert description["observation_normalisation"]["observation.state"] == {"mean": [2.5], "std": [2.5]}
    assert description["policy"] == {
        "state_keys": ["observation.state", "observation.environment_state"],
        "cameras": {},
        "image_size": [],
        "action_key": "action",
        "observation_horizon": 2,
        "prediction_horizon": 4,
        "action_horizon": 3,
        "num_tasks": 0,
        "fps": 10.0,
        "normalisation": "min_max",
    }


def test_the_units_of_a_base_are_taken_over(tmp_path):
    """What a base has seen as some number, its fine-tune sees as the same, whatever other demonstrations say; and it is described so."""
    first, second = demonstrations([6], seed=0), demonstrations([6], seed=1)
    second[0]["observation.state"][:] = first[0]["observation.state"]
    base, new = (
        load(str(write_lerobot(tmp_path / name, episodes, 10, task="t")), normalisation=kind)
        for name, episodes, kind in (("base", first, "mean_std"), ("new", second, "min_max"))
    )
    description = describe_data(base, "independent")
    state = [0, 1, 5, 6]  # of both observations: the first two of five numbers
    before, known = (data.rows("train").condition["condition"][:, state] for data in (new, base))
    assert not torch.allclose(before, known)
    new.adopt(json.loads(json.dumps(description)))
    assert torch.equal(new.rows("train").condition["condition"][:, state], known)
    assert new.normalisation == base.normalisation
    assert describe_data(new, "independent") == description


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"observation_horizon": 1}, "observation_horizon 1, but the data 'counted' have 2"),
        ({"prediction_horizon": 12}, "prediction_horizon 12, but the data"),
        ({"state_keys": ["observation.state"]}, r"state_keys \['observation.state'\], but the data"),
    ],
)
def test_a_base_of_another_kind_is_refused(counted, options, message):
    """It sees or does something else."""
    data = load(counted)
    with pytest.raises(ValueError, match=message):
        data.adopt(describe_data(load(counted, **options), "independent"))
    with pytest.raises(ValueError, match="the base is no policy"):
        data.adopt({"normalisation": {}})


def test_tasks_of_a_base_keep_their_numbers(tmp_path):
    """More of them may follow; another one under a known number is refused."""
    tasks = {"old": ["push", "pull"], "more": ["push", "pull", "lift"], "other": ["pull", "push"]}
    episodes = demonstrations([3, 3, 3])
    data = {
        name: load(str(write_lerobot(tmp_path / name, episodes[: len(texts)], 10, tasks=texts)), task_conditioning=True)
        for name, texts in tasks.items()
    }
    description = describe_data(data["old"], "independent")
    data["more"].adopt(description)
    assert data["more"].normalisation == data["old"].normalisation
    with pytest.raises(ValueError, match="task 0 is 'push' for the base, but 'pull' in 'other'"):
        data["other"].adopt(description)


def test_the_pipeline_sees_what_the_network_was_trained_on(tmp_path):
    """Raw windows of the demonstrations become, by the description alone, the conditions of the rows; pictures and task with them."""
    episodes = demonstrations([4, 3], images=True)
    path = str(write_lerobot(tmp_path / "seen", episodes, 10, tasks=["push", "pull"]))
    data = load(path, cameras=["observation.image"], task_conditioning=True)
    rows = data.rows("train", [2, 6])
    options = {"event_shape": [16, 2], "condition_dim": 10, "num_classes": 2, "images": {"image": [2, 3, 6, 4]}}
    model = ConditionalUNet1D(**options, channels=[8, 16], groups=4, embedding_dim=8, image_widths=[8, 16])
    pipeline = FlowPolicyPipeline(model, FlowODEScheduler(), describe_data(data, "independent"))
    raw = {
        key: np.stack([episodes[0][key][1:3], episodes[1][key][1:3]])
        for key in episodes[0]
        if key.startswith("observation.")
    }
    given = pipeline.encode_observation(raw, [0, 1])
    assert torch.allclose(given["condition"], rows.condition["condition"], atol=1e-6)
    assert torch.equal(given["class_labels"], rows.condition["class_labels"])
    expected = model.encode_images(image_image=rows.condition["image_image"])
    assert torch.allclose(given["image_features"], expected, atol=1e-6)


def test_a_base_of_other_sizes_is_refused(counted, folder):
    with pytest.raises(ValueError, match=r"has seen another 'observation.state' than that of 'made', of 2 numbers"):
        load(folder).adopt(describe_data(load(counted), "independent"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": ""}, "data.path must be given"),
        ({"observation_horizon": 0}, "data.observation_horizon must be at least 1, got 0"),
        ({"prediction_horizon": -1}, "data.prediction_horizon must be at least 1"),
        ({"action_horizon": 16}, "data.prediction_horizon is 16, but the 16 actions .* begin at number 1"),
        ({"train_size": -1}, "data.train_size must be at least 1, or 0"),
        ({"train_size": 21}, "data.train_size is 21, but only 20 episodes"),
        ({"max_episodes": -1}, "data.max_episodes must be at least 1, or 0"),
        ({"tasks": ["fly"]}, "has no task 'fly'; its tasks are 'push', 'pull', 'lift'"),
        ({"base_tasks": ["fly"]}, "has no task 'fly'"),
        ({"tasks": ["push"], "base_tasks": ["push"]}, "'push' is in data.tasks and in data.base_tasks"),
        ({"tasks": ["lift"], "max_episodes": 2}, "episodes of .* is empty"),
        ({"validation": 1.0}, "validation and test fractions"),
        ({"state_keys": ["observation.sate"]}, "has no 'observation.sate'; its features are"),
        ({"action_key": "actions"}, "has no 'actions'"),
        ({"cameras": ["observation.image"]}, "'observation.image' is no camera of made; it has no cameras at all"),
    ],
)
def test_wrong_settings_are_refused(folder, options, message):
    """Before anything is trained."""
    with pytest.raises(ValueError, match=message):
        load_robot(RobotConfig(**{"path": folder, **ALL, **options}))


def test_nothing_to_observe_is_refused(tmp_path):
    path = str(write_lerobot(tmp_path / "blind", [{"action": np.zeros((3, 2))}], 10, task="t"))
    with pytest.raises(ValueError, match=r"neither observation.state nor observation.environment_state"):
        load(path)


def test_a_broken_data_set_is_refused(folder):
    change_json(Path(folder) / "meta/info.json", lambda info: info["features"]["action"].update(shape=[3]))
    with pytest.raises(
        ValueError, match=r"'action' has the shape \[3\] in meta/info.json, but rows of .* hold 2 numbers"
    ):
        load(folder)


def test_a_run_on_demonstrations(folder, tmp_path):
    """Settings by name, two steps of a small network, and a pipeline that knows what the policy needs."""
    options = ["--data.name=robot", f"--data.path={folder}", "--data.validation=0.2", "--data.test=0.2"]
    model = ["--objective.name=fm", "--model.name=mlp", "--model.hidden_dim=8", "--model.num_layers=1"]
    config = load_config(None, [*options, *model, *SMALL_RUN, f"--output_dir={tmp_path / 'run'}"])
    run = Run(config, progress=False)
    run.execute()
    pipeline = FlowPolicyPipeline.from_pretrained(tmp_path / "run/pipeline")
    assert pipeline.description["policy"] == run.data.facts["policy"]
    assert pipeline.description["observation_normalisation"] == run.data.facts["observation_normalisation"]
    pipeline.set_progress_bar_config(disable=True)
    widths = {key: len(units["mean"]) for key, units in run.data.facts["observation_normalisation"].items()}
    observation = {key: np.zeros((1, 2, width), dtype=np.float32) for key, width in widths.items()}
    assert pipeline(observation, num_inference_steps=1).chunk.shape == (1, 16, 2)


def test_a_fine_tune_sees_in_the_units_of_its_base(tmp_path):
    """Other demonstrations and another kind of units change nothing of what the base reads in a number."""
    paths = [
        str(write_lerobot(tmp_path / f"data{n}", demonstrations([4] * 10, seed=n), 10, task="t")) for n in range(2)
    ]
    model = ["--objective.name=fm", "--model.name=mlp", "--model.hidden_dim=8", "--model.num_layers=1"]
    base = load_config(
        None, ["--data.name=robot", f"--data.path={paths[0]}", *model, *SMALL_RUN, f"--output_dir={tmp_path / 'base'}"]
    )
    known = Run(base, progress=False)
    known.execute()
    options = [f"--model.path={tmp_path / 'base/pipeline'}", f"--data.path={paths[1]}", "--data.normalisation=min_max"]
    config = load_config(
        None,
        [
            "--data.name=robot",
            "--model.name=pretrained",
            "--objective.name=fm",
            *SMALL_RUN,
            *options,
            f"--output_dir={tmp_path / 'new'}",
        ],
    )
    new = Run(config, progress=False)
    assert new.data.condition_normalisation == known.data.condition_normalisation
    assert new.data.normalisation == known.data.normalisation
    assert describe_data(new.data, "x") == describe_data(known.data, "x")


def test_what_the_base_never_saw_move_is_told(tmp_path):
    """A coordinate that trembles by a millionth in the base's demonstrations and moves in the new ones is named with how far it goes; others pass."""
    still, moving = demonstrations([6] * 4), demonstrations([6] * 4, seed=1)
    for episode in still:
        episode["observation.state"][:, 1] *= 1e-6
    base, new = (
        load(str(write_lerobot(tmp_path / name, episodes, 10, task="t")), normalisation="mean_std")
        for name, episodes in {"still": still, "moving": moving}.items()
    )
    with pytest.warns(
        UserWarning, match=r"number \d+ of the observations of 'moving' reaches [\d.e+]+: it hardly moved"
    ):
        new.adopt(describe_data(base, "independent"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        base.adopt(describe_data(base, "independent"))


def test_the_demonstrations_of_pusht(shared_data):
    """206 episodes of 25,650 steps: a window for each, actions of 0 to 512 pixels to [-1, 1], and the numbers of the table."""
    path = shared_data / "pusht/lerobot_v30"
    data = load_robot(RobotConfig(path=str(path), normalisation="min_max"))
    assert sum(data.counts.values()) == 25_650
    assert data.facts["episodes"] == {"train": 164, "validation": 21, "test": 21}
    assert data.event_shape == (16, 2)
    low, high = (
        np.subtract(data.normalisation.mean, data.normalisation.std),
        np.add(data.normalisation.mean, data.normalisation.std),
    )
    assert ((low >= 0) & (low < 30) & (high > 500) & (high <= 512)).all()
    raw = {
        key: np.stack(pq.read_table(data_file(path))[key].to_numpy())
        for key in ("observation.state", "observation.environment_state", "action")
    }
    episode, frame = (column(data, key, "test") for key in ("episode_index", "frame_index"))
    ends = np.cumsum(json_lengths(path))
    starts = ends - json_lengths(path)
    batch = data.rows("test")
    for row in (0, 1, 700, len(batch) - 1):
        start, end, step = starts[episode[row]], ends[episode[row]], starts[episode[row]] + frame[row]
        chunk = raw["action"][np.clip(np.arange(step - 1, step + 15), start, end - 1)]
        assert np.abs(data.normalisation.undo(batch.x_1[row]).numpy() - chunk).max() < 1e-3
        assert np.array_equal(column(data, "sample", "test")[row], chunk)
        seen = np.clip([step - 1, step], start, end - 1)
        window = np.concatenate([raw["observation.state"][seen], raw["observation.environment_state"][seen]], axis=1)
        assert np.array_equal(column(data, "condition", "test")[row], window.reshape(-1))


def json_lengths(path):
    """The lengths of the episodes, from their own table."""
    return np.array(pq.read_table(path / "meta/episodes/chunk-000/file-000.parquet")["length"].to_pylist())
