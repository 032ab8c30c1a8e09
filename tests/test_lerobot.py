"""LeRobotDatasets: what is written is read, by us and by others; versions 2.1 and 3.0 hold the same; every fault is one sentence."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Image, load_dataset
from huggingface_hub import HfApi, constants
from PIL import Image as Pillow
from robots import change_json, change_table, data_file, demonstrations, write_v21

from hf_flowft.data.robot import open_lerobot, read_rows, write_lerobot
from hf_flowft.data.robot.frames import open_frames

LENGTHS, FPS = [5, 1, 7], 10


@pytest.fixture
def folder(tmp_path):
    """Three small demonstrations of one task."""
    return write_lerobot(tmp_path / "made", demonstrations(LENGTHS), FPS, task="push")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Two demonstrations with cameras, and what they hold."""
    episodes = demonstrations([4, 3], images=True)
    return write_lerobot(tmp_path_factory.mktemp("robot") / "seen", episodes, 2.5, tasks=["push", "pull"]), episodes


def joined(episodes, key):
    """A key of all episodes, one after another."""
    return np.concatenate([episode[key] for episode in episodes])


def test_what_is_written_is_read(folder):
    """Values and types of every key, lengths, tasks and fps."""
    episodes = demonstrations(LENGTHS)
    metadata, facts = open_lerobot(str(folder))
    rows = read_rows(metadata, list(episodes[0]))
    assert (metadata.version, metadata.fps, metadata.tasks, metadata.lengths) == ("v3.0", 10.0, ["push"], LENGTHS)
    assert facts["source"] == "made"
    assert not rows.task_index.any()
    for key in episodes[0]:
        assert rows.columns[key].dtype == episodes[0][key].dtype
        assert np.array_equal(rows.columns[key], joined(episodes, key))


def test_arrays_of_every_kind_survive(tmp_path):
    """Whole numbers, float64, and rows of two to four axes."""
    random = np.random.default_rng(0)
    episode = {
        "action": random.normal(size=(3, 2)),
        "observation.state": random.integers(-9, 9, (3, 4)),
        "observation.grid": random.normal(size=(3, 2, 5)).astype(np.float32),
        "observation.cube": random.normal(size=(3, 2, 2, 2)).astype(np.float32),
        "observation.deep": random.normal(size=(3, 1, 2, 2, 2)),
        "observation.touch": np.array([True, False, True]),
    }
    metadata, _ = open_lerobot(str(write_lerobot(tmp_path / "made", [episode, episode], 3, task="t")))
    rows = read_rows(metadata, list(episode))
    for key, value in episode.items():
        assert rows.columns[key].dtype == value.dtype
        assert np.array_equal(rows.columns[key], np.concatenate([value, value]))


def test_others_read_it(pictures):
    """`datasets` has no more than the file to go by: numbers, vectors of fixed length, pictures, and the index columns of the format."""
    folder, episodes = pictures
    rows = load_dataset("parquet", data_files=str(folder / "data/*/*.parquet"), split="train")
    assert isinstance(rows.features["observation.image"], Image)
    assert rows.features["action"].length == 2
    assert np.array_equal(rows["action"][:], joined(episodes, "action"))
    assert rows["task_index"][:] == [0, 0, 0, 0, 1, 1, 1]
    assert rows["frame_index"][:] == [0, 1, 2, 3, 0, 1, 2]
    assert np.allclose(rows["timestamp"][:], np.array([0, 1, 2, 3, 0, 1, 2]) / 2.5)
    for key in ("observation.image", "observation.images.wrist"):
        seen = np.stack([np.asarray(picture) for picture in rows[key]])
        assert np.array_equal(seen, joined(episodes, key).squeeze())


