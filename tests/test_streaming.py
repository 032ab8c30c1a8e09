"""Streams: every row once a pass, in an order that seed and step decide, whoever reads it and from wherever; training resumes bitwise."""

import signal
import threading
import time

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from datasets import config as datasets_config
from PIL import Image
from tiny import SMALL_RUN, network, pretrained

from hf_flowft import Callback, EvalConfig, FlowMatchingObjective, FlowTrainer, Run, TrainConfig, load_config
from hf_flowft.couplings import Shard
from hf_flowft.data import ImagesConfig, VectorsConfig, load_images, load_vectors
from hf_flowft.data.streams import RowStream, split_stream
from hf_flowft.training.batches import LoaderRows, MemoryRows, SampleOrder, StreamRows, training_rows


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """What `datasets` converts goes to the test's own folder."""
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def counting(rows=1000, shards=3):
    """A stream of rows that say their own number, and a label that is the number modulo 4."""
    table = Dataset.from_dict({"a": [float(i) for i in range(rows)], "kind": [i % 4 for i in range(rows)]})
    return table.to_iterable_dataset(num_shards=shards)


def stream(source=None, shuffle_buffer=16, epoch_size=50, prepare=lambda rows, numbers: rows, **options):
    return RowStream(
        source or counting(), "rows", ["a"], prepare, epoch_size=epoch_size, shuffle_buffer=shuffle_buffer, **options
    )


def drawn(rows, count, seed=0, start=0):
    """The first `count` row numbers a stream gives, from sample `start` on, each checked against the row's content."""
    found = []
    for block, order in rows.shuffled(seed, start):
        assert np.array_equal(block.rows.with_format("numpy")["a"][:], block.numbers)
        found += block.numbers[order.numpy()].tolist()
        if len(found) >= count:
            return found[:count]


# The order of rows


@pytest.mark.parametrize("buffer", [1, 7, 100, 299, 5000])
def test_every_row_once_a_pass_within_the_buffer(buffer):
    """Three passes are three permutations of all rows; no row moves by as much as the buffer, and passes differ once there is one."""
    passes = np.array(drawn(stream(counting(300), buffer), 900)).reshape(3, 300)
    assert (np.sort(passes, axis=1) == np.arange(300)).all()
    assert np.abs(passes - np.arange(300)).max() < buffer
    assert len({tuple(p) for p in passes.tolist()}) == (1 if buffer == 1 else 3)


def test_blocks_begin_elsewhere_in_every_pass():
    """Rows that no block of one pass holds together are exchanged in another: over passes, every border between neighbours is crossed."""
    passes = np.array(drawn(stream(counting(200), 10), 8000)).reshape(40, 200)
    crossed = np.maximum.accumulate(passes, axis=1)[:, :-1] > np.arange(199)
    assert not crossed.all(axis=1).any()
    assert crossed.any(axis=0).all()


def test_the_seed_and_the_position_decide_a_sample():
    """Whatever is asked for first, also beyond the end of a pass; the global generators have no say."""
    whole = drawn(stream(), 2600, seed=3)
    torch.manual_seed(5)
    for start in (0, 1, 15, 16, 999, 1000, 1001, 2500):
        assert drawn(stream(), 40, seed=3, start=start) == whole[start : start + 40]
    assert drawn(stream(), 100, seed=4) != whole[:100]


def test_two_readers_do_not_disturb_each_other():
    """Two iterations of one stream at the same time both see every row."""
    rows = stream()
    readers, found = [rows.shuffled(0), rows.shuffled(0)], [[], []]
    for turn in range(360):
        reader = min(turn % 3, 1)  # the second one is twice as fast
        block, order = next(readers[reader])
        found[reader] += block.numbers[order.numpy()].tolist()
    assert found[0][:1000] == found[1][:1000] == drawn(stream(), 1000)
    assert found[1][:2000] == drawn(stream(), 2000)


def test_what_was_skipped_is_not_prepared():
    """Going on at a sample prepares its block and later ones only: images before it are never decoded, vectors never checked."""
    prepared = []
    rows = stream(prepare=lambda rows, numbers: prepared.extend(numbers) or rows)
    drawn(rows, 1, start=1500)
    assert 0 < len(prepared) <= 16


def test_memory_is_bounded():
    """Before the first batch comes, three blocks and a chunk at most have been read of an endless source."""
    read = []

    def endless():
        while True:
            read.append(len(read))
            yield {"a": float(len(read) - 1)}

    rows = stream(IterableDataset.from_generator(endless), shuffle_buffer=600, epoch_size=100)
    next(rows.shuffled(0))
    assert len(read) <= 3 * 600 + 2 * 512


