"""Data from folders and files: images are decoded when they are needed, tables are normalised, and broken ones are named by row."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from datasets import config as datasets_config
from PIL import Image

from hf_flowft import FlowODEScheduler, FlowPipeline, Velocity, VelocityMLP, describe_data
from hf_flowft.conventions import time_grid
from hf_flowft.data import ImagesConfig, VectorsConfig, load_images, load_vectors
from hf_flowft.data.images import prepare_image
from hf_flowft.sampling import generate
from hf_flowft.training.batches import LoaderRows, MemoryRows, SampleOrder, require_free_nulls


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """What `datasets` converts goes to the test's own folder."""
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


# Images


@pytest.fixture
def folder(tmp_path):
    """Twenty images in two classes, of one grey value each, which is their number."""
    for i in range(20):
        path = tmp_path / "pictures" / ("cats" if i % 2 else "dogs") / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 10), (i, i, i)).save(path)
    return tmp_path / "pictures"


def images(path, **options):
    return load_images(ImagesConfig(path=str(path), resolution=8, validation=0.2, test=0.2, **options))


def test_a_folder_of_images(folder):
    """Every image is in one split, at the resolution asked for, in [-1, 1], with its folder as label (cats come first)."""
    data = images(folder, label_column="label")
    assert data.counts == {"test": 4, "validation": 4, "train": 12}
    assert data.event_shape == (3, 8, 8)
    seen = []
    for name in data.splits:
        batch = data.rows(name)
        grey = (batch.x_1[:, 0, 0, 0] * 127.5 + 127.5).round().int().tolist()
        assert [0 if value % 2 else 1 for value in grey] == batch.condition["class_labels"].tolist()
        seen += grey
    assert sorted(seen) == list(range(20))
    assert data.label_names == ["cats", "dogs"]
    assert data.num_classes == 2


def test_labels_choose_target_and_base(folder):
    """Target and base are disjoint halves; without a label column the model is told nothing."""
    data = images(folder, label_column="label", labels=[0], base_labels=[1])
    assert set(data.rows("train").condition["class_labels"].tolist()) == {0}
    assert set(data.rows("base_train").condition["class_labels"].tolist()) == {1}
    assert data.num_classes == 2
    plain = images(folder, channels=1, train_size=5)
    assert plain.counts["train"] == 5
    assert plain.event_shape == (1, 8, 8)
    assert plain.rows("train", [0]).condition == {}
    with pytest.raises(ValueError, match=r"name it with data.label_column"):
        images(folder, labels=[0])