def test_the_metadata_are_those_of_the_format(pictures):
    """info.json, tasks as pandas has them, and the episodes with their rows."""
    folder, _ = pictures
    info = json.loads((folder / "meta/info.json").read_text())
    counts = [
        info[key] for key in ("codebase_version", "total_episodes", "total_frames", "total_tasks", "fps", "splits")
    ]
    assert counts == ["v3.0", 2, 7, 2, 2.5, {"train": "0:2"}]
    assert info["features"]["observation.image"] == {
        "dtype": "image",
        "shape": [6, 4, 3],
        "names": ["height", "width", "channels"],
    }
    assert info["features"]["next.reward"] == {"dtype": "float32", "shape": [1], "names": None}
    assert info["features"]["timestamp"]["dtype"] == "float32"
    tasks = pd.read_parquet(folder / "meta/tasks.parquet")
    assert (tasks.index.name, list(tasks.index), list(tasks["task_index"])) == ("task", ["push", "pull"], [0, 1])
    episodes = pq.read_table(folder / "meta/episodes/chunk-000/file-000.parquet").to_pydict()
    spans = [episodes[key] for key in ("length", "dataset_from_index", "dataset_to_index", "data/file_index", "tasks")]
    assert spans == [[4, 3], [0, 4], [4, 7], [0, 0], [["push"], ["pull"]]]
    assert pq.ParquetFile(data_file(folder)).num_row_groups == 2


def test_the_statistics_are_right(pictures):
    """By NumPy: over all rows in stats.json, over its own in each episode; of pictures channel by channel, in [0, 1]."""
    folder, episodes = pictures
    known = json.loads((folder / "meta/stats.json").read_text())
    of_episodes = pq.read_table(folder / "meta/episodes/chunk-000/file-000.parquet").to_pydict()
    action = joined(episodes, "action").astype(np.float64)
    for found, x in (
        (known["action"], action),
        ({k: of_episodes[f"stats/action/{k}"][1] for k in known["action"]}, action[4:]),
    ):
        assert found["count"] == [len(x)]
        assert np.allclose([found[k] for k in ("min", "max", "mean", "std")], [x.min(0), x.max(0), x.mean(0), x.std(0)])
        assert np.allclose([found["q01"], found["q90"]], np.quantile(x, [0.01, 0.9], axis=0))
    pixels, found = joined(episodes, "observation.image").reshape(-1, 3) / 255, known["observation.image"]
    assert np.shape(found["mean"]) == (3, 1, 1)
    values = [
        pixels.min(0),
        pixels.max(0),
        pixels.mean(0),
        pixels.std(0),
        np.quantile(pixels, 0.1, axis=0, method="inverted_cdf"),
    ]
    assert np.allclose(np.squeeze([found[k] for k in ("min", "max", "mean", "std", "q10")]), values)
    assert found["count"] == [7]


def test_a_new_file_is_begun_when_one_is_full(tmp_path):
    """Episodes of 0.8 MB in files of 1 MB: one each, and they are read in order."""
    episodes = [{"action": np.full((100, 1000), float(n))} for n in range(3)]
    folder = write_lerobot(tmp_path / "large", episodes, 1, task="t", file_megabytes=1)
    assert sorted(path.name for path in folder.glob("data/chunk-000/*")) == [f"file-00{n}.parquet" for n in range(3)]
    metadata, _ = open_lerobot(str(folder))
    assert np.array_equal(read_rows(metadata, ["action"]).columns["action"][::100, 0], [0, 1, 2])
    assert pq.read_table(folder / "meta/episodes/chunk-000/file-000.parquet")["data/file_index"].to_pylist() == [
        0,
        1,
        2,
    ]