def test_the_thread_that_reads_ahead_ends_with_its_reader(tmp_path):
    """Whether it was waiting with a block or reading one."""
    data, before = vectors(write(tmp_path)), threading.active_count()
    batches = StreamRows(data).batches(SampleOrder(100, 10, 0), 0)
    next(batches)
    assert threading.active_count() == before + 1
    batches.close()
    for _ in range(50):
        if threading.active_count() == before:
            return
        time.sleep(0.1)
    raise AssertionError("a thread is left")


# Splits


def test_held_out_rows_are_drawn_from_the_head_and_never_given():
    """Validation, test and the sample `train` are disjoint and make up the head; the stream has all other rows and `train`."""
    splits, rest = split_stream(stream(), held_out=20, seed=0)
    parts = {name: split["a"][:] for name, split in splits.items()}
    assert {name: len(part) for name, part in parts.items()} == {"test": 20, "validation": 20, "train": 50}
    assert sorted(number for part in parts.values() for number in part) == list(range(90))
    assert parts["train"] == sorted(parts["train"])
    assert max(parts["test"]) > 45 > min(parts["test"])  # drawn from all of the head, not its first rows
    kept = set(range(1000)) - set(parts["test"]) - set(parts["validation"])
    given = drawn(rest, 2 * len(kept))
    assert set(given[: len(kept)]) == set(given[len(kept) :]) == kept
    again, _ = split_stream(stream(shuffle_buffer=3), held_out=20, seed=0)
    assert again["test"]["a"][:] == parts["test"]
    assert split_stream(stream(), held_out=20, seed=1)[0]["test"]["a"][:] != parts["test"]


def test_labels_choose_target_and_base():
    """The target's rows have its labels, or all that are not the base's; what the base is judged on is never trained on."""
    options = {"label_column": "kind", "columns": ["a", "kind"]}
    target = RowStream(
        counting(), "rows", prepare=lambda r, n: r, epoch_size=50, shuffle_buffer=16, labels=[0, 1], **options
    )
    splits, rest = split_stream(target, held_out=10, seed=0, base_labels=[3])
    for name, split in splits.items():
        assert set(split["kind"][:]) == ({3} if name.startswith("base_") else {0, 1})
    assert {n % 4 for n in drawn(rest, 480)} == {0, 1}
    everything = RowStream(counting(), "rows", prepare=lambda r, n: r, epoch_size=50, shuffle_buffer=16, **options)
    splits, rest = split_stream(everything, held_out=10, seed=0, base_labels=[3])
    assert [len(splits[name]) for name in ("base_validation", "base_test")] == [10, 10]
    assert {n % 4 for n in drawn(rest, 960)} == {n % 4 for n in splits["train"]["a"][:]} == {0, 1, 2}


@pytest.mark.parametrize(("rows", "train"), [(90, 50), (60, 20), (41, 1)])
def test_a_stream_that_ends_within_its_first_epoch_is_a_table(rows, train):
    """It is held in memory, and trained on in shorter epochs."""
    splits, rest = split_stream(stream(counting(rows)), held_out=20, seed=0)
    assert rest is None
    assert len(splits["train"]) == train


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (lambda: counting(40), {}, "has only 40 rows, but data.held_out takes 20 for validation and as many for test"),
        (lambda: IterableDataset.from_generator(lambda: iter(())), {}, "the stream rows is empty"),
        (counting, {"labels": [7], "label_column": "kind"}, r"is empty: there are no rows with the labels \[7\]"),
    ],
)
def test_too_few_rows_are_refused(source, options, message):
    with pytest.raises(ValueError, match=message):
        split_stream(stream(source(), **options), held_out=20, seed=0)


def test_a_single_row_of_the_base_is_refused():
    source = Dataset.from_dict({"a": range(200), "kind": [int(i == 50) for i in range(200)]}).to_iterable_dataset()
    rows = stream(source, label_column="kind")
    with pytest.raises(ValueError, match=r"a single row with one of the base's labels \[1\]"):
        split_stream(rows, held_out=20, seed=0, base_labels=[1])


def test_a_source_that_has_dried_up_is_not_waited_for():
    """Without a row to give there is an error, not an endless search."""
    empty = stream(counting(10), held_out=np.arange(10))
    with pytest.raises(ValueError, match="no rows for training any more"):
        next(empty.shuffled(0))


# From files


def table(rows=1000, **columns):
    """Points whose coordinates are functions of their number."""
    x = np.random.default_rng(0).normal(size=(rows, 2))
    return {"x": x[:, 0], "y": x[:, 1], "kind": np.arange(rows) % 4, "name": ["text"] * rows, **columns}