def test_images_are_cropped_in_the_centre():
    """The shorter side is kept, the longer one loses both ends alike; an image of the right size is itself."""
    stripes = np.zeros((4, 8, 3), dtype=np.uint8)
    stripes[:, 2:6] = 200
    assert (prepare_image(Image.fromarray(stripes), (4, 4), 3) == 200).all()
    exact = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    assert (prepare_image(Image.fromarray(exact), (6, 6), 3) == np.moveaxis(exact, -1, 0)).all()
    transparent = Image.new("RGBA", (6, 6), (10, 20, 30, 255))
    assert prepare_image(transparent, (6, 6), 3)[:, 0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize("kind", ["I;16", "I;16B", "I"])
def test_sixteen_bits_become_eight(kind):
    """Grey levels in 16 bits are divided by 257, so that black, white and what is between stay what they are."""
    levels = np.array([[0, 257, 32896, 65535]])
    dtype = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[kind]
    image = Image.frombytes(kind, (4, 1), levels.astype(dtype).tobytes())
    assert prepare_image(image, (1, 4), 1).tolist() == [[[0, 1, 128, 255]]]
    assert prepare_image(image, (1, 4), 3).tolist() == [[[0, 1, 128, 255]]] * 3


def test_transparent_parts_are_white():
    """Of a colour picture and of one with a palette; half transparent is half white."""
    image = Image.new("RGBA", (3, 1), (10, 20, 30, 255))
    image.putpixel((0, 0), (10, 20, 30, 0))
    image.putpixel((1, 0), (55, 55, 55, 128))
    assert prepare_image(image, (1, 3), 3)[:, 0].T.tolist() == [[255] * 3, [155] * 3, [10, 20, 30]]
    drawn = Image.new("P", (2, 1), 0)
    drawn.putpalette([0, 0, 0, 40, 40, 40])
    drawn.putpixel((1, 0), 1)
    drawn.info["transparency"] = 0
    assert prepare_image(drawn, (1, 2), 1).tolist() == [[[255, 40]]]


@pytest.mark.parametrize(
    ("levels", "message"),
    [(np.float32(0.5), "floating point numbers"), (np.int32(70000), "from 70000 to 70000, beyond 16 bits")],
)
def test_levels_without_a_white_are_refused(tmp_path, levels, message):
    """By the row of the picture, with what to do."""
    for i in range(5):
        Image.fromarray(np.full((8, 8), levels)).save(tmp_path / f"{i}.tiff")
    with pytest.raises(ValueError, match=rf"row 0 of split 'train' .*{message}.* save it in 8 or 16 bits\.$"):
        images(tmp_path).rows("train")


def test_cifar_from_parquet(shared_data):
    """A real parquet of images: ten labels, pixels as another reader decodes them."""
    import io

    import pyarrow.parquet

    path = shared_data / "images" / "cifar10_test.parquet"
    columns = pyarrow.parquet.read_schema(path).names
    label, image = next(c for c in columns if "label" in c), next(c for c in columns if "im" in c)
    config = ImagesConfig(
        path=str(path), image_column=image, label_column=label, labels=[3], base_labels=[5], train_size=16
    )
    data = load_images(config)
    batch = data.rows("train")
    assert batch.x_1.shape == (16, 3, 32, 32)
    assert set(batch.condition["class_labels"].tolist()) == {3}
    table = pyarrow.parquet.read_table(path, columns=[image, label]).to_pylist()
    pixels = {
        np.moveaxis(np.asarray(Image.open(io.BytesIO(row[image]["bytes"]))), -1, 0).tobytes()
        for row in table
        if row[label] == 3
    }
    assert all(x.round().byte().numpy().tobytes() in pixels for x in data.normalisation.undo(batch.x_1))


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_reading_while_training_gives_the_batches_of_memory(folder, workers):
    """Rows read from disk in the order of the run, by any number of workers, are those held in memory."""
    data = images(folder, label_column="label")
    order = SampleOrder(12, 5, seed=0)
    memory = MemoryRows(data.rows("train")).batches(order, 3)
    disk = LoaderRows(data, workers).batches(order, 3)
    for _ in range(4):
        a, b = next(memory), next(disk)
        assert torch.equal(a.x_1, b.x_1)
        assert torch.equal(a.condition["class_labels"], b.condition["class_labels"])


def test_broken_images_are_named(folder):
    """A truncated file is found when it is read, by its row."""
    path = folder / "cats" / "01.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:200])
    data = images(folder)
    bad = [name for name in data.splits if not _readable(data, name)]
    assert len(bad) == 1
    rows = range(data.counts[bad[0]])
    row = next(i for i in rows if not _readable(data, bad[0], [i]))
    with pytest.raises(ValueError, match=rf"row {row} of split '{bad[0]}' of 'pictures' is an unreadable image"):
        data.rows(bad[0])


def _readable(data, name, rows=None):
    try:
        return len(data.rows(name, rows)) > 0
    except ValueError:
        return False


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_column": "picture"}, r"no column 'picture'; its columns are image, label"),
        ({"image_column": "label"}, r"'label' of .* not images"),
        ({"resolution": 0}, "resolution must be at least 1"),
        ({"label_column": "label", "labels": [7]}, "is empty"),
        ({"train_size": 13}, "train_size is 13, but only 12 rows"),
    ],
)
def test_wrong_image_settings_are_refused(folder, options, message):
    with pytest.raises(ValueError, match=message):
        load_images(ImagesConfig(**{"path": str(folder), "resolution": 8, "validation": 0.2, "test": 0.2, **options}))


