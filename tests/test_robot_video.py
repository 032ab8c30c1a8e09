"""Cameras whose pictures are in videos: every frame is that of its time step, from either version of the format; nothing but the file is opened."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import config as datasets_config
from robots import change_json, change_table, demonstrations, write_v21

from hf_flowft.data import RobotConfig, load_robot
from hf_flowft.data.robot import frames, open_lerobot, write_lerobot
from hf_flowft.data.robot.frames import open_frames

imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
LENGTHS, FPS, CAMERA, SHAPE = [5, 20, 9], 10, "observation.images.top", (32, 48, 3)
LEVELS = 10 + 5 * np.arange(sum(LENGTHS))


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """Decoded frames go to a folder of the test."""
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hf_flowft_frames"


def write_video(path, levels):
    """Grey frames, one for each level, compressed with frames that refer to each other in both directions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = ["-crf", "10", "-g", "8", "-bf", "2"]
    writer = imageio_ffmpeg.write_frames(
        str(path), SHAPE[1::-1], fps=FPS, codec="libx264", quality=None, output_params=options
    )
    writer.send(None)
    for level in levels:
        writer.send(np.full(SHAPE, level, np.uint8).tobytes())
    writer.close()


def add_camera(folder, file="file-000.mp4", starts=(0.0, 0.5, 2.5)):
    """All episodes in one video of a data set of version 3.0, each from a second on."""
    feature = {"dtype": "video", "shape": list(SHAPE), "names": ["height", "width", "channels"]}
    change_json(folder / "meta/info.json", lambda info: info["features"].update({CAMERA: feature}))
    columns = {"chunk_index": [0] * 3, "file_index": [0] * 3, "from_timestamp": list(starts)}
    named = {f"videos/{CAMERA}/{key}": values for key, values in columns.items()}
    change_table(folder / "meta/episodes/chunk-000/file-000.parquet", lambda rows: rows.update(named))
    return folder / f"videos/{CAMERA}/chunk-000" / file


@pytest.fixture
def folder(tmp_path):
    """Three episodes with one video of them all."""
    folder = write_lerobot(tmp_path / "made", demonstrations(LENGTHS), FPS, task="push")
    write_video(add_camera(folder), LEVELS)
    return folder


def levels(frames, index):
    """The grey level of each picture."""
    return frames(np.asarray(index)).numpy().reshape(*np.shape(index), -1).astype(float).mean(axis=-1)


def test_frames_of_one_video_for_all(folder, cache):
    """Each time step has its own, whichever episode it is of; they are decoded once."""
    metadata, _ = open_lerobot(str(folder))
    frames = open_frames(metadata, CAMERA)
    assert np.abs(levels(frames, range(sum(LENGTHS))) - LEVELS).max() < 2
    assert frames(np.array([[0, 5], [33, 4]])).shape == (2, 2, 3, 32, 48)
    (made,) = cache.glob("*.npy")
    before = made.stat().st_mtime_ns
    assert open_frames(metadata, CAMERA) == frames
    assert made.stat().st_mtime_ns == before


def test_frames_of_a_video_for_each(tmp_path):
    """Version 2.1; resized."""
    folder = write_v21(tmp_path / "old", demonstrations(LENGTHS), FPS, ["t"] * 3, chunk=2, camera=(CAMERA, SHAPE))
    ends = np.cumsum(LENGTHS)
    for number, (length, end) in enumerate(zip(LENGTHS, ends, strict=True)):
        path = folder / f"videos/chunk-{number // 2:03d}/{CAMERA}/episode_{number:06d}.mp4"
        write_video(path, LEVELS[end - length : end])
    frames = open_frames(open_lerobot(str(folder))[0], CAMERA, [16, 24])
    assert frames(np.array([0])).shape == (1, 3, 16, 24)
    assert np.abs(levels(frames, range(sum(LENGTHS))) - LEVELS).max() < 2


def test_windows_of_videos(folder):
    """The condition is the pictures of the time steps of the window, held at the start of the episode."""
    config = RobotConfig(path=str(folder), cameras=[CAMERA], validation=0.0, test=0.0, observation_horizon=3)
    data = load_robot(config)
    pictures = data.rows("train", [5, 6, 33]).condition["image_top"]
    assert pictures.shape == (3, 3, 3, 32, 48)
    expected = LEVELS[[[5, 5, 5], [5, 5, 6], [31, 32, 33]]]
    assert np.abs(pictures.float().flatten(2).mean(dim=2).numpy() - expected).max() < 2


def test_only_the_first_episodes_are_decoded(tmp_path, cache):
    """A video that only a later episode has need not be there, and what is kept has the frames of the others alone."""
    folder = write_lerobot(tmp_path / "made", demonstrations(LENGTHS), FPS, task="push")
    write_video(add_camera(folder), LEVELS)
    numbers = {f"videos/{CAMERA}/file_index": [0, 0, 1]}
    change_table(folder / "meta/episodes/chunk-000/file-000.parquet", lambda rows: rows.update(numbers))
    load_robot(RobotConfig(path=str(folder), cameras=[CAMERA], max_episodes=2, validation=0, test=0))
    (kept,) = cache.glob("*.npy")
    assert len(np.load(kept, mmap_mode="r")) == sum(LENGTHS[:2])
    with pytest.raises(ValueError, match="there is no video"):
        load_robot(RobotConfig(path=str(folder), cameras=[CAMERA], validation=0, test=0))