def with_key(episodes, key, value):
    """The episodes with a key of the second one replaced (None: removed)."""
    episodes[1] = {k: v for k, v in {**episodes[1], key: value}.items() if v is not None}
    return episodes


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda e: [], {}, "there are no episodes"),
        (lambda e: with_key(e, "action", None), {}, "episode 1 has 'action' as nothing"),
        (
            lambda e: with_key(e, "action", np.zeros((2, 3), np.float32)),
            {},
            r"episode 1 has 'action' as \('float32', \(3,\)\)",
        ),
        (lambda e: with_key(e, "action", np.zeros((2, 2))), {}, r"'float64'.* first one as \('float32'"),
        (lambda e: with_key(e, "action", np.zeros((3, 2), np.float32)), {}, "episode 1 must have one row a time step"),
        (lambda e: with_key(e, "action", np.full((2, 2), np.nan, np.float32)), {}, "'action' of episode 1 holds NaN"),
        (lambda e: [{**x, "index": x["action"]} for x in e], {}, "'index' cannot be a key"),
        (lambda e: [{**x, "a/b": x["action"]} for x in e], {}, "'a/b' cannot be a key"),
        (lambda e: [{**x, "text": np.array(["a", "b"])} for x in e], {}, "'text' must be an array of numbers"),
        (lambda e: [{"action": np.zeros((0, 2))}], {}, "episode 0 must have one row a time step"),
        (lambda e: [{}], {}, "an episode has no arrays"),
        (lambda e: e, {"fps": 0}, "fps must be a positive number"),
        (lambda e: e, {"fps": float("nan")}, "fps must be a positive number"),
        (lambda e: e, {"task": ""}, "give either one task"),
        (lambda e: e, {"tasks": ["a", "b"]}, "give either one task"),
        (lambda e: e, {"task": "", "tasks": ["a"]}, "1 tasks, but more episodes"),
        (lambda e: e, {"task": "", "tasks": ["a", "b", "c"]}, "3 tasks, but 2 episodes"),
        (lambda e: e, {"task": "", "tasks": ["a", ""]}, "task of episode 1 must be a text"),
        (lambda e: e, {"names": {"action": ["x"]}}, "names of 'action' must be 2"),
        (lambda e: e, {"names": {"actoin": ["x"]}}, "no 'actoin' to give names to"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, change, options, message):
    """And nothing is left behind."""
    episodes = change(demonstrations([2, 2]))
    with pytest.raises(ValueError, match=message):
        write_lerobot(tmp_path / "made", episodes, **{"fps": 10, "task": "push", **options})
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_over(folder):
    with pytest.raises(ValueError, match="is there already"):
        write_lerobot(folder, demonstrations([2]), 10, task="push")


def test_version_2_1_holds_the_same(tmp_path):
    """A file for each episode, in several chunks; numbers in their order, not in that of the alphabet."""
    episodes = demonstrations([2] * 12)
    tasks = ["push", "pull"] * 6
    old, _ = open_lerobot(str(write_v21(tmp_path / "old", episodes, 5, tasks, chunk=5)))
    new, _ = open_lerobot(str(write_lerobot(tmp_path / "new", episodes, 5, tasks=tasks)))
    assert (old.version, old.fps, old.tasks, old.episodes) == ("v2.1", new.fps, new.tasks, new.episodes)
    before, after = (read_rows(metadata, list(episodes[0])) for metadata in (old, new))
    assert np.array_equal(before.task_index, after.task_index)
    for key in episodes[0]:
        assert np.array_equal(before.columns[key], after.columns[key])
    assert old.statistics("action")["count"] == new.statistics("action")["count"]
    for name in ("min", "max", "mean", "std"):
        assert np.allclose(old.statistics("action")[name], new.statistics("action")[name])


def test_tasks_under_an_index_without_a_name(folder):
    """As earlier programs have written them."""
    frame = pd.DataFrame({"task_index": [0]}, index=["push"])
    frame.to_parquet(folder / "meta/tasks.parquet")
    assert open_lerobot(str(folder))[0].tasks == ["push"]


def test_pictures_of_the_table(pictures):
    """Any time steps in any arrangement; channels first; bit for bit; and resized as Pillow does it."""
    folder, episodes = pictures
    metadata, _ = open_lerobot(str(folder))
    index = np.array([[0, 6], [6, 3]])
    for key in ("observation.image", "observation.images.wrist"):
        seen = open_frames(metadata, key)(index)
        assert np.array_equal(seen, np.moveaxis(joined(episodes, key)[index], -1, 2))
    small = open_frames(metadata, "observation.image", [3, 2])(np.array([5])).numpy()[0]
    picture = Pillow.fromarray(joined(episodes, "observation.image")[5]).resize((2, 3), Pillow.Resampling.BICUBIC)
    assert np.array_equal(small, np.moveaxis(np.asarray(picture), -1, 0))


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ({"bytes": None, "path": "/etc/hostname"}, "no picture in the table"),
        ({"bytes": b"no picture", "path": None}, "unreadable picture"),
        (None, "no picture in the table"),
    ],
)
def test_pictures_that_are_none_are_refused(pictures, tmp_path, cell, message):
    """A path is never followed: it could be that of any file here."""
    folder = shutil.copytree(pictures[0], tmp_path / "copy")
    change_table(data_file(folder), lambda rows: rows["observation.image"].__setitem__(2, cell))
    frames = open_frames(open_lerobot(str(folder))[0], "observation.image")
    assert frames(np.array([1])).shape == (1, 3, 6, 4)
    with pytest.raises(ValueError, match=f"'observation.image' of time step 2 .*{message}"):
        frames(np.array([2]))