def write(tmp_path, suffix="parquet", **columns):
    """A file of the table."""
    path, dataset = tmp_path / f"points.{suffix}", Dataset.from_dict(table(**columns))
    {"parquet": dataset.to_parquet, "csv": dataset.to_csv, "jsonl": dataset.to_json}[suffix](path)
    return str(path)


STREAMING = {"streaming": True, "epoch_size": 100, "held_out": 50, "shuffle_buffer": 64}


def vectors(path, **options):
    return load_vectors(
        VectorsConfig(**{"path": path, "columns": ["x", "y"], "label_column": "kind", **STREAMING, **options})
    )


def first_batches(rows, count, batch_size=64, start=0, shard=Shard()):
    """The batches of some steps."""
    stream = rows.batches(SampleOrder(len(rows), batch_size, 0, shard), start)
    return [next(stream) for _ in range(count)]


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_streamed_files_have_the_rows_of_the_table(tmp_path, kind):
    """Normalised by the sample's mean and deviation, every row of a pass is one of the table with its label, and none comes twice."""
    data = vectors(write(tmp_path, kind))
    rows = training_rows(data)
    assert isinstance(rows, StreamRows)
    assert (len(rows), data.counts) == (100, {"test": 50, "validation": 50, "train": 100})
    train = data.rows("train").x_1
    np.testing.assert_allclose(train.mean(dim=0), 0, atol=1e-6)
    np.testing.assert_allclose(train.std(dim=0, correction=0), 1, atol=1e-5)
    truth = torch.tensor(np.stack([table()["x"], table()["y"]], axis=1), dtype=torch.float32)
    seen = []
    for batch in first_batches(rows, 14):
        distance = torch.cdist(data.normalisation.undo(batch.x_1), truth, compute_mode="donot_use_mm_for_euclid_dist")
        assert distance.min(dim=1).values.max() < 1e-5
        index = distance.argmin(dim=1)
        assert torch.equal(batch.condition["class_labels"], index % 4)
        seen += index.tolist()
    assert len(set(seen)) == 14 * 64 == 896
    assert data.facts["source"] == f"points.{kind}"


def test_processes_share_a_batch_and_start_anywhere(tmp_path):
    """The slices of two processes make up the batch of one, at steps in the middle and beyond the end of a pass."""
    data = vectors(write(tmp_path))
    whole = first_batches(StreamRows(data), 20)
    for start in (0, 3, 14, 19):
        halves = [first_batches(StreamRows(data), 1, start=start, shard=Shard(rank, 2))[0] for rank in range(2)]
        assert torch.equal(torch.cat([half.x_1 for half in halves]), whole[start].x_1)
        assert torch.equal(
            torch.cat([h.condition["class_labels"] for h in halves]), whole[start].condition["class_labels"]
        )


def test_the_rows_of_a_step_can_be_named(tmp_path):
    """By their numbers in the file, for the last steps; others are not remembered."""
    data = vectors(write(tmp_path), normalise=False)
    rows = StreamRows(data)
    order = SampleOrder(len(rows), 8, 0)
    (batch,) = first_batches(rows, 1, batch_size=8, start=5)
    expected = np.stack([table()["x"], table()["y"]], axis=1)[rows.row_numbers(order, 5)]
    np.testing.assert_allclose(batch.x_1, expected, rtol=1e-6)
    assert rows.row_numbers(order, 4) == []


def test_banks_are_made_of_the_sample(tmp_path):
    """A bank of pairs stands on the rows of the first epoch."""
    pretrained("toy").save_pretrained(tmp_path / "base")
    settings = [
        *SMALL_RUN,
        f"--data.path={write(tmp_path)}",
        f"--model.path={tmp_path / 'base'}",
        f"--output_dir={tmp_path / 'run'}",
    ]
    stream = ["--data.streaming=true", "--data.epoch_size=60", "--data.held_out=20", "--data.shuffle_buffer=16"]
    named = {
        "data": {"name": "vectors", "columns": ["x", "y"]},
        "model": {"name": "pretrained"},
        "objective": {"name": "mle"},
    }
    run = Run(load_config(None, [*settings, *stream, "--pairs.num_steps=1"], named), progress=False)
    assert len(run.trainer.rows) == 60
    result = run.execute()
    data = result.results["data"]
    assert data["stream"] == {"epoch_size": 60, "shuffle_buffer": 16}
    assert (data["source"], data["counts"]) == ("points.parquet", {"train": 60, "validation": 20, "test": 20})
    bank = run.trainer.rows.tensors()["x_1"]
    assert torch.equal(bank.sort(dim=0).values, run.data.rows("train").x_1.sort(dim=0).values)
    assert str(tmp_path) not in (tmp_path / "run" / "results.json").read_text()


