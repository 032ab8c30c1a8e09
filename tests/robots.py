"""Small demonstrations for tests: in arrays, and as hand-made files of both versions of the format."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

INDEX_TYPES = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}


def demonstrations(lengths, images=False, seed=0):
    """Episodes of a state of 2 numbers, an environment state of 3, an action of 2, a reward and a success; cameras of 6 x 4 pixels."""
    random = np.random.default_rng(seed)
    found = []
    for n in lengths:
        episode = {
            "observation.state": random.normal(size=(n, 2)).astype(np.float32),
            "observation.environment_state": random.normal(size=(n, 3)).astype(np.float32),
            "action": random.uniform(0, 512, size=(n, 2)).astype(np.float32),
            "next.reward": random.uniform(size=n).astype(np.float32),
            "next.success": np.arange(n) == n - 1,
        }
        if images:
            episode["observation.image"] = random.integers(0, 256, (n, 6, 4, 3), dtype=np.uint8)
            episode["observation.images.wrist"] = random.integers(0, 256, (n, 6, 4, 1), dtype=np.uint8)
        found.append(episode)
    return found


def write_v21(folder: Path, episodes, fps, tasks, chunk=1000, camera=None):
    """Episodes of one-dimensional rows as version 2.1, a file each, by nothing but json and pyarrow; `tasks`: one for each episode.

    Args: `camera`: (key, shape) of one whose videos are put there by the caller.
    """
    texts, start = list(dict.fromkeys(tasks)), 0
    features = {
        key: {"dtype": str(x.dtype), "shape": list(x.shape[1:] or (1,)), "names": None}
        for key, x in episodes[0].items()
    }
    features |= {key: {"dtype": dtype, "shape": [1], "names": None} for key, dtype in INDEX_TYPES.items()}
    if camera:
        features[camera[0]] = {"dtype": "video", "shape": list(camera[1]), "names": ["height", "width", "channel"]}
    described, known = [], []
    for number, (episode, task) in enumerate(zip(episodes, tasks, strict=True)):
        n = len(episode["action"])
        index = {
            "timestamp": (np.arange(n) / fps).astype(np.float32),
            "frame_index": np.arange(n),
            "episode_index": np.full(n, number),
            "index": np.arange(start, start + n),
            "task_index": np.full(n, texts.index(task)),
        }
        start += n
        path = folder / f"data/chunk-{number // chunk:03d}/episode_{number:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        columns = {key: pa.array(list(x)) for key, x in (episode | index).items()}
        pq.write_table(pa.table(columns), path)
        described.append({"episode_index": number, "tasks": [task], "length": n})
        stats = {
            key: {name: np.atleast_1d(getattr(x, name)(axis=0)).tolist() for name in ("min", "max", "mean", "std")}
            | {"count": [n]}
            for key, x in episode.items()
            if x.dtype != bool
        }
        known.append({"episode_index": number, "stats": stats})
    info = {
        "codebase_version": "v2.1",
        "robot_type": "none",
        "total_episodes": len(episodes),
        "total_frames": start,
        "total_tasks": len(texts),
        "total_videos": 0,
        "total_chunks": 1,
        "chunks_size": chunk,
        "fps": fps,
        "splits": {"train": f"0:{len(episodes)}"},
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": None,
        "features": features,
    }
    (folder / "meta").mkdir()
    (folder / "meta/info.json").write_text(json.dumps(info))
    lines = {
        "tasks": [{"task_index": i, "task": text} for i, text in enumerate(texts)],
        "episodes": described,
        "episodes_stats": known,
    }
    for name, content in lines.items():
        (folder / f"meta/{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in content))
    return folder


def change_json(path: Path, change) -> None:
    """Apply `change` to what a JSON file holds, in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def change_table(path: Path, change) -> None:
    """Apply `change` to the dict of columns (lists) of a parquet file, in place."""
    content = pq.read_table(path).to_pydict()
    change(content)
    pq.write_table(pa.table(content), path)


def data_file(folder: Path) -> Path:
    """The one table of a small data set of version 3.0."""
    (path,) = folder.glob("data/*/*.parquet")
    return path