def test_pictures_of_another_size_are_refused(pictures, tmp_path):
    folder = shutil.copytree(pictures[0], tmp_path / "copy")
    change_json(folder / "meta/info.json", lambda info: info["features"]["observation.image"].update(shape=[8, 4, 3]))
    with pytest.raises(ValueError, match=r"4 wide and 6 high, but meta/info.json has 4 and 8"):
        open_frames(open_lerobot(str(folder))[0], "observation.image")(np.array([0]))


def info(**changes):
    """A change of info.json; None removes an entry."""

    def change(folder):
        def edit(content):
            content.update(changes)
            for key in [key for key, value in changes.items() if value is None]:
                del content[key]

        change_json(folder / "meta/info.json", edit)

    return change


def feature(key, **changes):
    """A change of a feature in info.json."""
    return lambda folder: change_json(
        folder / "meta/info.json", lambda x: x["features"].setdefault(key, {}).update(changes)
    )


def episodes_table(change):
    """A change of the table of episodes."""
    return lambda folder: change_table(folder / "meta/episodes/chunk-000/file-000.parquet", change)


def put(key, row, value):
    """A change of one cell of a table."""
    return lambda rows: rows[key].__setitem__(row, value)


def text(name, content):
    """A file of metadata replaced."""
    return lambda folder: (folder / name).write_text(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "meta/info.json").unlink(), "cannot read .*info.json"),
        (text("meta/info.json", "{"), "info.json is broken"),
        (text("meta/info.json", "[]"), "info.json must hold a JSON object"),
        (info(codebase_version="v1.6"), "version 'v1.6'; v2.1 and v3.0 can be read"),
        (info(codebase_version=None), "info.json has no 'codebase_version'"),
        (info(fps=None), "info.json has no 'fps'"),
        (info(fps="10"), "'fps' in .*info.json must be of type float, got '10'"),
        (info(fps=0), "'fps' in .*info.json must be positive"),
        (info(features=[]), "'features' in .*info.json must be of type dict"),
        (info(features={}), "'features' in .*info.json has no 'timestamp'"),
        (info(total_episodes=4), "'total_episodes' in .*info.json is 4, but the other files in meta/ have 3"),
        (info(total_frames=4), "'total_frames' in .*info.json is 4, but the other files in meta/ have 13"),
        (info(total_tasks=True), "'total_tasks' in .*info.json must be of type int"),
        (feature("action", shape=[2.5]), "'shape' in feature 'action' .* must be whole numbers above 0"),
        (feature("action", shape=[]), "'shape' in feature 'action' .* must be whole numbers above 0"),
        (feature("action", dtype=None), "'dtype' in feature 'action' .* must be of type str"),
        (feature("../action", dtype="float32", shape=[1]), "feature '../action' .* cannot be that of a folder"),
        (feature("cam", dtype="video", shape=[1]), "feature 'cam' .* must have three axes"),
        (feature("cam", dtype="video", shape=[6, 4, 3]), "has no column 'videos/cam/chunk_index'"),
        (lambda folder: (folder / "meta/tasks.parquet").unlink(), "cannot read .*tasks.parquet"),
        (text("meta/tasks.parquet", "PAR1"), "cannot read .*tasks.parquet"),
        (
            lambda folder: change_table(folder / "meta/tasks.parquet", put("task_index", 0, 3)),
            "must number the tasks from 0, got .3.",
        ),
        (
            lambda folder: change_table(folder / "meta/tasks.parquet", put("task", 0, "pull")),
            "episode 0 .* has the task 'push'",
        ),
        (lambda folder: (folder / "meta/episodes/chunk-000/file-000.parquet").unlink(), "has no files meta/episodes"),
        (episodes_table(lambda rows: rows.pop("length")), "has no column 'length'"),
        (episodes_table(put("length", 1, 0)), "'length' of episode 1 .* must be at least 1, got 0"),
        (episodes_table(put("length", 1, None)), "'length' in .* must be of type int, got None"),
        (episodes_table(put("episode_index", 1, 5)), "must number the episodes from 0 in order, got 5 for episode 1"),
        (
            episodes_table(put("dataset_from_index", 2, 7)),
            r"of episode 2 .* are \[7, 13\], but by the lengths its rows are 6 to 13",
        ),
        (episodes_table(put("tasks", 0, [None])), "'tasks' of episode 0 .* must be a list of at least one text"),
        (episodes_table(put("tasks", 0, [])), "'tasks' of episode 0 .* must be a list of at least one text"),
    ],
)
def test_broken_metadata_are_refused(folder, change, message):
    """By file and field, in one sentence."""
    change(folder)
    with pytest.raises(ValueError, match=message) as caught:
        open_lerobot(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tasks", "", "'total_tasks' .* is 1, but the other files in meta/ have 0"),
        ("tasks", "{}", "tasks.jsonl has no 'task_index'"),
        ("episodes", '{"episode_index": 0', "line 1 of .*episodes.jsonl is no JSON"),
        ("episodes", "3", "line 1 of .*episodes.jsonl must hold a JSON object"),
        ("episodes", '{"episode_index": 0, "tasks": ["t"]}', "episodes.jsonl has no 'length'"),
    ],
)
def test_broken_lines_are_refused(tmp_path, name, content, message):
    """The metadata of version 2.1."""
    folder = write_v21(tmp_path / "old", demonstrations([2]), 5, ["t"])
    (folder / f"meta/{name}.jsonl").write_text(content)
    with pytest.raises(ValueError, match=message):
        open_lerobot(str(folder))