# Images


@pytest.fixture
def pictures(tmp_path):
    """A parquet file of 300 grey images of one value each, number modulo 256, and their number modulo 3 as label."""
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    images = [Image.new("RGB", (6, 5), (i % 256,) * 3) for i in range(300)]
    path = tmp_path / "pictures.parquet"
    Dataset.from_dict({"image": images, "label": [i % 3 for i in range(300)]}, features=features).to_parquet(path)
    return str(path)


def images(path, **options):
    defaults = {"streaming": True, "epoch_size": 60, "held_out": 20, "shuffle_buffer": 32, "resolution": 4}
    return load_images(ImagesConfig(**{"path": path, "label_column": "label", **defaults, **options}))


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_images_are_decoded_when_they_are_drawn(pictures, workers):
    """By any number of workers: each image has its own grey and label, and a pass has all of them."""
    data = images(pictures)
    assert data.label_names == ["a", "b", "c"]
    rows = StreamRows(data, workers)
    order = SampleOrder(len(rows), 26, 0)
    for step, batch in enumerate(first_batches(rows, 10, batch_size=26)):
        grey = (batch.x_1[:, 0, 0, 0] * 127.5 + 127.5).round().long()
        assert batch.x_1.shape == (26, 3, 4, 4)
        numbers = torch.tensor(rows.row_numbers(order, step))
        assert torch.equal(numbers % 256, grey)
        assert torch.equal(numbers % 3, batch.condition["class_labels"])


def test_a_folder_of_images_is_streamed(tmp_path):
    """The same rows as the folder read as a table."""
    for i in range(30):
        path = tmp_path / "pictures" / ("cats" if i % 2 else "dogs") / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (i, i, i)).save(path)
    streamed = images(str(tmp_path / "pictures"), epoch_size=8, held_out=4)
    whole = load_images(ImagesConfig(path=str(tmp_path / "pictures"), label_column="label", resolution=4))
    known = {(x.sum().item(), k.item()) for name in whole.splits for x, k in paired(whole.rows(name))}
    seen = [pair for batch in first_batches(StreamRows(streamed), 11, 2) for pair in paired(batch)]
    seen = {(x.sum().item(), k.item()) for x, k in seen}
    assert len(seen) == 22
    assert seen <= known


def paired(batch):
    """Samples with their labels."""
    return list(zip(batch.x_1, batch.condition["class_labels"], strict=True))


def test_cifar_is_streamed(shared_data):
    """Real images: what a step gets are the pixels another reader decodes from the rows of these numbers."""
    import io

    import pyarrow.parquet

    path = shared_data / "images" / "cifar10_test.parquet"
    data = images(str(path), epoch_size=300, held_out=100, shuffle_buffer=700, resolution=32)
    rows = StreamRows(data)
    (batch,) = first_batches(rows, 1, batch_size=50, start=30)
    numbers = rows.row_numbers(SampleOrder(len(rows), 50, 0), 30)
    assert len(set(numbers)) == 50
    assert max(numbers) > 700
    content = pyarrow.parquet.read_table(path).take(numbers).to_pylist()
    pixels = [np.moveaxis(np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))), -1, 0) for row in content]
    assert np.array_equal(data.normalisation.undo(batch.x_1).round(), np.stack(pixels))
    assert batch.condition["class_labels"].tolist() == [row["label"] for row in content]


# What is wrong with rows


def run_to_the_end(data):
    """All batches of a pass."""
    first_batches(training_rows(data), 14)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"x": np.where(np.arange(1000) == 777, np.nan, 1.0)}, r"row 777 of the table holds NaN.* in x, y"),
        (
            {"kind": np.where(np.arange(1000) == 777, 9, 0)},
            r"row 777 of the stream 'points' has the label 9, but the labels are 0 to 0",
        ),
        ({"kind": np.where(np.arange(1000) == 777, -1, 0)}, "row 777 .* has the label -1"),
    ],
)
def test_bad_rows_in_the_middle_are_named(tmp_path, columns, message):
    """When the stream comes to them."""
    data = vectors(write(tmp_path, **columns))
    with pytest.raises(ValueError, match=message):
        run_to_the_end(data)