def test_only_the_videos_of_the_first_episodes_are_downloaded(hub, tmp_path):
    """Of a data set on the Hub, in which every episode has a video of its own."""
    made = write_v21(tmp_path / "old", demonstrations(LENGTHS), FPS, ["t"] * 3, chunk=2, camera=(CAMERA, SHAPE))
    for number, length in enumerate(LENGTHS):
        write_video(made / f"videos/chunk-{number // 2:03d}/{CAMERA}/episode_{number:06d}.mp4", LEVELS[:length])
    content = {path.relative_to(made).as_posix(): path.read_bytes() for path in made.rglob("*") if path.is_file()}
    hub.create("user/demos", content, repo_type="dataset")
    for episodes, expected in ((2, [0, 1]), (0, [0, 1, 2])):
        metadata, _ = open_lerobot("user/demos", cameras=[CAMERA], episodes=episodes)
        here = sorted(path.stem for path in metadata.folder.rglob("*.mp4"))
        assert here == [f"episode_{number:06d}" for number in expected]


def test_one_process_decodes_and_the_others_wait(folder, monkeypatch):
    """Two that ask at the same time have the frames of one decoding."""
    metadata, _ = open_lerobot(str(folder))
    decoded = []
    monkeypatch.setattr(frames, "_decode_all", lambda *a, real=frames._decode_all: (decoded.append(a), real(*a)))
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: levels(open_frames(metadata, CAMERA), [0, 33]), range(2)))
    assert np.array_equal(*found)
    assert len(decoded) == 1


def test_another_video_is_decoded_again(folder):
    """What is kept is that of this file, not of its name."""
    metadata, _ = open_lerobot(str(folder))
    open_frames(metadata, CAMERA)
    write_video(folder / f"videos/{CAMERA}/chunk-000/file-000.mp4", LEVELS[::-1])
    assert np.abs(levels(open_frames(metadata, CAMERA), range(sum(LENGTHS))) - LEVELS[::-1]).max() < 2


def test_a_missing_decoder_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ValueError, match=r"pip install hf_flowft\[video\], or choose no cameras"):
        open_frames(open_lerobot(str(folder))[0], CAMERA)


def shorter(path):
    """One frame less than there should be."""
    write_video(path, LEVELS[:-1])


def playlist(path):
    """A text that names other files, which some players would open."""
    path.write_text("ffconcat version 1.0\nfile /etc/hostname\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shorter, "has only 8 of the 9 frames of an episode from 2.5 s on"),
        (lambda path: path.unlink(), "there is no video"),
        (lambda path: path.write_bytes(b"no video"), "cannot decode .*file-000.mp4"),
        (playlist, "cannot decode .*file-000.mp4"),
    ],
)
def test_broken_videos_are_refused(folder, cache, change, message):
    """In one sentence, and nothing is kept."""
    change(folder / f"videos/{CAMERA}/chunk-000/file-000.mp4")
    with pytest.raises(ValueError, match=message) as caught:
        open_frames(open_lerobot(str(folder))[0], CAMERA)
    assert "\n" not in str(caught.value)
    assert not [path for path in cache.glob("*") if path.suffix != ".lock"]


def test_videos_of_another_size_are_refused(folder):
    change_json(folder / "meta/info.json", lambda info: info["features"][CAMERA].update(shape=[32, 40, 3]))
    with pytest.raises(ValueError, match=r"it is 48 wide and 32 high, but meta/info.json has 40 and 32"):
        open_frames(open_lerobot(str(folder))[0], CAMERA)


def test_depth_is_refused(folder):
    """A fourth channel would be dropped in silence."""
    change_json(folder / "meta/info.json", lambda info: info["features"][CAMERA].update(shape=[32, 48, 4]))
    with pytest.raises(ValueError, match=r"'observation.images.top' of made has 4 channels; 1 and 3 can be read"):
        open_frames(open_lerobot(str(folder))[0], CAMERA)


def test_the_times_of_the_table_are_used(folder):
    """An episode that is elsewhere in the video than those before it end."""
    path = folder / "meta/episodes/chunk-000/file-000.parquet"
    change_table(path, lambda rows: rows[f"videos/{CAMERA}/from_timestamp"].__setitem__(0, 1.2))
    assert pq.read_table(path)[f"videos/{CAMERA}/from_timestamp"].to_pylist() == [1.2, 0.5, 2.5]
    frames = open_frames(open_lerobot(str(folder))[0], CAMERA)
    assert np.abs(levels(frames, range(5)) - LEVELS[12:17]).max() < 2