def rows_of(change):
    """A change of the table of time steps."""
    return lambda folder: change_table(data_file(folder), change)


def all_of(key, value):
    """A column that holds one value."""
    return lambda rows: rows.__setitem__(key, [value] * len(rows[key]))


def swapped(rows):
    """Rows of the first episode beyond the second."""
    for key in rows:
        rows[key][4], rows[key][5] = rows[key][5], rows[key][4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rows_of(lambda rows: rows.pop("action")), "cannot read .*file-000.parquet: it has no column 'action'"),
        (rows_of(lambda rows: rows.pop("episode_index")), "has no column 'episode_index'"),
        (
            rows_of(all_of("action", [1.0, 2.0, 3.0])),
            r"'action' has the shape \[2\] in meta/info.json, but rows of .* hold 3 numbers",
        ),
        (rows_of(put("action", 4, [1.0])), r"'action' has the shape \[2\].* hold 1 numbers"),
        (rows_of(put("action", 4, None)), r"'action' has the shape \[2\].* hold 0 numbers"),
        (rows_of(all_of("action", "up")), "the column 'action' of .* must hold numbers, got string"),
        (
            rows_of(put("observation.state", 8, [0.0, np.nan])),
            "'observation.state' of made holds NaN.* episode 2, frame 2 .1 such rows",
        ),
        (
            rows_of(put("observation.state", 5, [None, 0.0])),
            "'observation.state' of made holds .*missing.* episode 1, frame 0",
        ),
        (rows_of(put("action", 0, [np.inf, 0.0])), "'action' of made holds NaN, infinite"),
        (
            rows_of(swapped),
            "'episode_index' of row 4 .* is 1, but .* it is 0: the rows of an episode must be contiguous",
        ),
        (rows_of(put("frame_index", 6, 1)), "'frame_index' of row 6 .* is 1, but .* it is 0"),
        (rows_of(put("index", 6, 1)), "'index' of row 6 .* is 1, but .* it is 6"),
        (
            rows_of(put("task_index", 6, 1)),
            "'task_index' in rows of episode 2 .* is 1, but by the metadata its tasks are push",
        ),
        (rows_of(lambda rows: [rows[key].pop() for key in rows]), "have 12 rows, but the episodes in meta/ have 13"),
        (info(fps=30), "'fps' in .*info.json is 30, but the 'timestamp' of frame 1 of episode 0 is 0.1 s"),
        (info(fps=10.5), "'fps' in .*info.json is 10.5, but the 'timestamp'"),
        (feature("timestamp", shape=[2]), r"'timestamp' of made must have the shape \[1\]"),
        (feature("action", dtype="string"), "'action' of made is of type 'string', not numbers"),
        (lambda folder: data_file(folder).write_bytes(b"PAR1"), "cannot read .*file-000.parquet"),
        (lambda folder: data_file(folder).unlink(), "has no files data/"),
    ],
)
def test_broken_rows_are_refused(folder, change, message):
    """By key, episode and frame, in one sentence."""
    change(folder)
    metadata, _ = open_lerobot(str(folder))
    with pytest.raises(ValueError, match=message) as caught:
        read_rows(metadata, ["observation.state", "action"])
    assert "\n" not in str(caught.value)