def test_types_that_change_in_the_middle_are_named(tmp_path):
    """Whole numbers may become fractions; text may not become numbers."""
    lines = [f"{i},{i}" if i < 400 else f"{i}.5,{i}" for i in range(1000)]
    for name, second in (("a", lines[500:]), ("b", ["word,word"] * 500)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.csv").write_text("\n".join(["x,y", *lines[:500]]))
        (tmp_path / name / "2.csv").write_text("\n".join(["x,y", *second]))
    run_to_the_end(vectors(str(tmp_path / "a"), label_column=""))
    with pytest.raises(ValueError, match=r"change their type among the rows|must hold numbers|after row"):
        run_to_the_end(vectors(str(tmp_path / "b"), label_column=""))


def test_broken_images_are_named(tmp_path, pictures):
    """By their row, when they are drawn."""
    import pyarrow
    import pyarrow.parquet

    content = pyarrow.parquet.read_table(pictures).to_pylist()
    schema = pyarrow.parquet.read_schema(pictures)
    content[250]["image"]["bytes"] = b"not an image"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(content, schema=schema), pictures)
    with pytest.raises(ValueError, match=r"row 250 of the stream 'pictures.parquet' is an unreadable image"):
        first_batches(StreamRows(images(pictures)), 10, batch_size=26)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": ["x", "z"]}, "no column 'z'; its columns are x, y, kind, name"),
        ({"columns": ["name"]}, "'name' must hold numbers"),
        ({"labels": [1], "label_column": ""}, r"name it with data.label_column"),
        ({"train_size": 5}, "data.train_size 5 is for tables that are not streamed"),
        ({"shuffle_buffer": 0}, "data.shuffle_buffer must be at least 1, got 0"),
        ({"epoch_size": -1}, "data.epoch_size must be at least 1, got -1"),
        ({"held_out": 0}, "data.held_out must be at least 1, got 0"),
        ({"split": "test"}, "cannot read .*test"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, options, message):
    """Each in one sentence."""
    with pytest.raises(ValueError, match=message) as caught:
        vectors(write(tmp_path), **options)
    assert "\n" not in str(caught.value)


def test_arrays_are_not_streamed(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((9, 2)))
    with pytest.raises(ValueError, match=r"set data.streaming to false for .*a.npz, or write parquet"):
        vectors(str(tmp_path / "a.npz"), columns=["x"], label_column="")


# Training


class StopAt(Callback):
    """Asks the run to stop after a step, as the system would."""

    def __init__(self, step):
        self.step = step

    def on_log(self, trainer, step, logs):
        """At the step."""
        if step == self.step:
            signal.raise_signal(signal.SIGTERM)


def trainer(data, folder=None, resume="", stop=0):
    """Ten steps of 128 from a stream of 900 rows: one and a half passes."""
    config = TrainConfig(num_steps=10, batch_size=128, log_every=1, resume_from_checkpoint=resume)
    evaluation = EvalConfig(every=4, num_repeats=1, select_num_steps=[2], max_samples=20)
    with torch.random.fork_rng(devices=[]):
        model = network(data, seed=1)
    callbacks = [StopAt(stop)] if stop else []
    return FlowTrainer(model, data, FlowMatchingObjective(), config, evaluation, folder, callbacks=callbacks)


def everything(run):
    """Weights, averages, moments, losses and scores."""
    moments = run.optimizer.state_dict()["state"]
    tensors = {**run.model.state_dict(), **{f"ema.{k}": v for k, v in run.ema.shadow.items()}}
    tensors |= {f"{i}.{k}": v for i, entry in moments.items() for k, v in entry.items()}
    return {k: v.numpy().tobytes() for k, v in tensors.items()}, run.history, run.selection.state()


@pytest.mark.parametrize("stop", [1, 4, 8])
def test_resuming_in_the_middle_of_a_stream_is_bitwise(tmp_path, stop):
    """Within the first pass and the second, at places where no block ends: the finished run is the one that was not stopped."""
    data = vectors(write(tmp_path), epoch_size=150)
    whole = trainer(data, tmp_path / "whole")
    whole.train()
    assert len({entry["loss"] for entry in whole.history}) == 10
    assert trainer(data, tmp_path / "run", stop=stop).train().stopped
    resumed = trainer(vectors(write(tmp_path), epoch_size=150), tmp_path / "run", resume="latest")
    resumed.train()
    assert everything(resumed) == everything(whole)


def test_a_stream_and_its_table_are_trained_on_alike(tmp_path):
    """A stream that ends within its first epoch is the table of its rows: in memory, or from disk when that is wanted."""
    data = vectors(write(tmp_path), epoch_size=5000)
    assert data.stream is None
    assert isinstance(training_rows(data), MemoryRows)
    a, b = (first_batches(rows, 3) for rows in (training_rows(data), LoaderRows(data)))
    assert all(torch.equal(x.x_1, y.x_1) for x, y in zip(a, b, strict=True))