# Tables


EXACT = "donot_use_mm_for_euclid_dist"


def table(rows=40, seed=0):
    """Columns a, b (numbers), both (a list of the two), kind (a label)."""
    x = np.random.default_rng(seed).normal([1.0, -2.0], [3.0, 0.5], (rows, 2))
    return {"a": x[:, 0], "b": x[:, 1], "both": x, "kind": np.arange(rows) % 4}


def vectors(path, columns, **options):
    return VectorsConfig(path=path, columns=columns, **options)


def write(tmp_path, kind, columns):
    path = tmp_path / f"table.{kind}"
    if kind == "npz":
        np.savez(path, **columns)
    else:
        dataset = Dataset.from_dict({k: v.tolist() for k, v in columns.items() if kind == "parquet" or v.ndim == 1})
        dataset.to_parquet(path) if kind == "parquet" else dataset.to_csv(path)
    return str(path)


@pytest.mark.parametrize(
    ("kind", "columns"), [("parquet", ["both"]), ("csv", ["a", "b"]), ("npz", ["both"]), ("npz", ["a", "b"])]
)
def test_every_file_gives_the_same_vectors(tmp_path, kind, columns):
    """Data units are restored exactly to float32, rows keep their labels, and only the training part is normalised to 0 and 1."""
    source = table()
    data = load_vectors(vectors(write(tmp_path, kind, source), columns, label_column="kind"))
    known = {tuple(x): k for x, k in zip(source["both"].astype(np.float32).tolist(), source["kind"], strict=True)}
    train = data.rows("train")
    np.testing.assert_allclose(train.x_1.mean(dim=0), 0, atol=1e-6)
    np.testing.assert_allclose(train.x_1.std(dim=0, correction=0), 1, atol=1e-6)
    seen = 0
    for name in data.splits:
        batch = data.rows(name)
        nearest = torch.cdist(data.normalisation.undo(batch.x_1), torch.tensor(list(known)), compute_mode=EXACT).min(
            dim=1
        )
        assert nearest.values.max() < 1e-5
        assert [list(known.values())[i] for i in nearest.indices] == batch.condition["class_labels"].tolist()
        seen += len(set(nearest.indices.tolist()))
    assert seen == 40
    assert data.num_classes == 4
    raw = load_vectors(vectors(write(tmp_path, kind, source), columns, normalise=False)).rows("train").x_1
    assert {tuple(x) for x in raw.tolist()} <= set(known)


def test_condition_vectors(tmp_path):
    """Conditions stand beside the sample they belong to; without normalisation as they are."""
    path = write(tmp_path, "npz", table())
    data = load_vectors(vectors(path, ["a"], condition_columns=["b", "kind"], normalise=False))
    batch, source = data.rows("train"), table()
    expected = {
        np.float32(a): (np.float32(b), k) for a, b, k in zip(source["a"], source["b"], source["kind"], strict=True)
    }
    for x, condition in zip(batch.x_1, batch.condition["condition"], strict=True):
        assert expected[np.float32(x.item())] == tuple(condition.tolist())


def test_labels_choose_target_and_base_of_tables(tmp_path):
    path = write(tmp_path, "csv", table())
    data = load_vectors(vectors(path, ["a"], label_column="kind", labels=[0, 1], base_labels=[2]))
    assert set(data.rows("test").condition["class_labels"].tolist()) <= {0, 1}
    assert set(data.rows("base_test").condition["class_labels"].tolist()) == {2}
    assert data.num_classes == 3
    rest = load_vectors(vectors(path, ["a"], label_column="kind", base_labels=[2]))
    kinds = {name: set(rest.rows(name).condition["class_labels"].tolist()) for name in rest.splits}
    assert kinds["train"] | kinds["validation"] | kinds["test"] == set(table()["kind"].tolist()) - {2}
    assert kinds["base_train"] == kinds["base_validation"] == kinds["base_test"] == {2}
    with pytest.raises(ValueError, match=r"1 is in data.labels and in data.base_labels: it is either new or known"):
        vectors(path, ["a"], label_column="kind", labels=[0, 1], base_labels=[1, 2])