def test_keys_that_are_not_there_are_refused(pictures):
    metadata, _ = open_lerobot(str(pictures[0]))
    with pytest.raises(ValueError, match=r"has no 'observation.sate'; its features are observation.state"):
        read_rows(metadata, ["observation.sate"])
    with pytest.raises(ValueError, match=r"type 'image', not numbers: name it in data.cameras"):
        read_rows(metadata, ["observation.image"])
    for camera in ("observation.state", "observation.images.top"):
        with pytest.raises(
            ValueError, match=f"'{camera}' is no camera of seen; it has observation.image, observation.images.wrist"
        ):
            open_frames(metadata, camera)
    with pytest.raises(ValueError, match=r"image_size must be \[height, width\]"):
        open_frames(metadata, "observation.image", [3])


def test_where_there_is_no_data_set(folder, tmp_path):
    with pytest.raises(ValueError, match="is a file: give the folder"):
        open_lerobot(str(folder / "meta/info.json"))
    with pytest.raises(ValueError, match=r"data.revision 'v2' is for data sets on the Hub"):
        open_lerobot(str(folder), "v2")
    with pytest.raises(ValueError, match=r"is no file or folder here, and .*the Hub cannot be reached"):
        open_lerobot("user/nothing")


def test_a_data_set_of_the_hub(hub, offline, folder, tmp_path):
    """At the revision that is named, whose commit is reported; no code is downloaded; without a connection it comes from the cache."""
    api, name = HfApi(), "user/pusht"
    api.create_repo(name, repo_type="dataset")
    (folder / "pusht.py").write_text("raise SystemExit('executed')")
    old = api.upload_folder(repo_id=name, repo_type="dataset", folder_path=folder).oid
    api.create_tag(name, tag="v3.0", repo_type="dataset")
    change_json(folder / "meta/info.json", lambda x: x.update(total_frames=1))
    api.upload_folder(repo_id=name, repo_type="dataset", folder_path=folder)
    metadata, facts = open_lerobot(name, "v3.0")
    assert facts == {"source": name, "split": "train", "revision": old}
    expected = joined(demonstrations(LENGTHS), "action")
    assert np.array_equal(read_rows(metadata, ["action"]).columns["action"], expected)
    with pytest.raises(ValueError, match="'total_frames'"):
        open_lerobot(name)
    with offline():
        again, facts = open_lerobot(name, "v3.0")
        assert np.array_equal(read_rows(again, ["action"]).columns["action"], expected)
    assert facts["revision"] == old
    assert not list(Path(constants.HF_HUB_CACHE).rglob("*.py"))
    with pytest.raises(ValueError, match="the Hub has no such repository"):
        open_lerobot("user/nothing")


def test_the_demonstrations_of_pusht(shared_data):
    """206 episodes at 10 Hz; what the reader gives is what is in the table, and writing it again gives the same table."""
    folder = shared_data / "pusht/lerobot_v30"
    metadata, _ = open_lerobot(str(folder))
    rows = read_rows(metadata, ["observation.state", "observation.environment_state", "action"])
    assert (len(metadata.episodes), sum(metadata.lengths), metadata.fps) == (206, 25_650, 10.0)
    raw = pq.read_table(data_file(folder))
    for key, values in rows.columns.items():
        assert np.array_equal(values, np.stack(raw[key].to_numpy()))
    stored = metadata.statistics("action")
    assert np.allclose(stored["q01"], np.quantile(rows.columns["action"], 0.01, axis=0))
    assert isinstance(raw.schema.field("action").type, pa.FixedSizeListType)