HOLES = {**table(), "a": np.where(np.arange(40) == 17, np.nan, table()["a"])}


@pytest.mark.parametrize(
    ("kind", "columns", "options", "message"),
    [
        ("npz", HOLES, {"columns": ["a", "b"]}, "row 17 of the table holds NaN.*in a, b"),
        ("csv", HOLES, {"columns": ["a"]}, "row 17 of the table holds NaN"),
        ("parquet", HOLES, {"columns": ["b"], "condition_columns": ["a"]}, "row 17 of the table"),
        ("csv", table(), {"columns": ["a", "c"]}, "no column 'c'; its columns are a, b, kind"),
        ("npz", table(), {"columns": ["c"]}, "no array 'c', only a, b, both, kind"),
        ("npz", {"a": np.zeros(3), "b": np.zeros(4)}, {"columns": ["a", "b"]}, "must have one row a sample"),
        ("npz", {"a": np.array([None, 1])}, {"columns": ["a"]}, "Object arrays cannot be loaded"),
        ("npz", {"a": np.zeros(0)}, {"columns": ["a"]}, "the table is empty"),
        ("npz", {"a": np.ones(40, complex)}, {"columns": ["a"]}, "the array 'a' of .* is complex"),
        ("parquet", {"a": np.array(["x", "y"])}, {"columns": ["a"]}, "'a' must hold numbers"),
        ("csv", table(), {"columns": ["a"], "label_column": "b"}, "'b' of 'table' must hold one whole number a row"),
        ("csv", {**table(), "kind": -np.ones(40, dtype=int)}, {"columns": ["a"], "label_column": "kind"}, "holds -1"),
        ("csv", table(), {"columns": ["a"], "labels": [1]}, r"name it with data.label_column"),
        ("csv", table(), {"columns": []}, r"data.path and data.columns must be given"),
    ],
)
def test_wrong_tables_are_refused(tmp_path, kind, columns, options, message):
    """Each in one sentence that names the column or the row."""
    with pytest.raises(ValueError, match=message) as caught:
        load_vectors(VectorsConfig(path=write(tmp_path, kind, columns), **options)).num_classes  # noqa: B018
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["none.csv", "none.npz", "some/where"])
def test_what_is_not_there_is_said(tmp_path, name):
    with pytest.raises(ValueError, match=r"none|some/where"):
        load_vectors(vectors(str(tmp_path / name) if "." in name else name, ["a"]))


@pytest.mark.parametrize("name", ["text.npz", "text.parquet", "text.txt", "folder"])
def test_files_of_another_kind_are_refused(tmp_path, name):
    """What is there but cannot be read is not looked for on the Hub."""
    (tmp_path / name).mkdir() if name == "folder" else (tmp_path / name).write_text("hello")
    with pytest.raises(ValueError, match=r"cannot read") as caught:
        load_vectors(vectors(str(tmp_path / name), ["a"]))
    assert "Hub" not in str(caught.value)


def test_conditions_are_seen_in_their_own_spread(tmp_path):
    """A condition in pascal becomes one of mean 0 and spread 1 of the training rows; a model made on it takes pascal, and a base its own units."""
    generator = np.random.default_rng(0)
    made = {"a": generator.normal(size=80), "p": 1e5 + 2e4 * generator.normal(size=80), "q": generator.normal(size=80)}
    path = write(tmp_path, "npz", made)
    data = load_vectors(vectors(path, ["a"], condition_columns=["p", "q"]))
    seen = data.rows("train").condition["condition"]
    torch.testing.assert_close(seen.mean(dim=0), torch.zeros(2), rtol=0, atol=1e-4)
    torch.testing.assert_close(seen.std(dim=0, correction=0), torch.ones(2), rtol=1e-4, atol=0)
    model = VelocityMLP([1], hidden_dim=8, condition_dim=2)
    torch.nn.init.normal_(model.output.weight)
    pipeline = FlowPipeline(model, FlowODEScheduler(), describe_data(data, "independent"), {"condition": seen})
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(3, 1)
    drawn = pipeline(latents=noise, condition=pipeline.known_conditions(3)["condition"], output_type="latent").samples
    expected = generate(Velocity(model), noise, {"condition": seen[:3]}, time_grid(16))
    torch.testing.assert_close(drawn, expected, rtol=0, atol=1e-4)
    pascal = pipeline.known_conditions(80)["condition"][:, 0].numpy()
    assert {float(x) for x in pascal.round(-1)} <= {float(np.float32(x).round(-1)) for x in made["p"]}
    with pytest.raises(ValueError, match="condition must be vectors of 2 numbers, got 1"):
        pipeline(condition=torch.zeros(4, 1))
    other = load_vectors(
        vectors(write(tmp_path, "csv", {**made, "p": made["p"] + 1e5}), ["a"], condition_columns=["p", "q"])
    )
    other.adopt(pipeline.description)
    assert other.rows("train").condition["condition"][:, 0].mean() == pytest.approx(5, abs=0.5)  # 1e5 are five spreads
    other.adopt({})
    assert other.rows("train").condition["condition"][:, 0].mean() == pytest.approx(2e5, rel=0.1)


def test_what_single_precision_loses_is_refused(tmp_path):
    """Seconds since 1970 within a minute; the same with an offset taken off, a large constant and a small one are fine."""
    stamp = 1.7e9 + 14 * np.random.default_rng(0).normal(size=40)
    path = write(tmp_path, "npz", {"a": table()["a"], "s": stamp})
    with pytest.raises(
        ValueError, match=r"number 1 of a, s is about 1.7e\+09 and varies by 1\d.* only, .* take an offset off"
    ):
        load_vectors(vectors(path, ["a", "s"]))
    with pytest.raises(ValueError, match="number 0 of s "):
        load_vectors(vectors(path, ["a"], condition_columns=["s"]))
    fine = {"a": table()["a"], "s": stamp - 1.7e9, "k": np.full(40, 1.7e9), "j": 0.1 + 1e-16 * np.arange(40)}
    load_vectors(vectors(write(tmp_path, "npz", fine), ["a", "s", "k", "j"]))


def test_none_is_no_condition_of_the_data(tmp_path):
    """The mean of normalised conditions stands for "none" (and a label for no label): rows that have it are not to be told from it."""
    made = {"a": table()["a"], "p": np.tile([1.0, 2.0, 3.0, 2.0], 10), "q": np.tile([1.0, 3.0], 20)}
    path = write(tmp_path, "npz", made)
    whole = {"validation": 0, "test": 0, "normalise": False}
    for column, shift, taken in (("p", 2.0, True), ("q", 2.0, False)):
        data = load_vectors(vectors(path, ["a"], condition_columns=[column], **whole))
        if taken:
            with pytest.raises(ValueError, match='condition 2 as "none", but 20 rows of the data have it'):
                require_free_nulls(data, {"condition": shift})
        else:
            require_free_nulls(data, {"condition": shift})
    labelled = load_vectors(vectors(write(tmp_path, "csv", table()), ["a"], label_column="kind"))
    with pytest.raises(ValueError, match=r'class_labels 1 as "none", but \d+ rows'):
        require_free_nulls(labelled, {"class_labels": 1.0})
    require_free_nulls(labelled, {"class_labels": float(labelled.num_classes)})
