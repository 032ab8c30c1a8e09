"""The page of a run: its folder is complete and says nothing it should not, and its pictures are what the pipelines draw."""

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import HfApi
from packaging.requirements import Requirement
from safetensors.torch import load_file
from space_runs import fine_tune, train
from tiny import digits, network, pretrained, toy

from hf_flowft import FlowODEScheduler, FlowPipeline, VelocityMLP
from hf_flowft.hub import push_folder
from hf_flowft.pipelines import describe_data
from hf_flowft.space import Comparison, build_page, write_space
from hf_flowft.space.comparison import NUM_LINES, read_cloud
from hf_flowft.space.page import updates
from hf_flowft.space.pictures import common_limits, first_two, image_grid, line_pictures, sample_pictures
from hf_flowft.space.writing import GRADIO_VERSION

ROOT = Path(__file__).parents[1]
WEIGHTS = "model/diffusion_pytorch_model.safetensors"
FIXED = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Finished runs and their bases, on digits and in the plane."""
    folder = tmp_path_factory.mktemp("space")
    for kind in ("digits", "toy"):
        fine_tune(folder / kind, kind)
    return folder


@pytest.fixture(scope="module")
def spaces(runs):
    """What is written for them."""
    for kind in ("digits", "toy"):
        write_space(runs / kind / "run", runs / kind / "space")
    return {kind: runs / kind / "space" for kind in ("digits", "toy")}


@pytest.fixture(scope="module")
def comparisons(spaces):
    """Base and result, loaded as the page loads them."""
    return {kind: Comparison.from_folder(folder, folder / "base") for kind, folder in spaces.items()}


def front_matter(folder):
    """The metadata of the README."""
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


# The folder


def test_the_folder_is_complete(spaces):
    """App, requirements, README and results, and two pipelines; the points of a generated distribution and no others."""
    names = {"app.py", "requirements.txt", "README.md", "results.json", "base", "result"}
    assert {path.name for path in spaces["digits"].iterdir()} == names
    assert {path.name for path in spaces["toy"].iterdir()} == names | {"data.npy"}
    assert np.load(spaces["toy"] / "data.npy").shape == (24, 2)


def test_no_path_of_this_machine_is_written(runs, tmp_path):
    """Results are those that a push publishes: absolute paths by their ends."""
    source = tmp_path / "toy" / "run"
    shutil.copytree(runs / "toy", tmp_path / "toy")
    results = json.loads((source / "results.json").read_text())
    results["data"]["source"] = "/home/alice/data/points.npz"
    (source / "results.json").write_text(json.dumps(results))
    write_space(source, tmp_path / "out")
    written = (tmp_path / "out" / "results.json").read_text()
    assert "alice" not in written
    assert json.loads(written)["data"]["source"] == "data/points.npz"


@pytest.mark.parametrize("kind", ["digits", "toy"])
def test_the_pipelines_are_those_of_the_run(kind, runs, spaces):
    """Bit for bit, with their conditions."""
    for ours, theirs in (("base", "base"), ("result", "run/pipeline")):
        files = [WEIGHTS, *(["conditions.safetensors"] if kind == "digits" else [])]
        for file in files:
            copied, original = load_file(spaces[kind] / ours / file), load_file(runs / kind / theirs / file)
            assert copied.keys() == original.keys()
            assert all(torch.equal(copied[key], original[key]) for key in original)


def test_the_metadata_are_those_of_a_space(spaces):
    """What the Hub asks of a Gradio Space, with the version that is pinned for the tests here."""
    metadata = front_matter(spaces["digits"])
    assert metadata["sdk"] == "gradio"
    assert metadata["title"] == "run"
    assert (spaces["digits"] / metadata["app_file"]).is_file()
    assert metadata["pinned"] is False
    assert metadata["license"] == "apache-2.0"
    assert "models" not in metadata
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert metadata["sdk_version"] == GRADIO_VERSION == pins["gradio"]
    lines = (spaces["digits"] / "requirements.txt").read_text().splitlines()
    required = {r.name: r for r in (Requirement(line) for line in lines if not line.startswith("--"))}
    assert set(required) == {"torch", "hf_flowft", "gradio"}
    assert all(r.specifier for r in required.values())
    assert any(line.startswith("--extra-index-url") and line.endswith("/cpu") for line in lines)
    (package,) = [line for line in lines if line.startswith("hf_flowft")]
    assert f"Where pip finds no `{package}`, put `hf_flowft @ ADDRESS`" in (spaces["digits"] / "README.md").read_text()
    assert Requirement("hf_flowft @ git+https://example.org/flows.git").url  # what the README means by an address


def test_nothing_of_this_machine_is_published(spaces, runs):
    """No file of text names a folder of this machine."""
    for folder in spaces.values():
        texts = [path for path in folder.rglob("*") if path.suffix in (".py", ".md", ".json", ".txt")]
        assert len(texts) > 8
        assert not [path for path in texts if str(runs) in path.read_text() or str(ROOT) in path.read_text()]


def test_a_run_from_scratch_has_no_base(tmp_path):
    """Its page shows the result alone."""
    train(tmp_path / "run", "toy")
    write_space(tmp_path / "run", tmp_path / "out" / "space")
    folder = tmp_path / "out" / "space"
    assert not (folder / "base").exists()
    assert "build_page(FOLDER)" in (folder / "app.py").read_text()
    drawings = Comparison.from_folder(folder).draw(2, "euler", 0)
    assert list(drawings) == ["result"]


def test_a_base_on_the_hub_is_referred_to(runs, hub, tmp_path):
    """By its id and the commit it was trained from, though the branch has moved on; the Space is accepted by the Hub, and once more."""
    api = HfApi()
    api.create_repo("user/base")
    commit = api.upload_folder(repo_id="user/base", folder_path=runs / "toy" / "base").oid
    train(tmp_path / "run", "toy", "user/base")
    api.upload_file(path_or_fileobj=b"later", path_in_repo="later.json", repo_id="user/base")
    folder = tmp_path / "space"
    write_space(tmp_path / "run", folder)
    assert not (folder / "base").exists()
    assert f"base='user/base', base_revision='{commit}'" in (folder / "app.py").read_text()
    assert front_matter(folder)["models"] == ["user/base"]
    there = Comparison.from_folder(folder, "user/base", commit)
    here = FlowPipeline.from_pretrained(runs / "toy" / "base")
    assert torch.equal(there.models["base"].model(x := torch.zeros(1, 2), 500).sample, here.model(x, 500).sample)
    push_folder(folder, "user/page", repo_type="space")
    pushed = hub.files("user/page", repo_type="space")
    assert {"app.py", "README.md", "results.json", f"result/{WEIGHTS}"} <= set(pushed)
    push_folder(folder, "user/page", repo_type="space")
    assert hub.files("user/page", repo_type="space") == pushed


def test_a_base_is_found_where_the_run_was_started(tmp_path, monkeypatch):
    """A relative path of the settings leads there from anywhere."""
    (tmp_path / "started").mkdir()
    monkeypatch.chdir(tmp_path / "started")
    pretrained("toy").save_pretrained("bases/toy")
    train("runs/mine", "toy", "bases/toy")
    monkeypatch.chdir(tmp_path)
    write_space(Path("started/runs/mine"), Path("space"))
    assert (tmp_path / "space" / "base" / WEIGHTS).is_file()


def test_what_cannot_be_written_is_said(runs, tmp_path):
    """In one sentence, and nothing is left behind."""
    source = tmp_path / "run"
    shutil.copytree(runs / "toy" / "run", source)
    out = tmp_path / "out" / "space"

    def refused(message):
        with pytest.raises(ValueError, match=message):
            write_space(source, out)
        assert not out.exists()
        assert not out.parent.exists() or not list(out.parent.iterdir())

    config = yaml.safe_load((source / "config.yaml").read_text())
    config["model"]["path"] = str(tmp_path / "gone")
    (source / "config.yaml").write_text(yaml.safe_dump(config))
    refused("gone' is no folder here")
    (source / "config.yaml").write_text("- a list")
    refused("must hold settings by name, got list")
    shutil.rmtree(source / "pipeline")
    refused("model_index.json|is no folder here|settings by name")
    (source / "results.json").unlink()
    refused("cannot read the results")
    out.mkdir(parents=True)
    (out / "mine.txt").write_text("keep me")
    with pytest.raises(ValueError, match="is not an empty folder"):
        write_space(runs / "toy" / "run", out)
    assert [path.name for path in out.parent.rglob("*")] == ["space", "mine.txt"]


def test_an_empty_folder_is_taken(runs, tmp_path):
    """As the command line makes one."""
    write_space(runs / "toy" / "run", tmp_path)
    assert (tmp_path / "app.py").is_file()
    assert not [path for path in tmp_path.parent.iterdir() if path.name.startswith(f".{tmp_path.name}")]


# What is drawn


@pytest.mark.parametrize("solver", FIXED)
def test_samples_are_those_of_the_pipelines(solver, comparisons):
    """Base and result, from one noise, bit for bit what the pipelines draw from it with that solver; a step costs its stages."""
    comparison = comparisons["digits"]
    drawings = comparison.draw(3, solver, 5, [1, 4])
    x_0, given = comparison.start([1, 4], 5)
    for name, pipeline in comparison.models.items():
        again = FlowPipeline(pipeline.model, FlowODEScheduler(solver=solver), pipeline.description, pipeline.conditions)
        again.set_progress_bar_config(disable=True)
        drawn = again(latents=x_0, **given, num_inference_steps=3, output_type="pt")
        assert torch.equal(drawings[name].samples, drawn.samples)
        assert drawings[name].num_evaluations == drawn.num_evaluations == 3 * FIXED[solver]
    assert not torch.equal(drawings["base"].samples, drawings["result"].samples)


def test_an_adaptive_solver_chooses_its_steps(comparisons):
    """Whatever the number of steps: samples and evaluations are those of the pipeline; lines, solved apart, end there within a pixel."""
    comparison = comparisons["toy"]
    few, many = comparison.draw(1, "dopri5", 0), comparison.draw(64, "dopri5", 0)
    x_0, _ = comparison.start([], 0)
    drawn = comparison.models["result"](latents=x_0, solver="dopri5", output_type="pt")
    assert torch.equal(few["result"].samples, many["result"].samples)
    assert torch.equal(few["result"].samples, drawn.samples)
    assert few["result"].num_evaluations == drawn.num_evaluations
    torch.testing.assert_close(few["result"].lines[-1], drawn.samples[:NUM_LINES], atol=5e-3, rtol=0)


def test_lines_lead_from_the_noise_to_the_samples(comparisons):
    """One point a step, the same starts for both models; Euler's first step is straight along the velocity at the noise."""
    comparison = comparisons["toy"]
    drawings = comparison.draw(4, "euler", 1)
    x_0, _ = comparison.start([], 1)
    for name, drawing in drawings.items():
        assert drawing.lines.shape == (5, NUM_LINES, 2)
        assert torch.equal(drawing.lines[0], x_0[:NUM_LINES])
        assert torch.equal(drawing.lines[-1], drawing.samples[:NUM_LINES])
        v = -comparison.models[name].model(x_0[:NUM_LINES], torch.full((NUM_LINES,), 1000.0)).sample
        torch.testing.assert_close(drawing.lines[1], x_0[:NUM_LINES] + v / 4)
    assert not torch.equal(drawings["base"].lines, drawings["result"].lines)


def test_a_seed_is_a_noise(comparisons):
    """The same seed gives the same pictures, another one others."""
    one, two, three = (comparisons["toy"].draw(2, "euler", seed)["base"].samples for seed in (7, 7.0, 8))
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def test_labels_are_those_the_models_were_trained_under():
    """Of base and result together, with their names; few are repeated to fill the columns."""
    data = digits()
    description = describe_data(data, "independent")
    rows = {"base": [0, 3], "result": [3, 7]}
    models = {
        name: FlowPipeline(network(data), FlowODEScheduler(), description, {"class_labels": torch.tensor(labels)})
        for name, labels in rows.items()
    }
    comparison = Comparison(models, {})
    assert comparison.labels == {0: "0", 3: "3", 7: "7"}
    assert comparison.columns([3, 7]) == [3] * 4 + [7] * 4
    x_0, given = comparison.start([3, 7], 0)
    assert given["class_labels"].tolist() == ([3] * 4 + [7] * 4) * 4
    assert x_0.shape == (32, 1, 8, 8)


def test_condition_vectors_are_drawn_with_their_labels():
    """From the rows the result was trained under; base and result get the same."""
    labels = torch.arange(20) % 2
    stored = {"condition": torch.stack([labels, torch.arange(20)], dim=1).float(), "class_labels": labels}
    model = VelocityMLP(event_shape=[3], hidden_dim=8, num_layers=1, num_classes=2, condition_dim=2)
    pipeline = FlowPipeline(model, FlowODEScheduler(), {"event_shape": [3]}, stored)
    comparison = Comparison({"base": pipeline, "result": pipeline}, {})
    _, given = comparison.start([0, 1], 0)
    assert torch.equal(given["condition"][:, 0].long(), given["class_labels"])
    assert given["condition"][:, 1].unique().numel() == 20
    drawings = comparison.draw(2, "heun", 0, [1])
    assert torch.equal(drawings["base"].samples, drawings["result"].samples)
    assert drawings["base"].lines is None
    assert set(sample_pictures(comparison, drawings, [1])) == {"base", "result"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_steps": 0}, "The number of steps must be a whole number from 1 to 64, not 0"),
        ({"num_steps": 65}, "from 1 to 64, not 65"),
        ({"num_steps": 2.5}, "not 2.5"),
        ({"seed": None}, "The seed must be a whole number from 0 to 999999999, not nothing"),
        ({"seed": -1}, "not -1"),
        ({"seed": float("nan")}, "not nan"),
        ({"seed": "7"}, "not '7'"),
        ({"solver": "euler2"}, "The solver must be one of euler, midpoint, heun, rk4, dopri5, got 'euler2'"),
        ({"labels": []}, "Choose at least one label"),
        ({"labels": [10]}, "10 is no label of this model; it knows 0, 1, 2"),
        ({"labels": ["x"]}, "'x' is no label"),
    ],
)
def test_wrong_choices_are_a_sentence(change, message, comparisons):
    """Which the page shows."""
    choice = {"num_steps": 2, "solver": "euler", "seed": 0, "labels": [1]} | change
    with pytest.raises(ValueError, match=re.escape(message)):
        comparisons["digits"].draw(**choice)


def test_samples_that_are_not_finite_are_a_sentence():
    data = toy()
    model = network(data)
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 1e30)
    pipeline = FlowPipeline(model, FlowODEScheduler(), describe_data(data, "independent"))
    with pytest.raises(ValueError, match="The result ran off to infinity with euler and 2 steps"):
        Comparison({"result": pipeline}, {}).draw(2, "euler", 0)
    with pytest.raises(ValueError, match="The result cannot be solved: dopri5 finds no step"):
        Comparison({"result": pipeline}, {}).draw(2, "dopri5", 0)


def test_models_of_different_shapes_are_not_compared():
    models = {"base": pretrained("toy"), "result": pretrained("digits")}
    with pytest.raises(ValueError, match=r"'base': \(2,\), 'result': \(1, 8, 8\)"):
        Comparison(models, {})


# Pictures


def test_image_grids_are_enlarged_pixel_by_pixel():
    """Row by row, in ink: a value of 0 is white and 1 is black; colours stay as they are; values outside are clipped."""
    images = torch.zeros(6, 1, 4, 4)
    images[4, 0, 1, 2] = 7.0
    grid = np.asarray(image_grid(images, 3))
    dark = np.argwhere((grid == 0).all(axis=2))
    (top, left), (bottom, right) = dark.min(axis=0), dark.max(axis=0) + 1
    assert bottom - top == right - left
    assert len(dark) == (bottom - top) ** 2
    scale, gap = bottom - top, 8
    assert (top, left) == (gap + (4 * scale + gap) + scale, gap + (4 * scale + gap) + 2 * scale)
    assert grid.shape[:2] == (2 * (4 * scale + gap) + gap, 3 * (4 * scale + gap) + gap)
    red = torch.tensor([1.0, 0.0, 0.0])[None, :, None, None].expand(2, 3, 4, 4)
    assert (np.asarray(image_grid(red, 2))[100, 100] == (255, 0, 0)).all()
    assert image_grid(images, 3, ["a", "b", "c"]).size[1] > image_grid(images, 3).size[1]


def test_planes_hold_every_point():
    """A square around all clouds, the same for both models."""
    left, right, bottom, top = common_limits([torch.tensor([[0.0, 0.0]]), torch.tensor([[4.0, 1.0]])])
    assert (left + right) / 2 == pytest.approx(2)
    assert (bottom + top) / 2 == pytest.approx(0.5)
    assert right - left == pytest.approx(top - bottom) == pytest.approx(1.08 * 4)
    assert first_two(torch.arange(12.0).reshape(2, 2, 3)).tolist() == [[0, 1], [6, 7]]
    assert first_two(torch.tensor([[5.0], [6.0]])).tolist() == [[-1, 5], [1, 6]]


def test_pictures_show_the_models(comparisons):
    """Samples and lines of base and result have one size and differ; the picture of a drawing is always the same."""
    comparison = comparisons["toy"]
    drawings = comparison.draw(2, "euler", 0)
    samples, lines = sample_pictures(comparison, drawings, ()), line_pictures(comparison, drawings)
    pictures = [*samples.values(), *lines.values()]
    assert len({picture.size for picture in pictures}) == 1
    assert len({picture.tobytes() for picture in pictures}) == 4
    assert sample_pictures(comparison, drawings, ())["base"].tobytes() == samples["base"].tobytes()


def test_points_to_show_are_numbers_of_the_plane(tmp_path):
    """A person may put them there: (n, 2) numbers, and no pickle is loaded."""
    path = tmp_path / "data.npy"
    assert read_cloud(path) is None
    np.save(path, np.arange(6).reshape(3, 2))
    assert read_cloud(path).tolist() == [[0, 1], [2, 3], [4, 5]]
    for content in (np.zeros((3, 3)), np.zeros(2), np.array([["a", "b"]]), np.array([[{}, {}]], dtype=object)):
        np.save(path, content, allow_pickle=True)
        with pytest.raises(ValueError, match=r"data\.npy"):
            read_cloud(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="cannot read the points"):
        read_cloud(path)


def test_the_page_gets_costs_samples_and_lines(comparisons):
    """In the order of its parts."""
    shown = updates(comparisons["toy"], 3, "rk4", 0)
    assert [type(part).__name__ for part in shown] == ["str", "str", "Image", "Image", "Image", "Image"]
    assert shown[0].startswith("**Base** 12 evaluations of the network, ")
    assert shown[1].startswith("**Result** 12 evaluations of the network, ")
    assert len(updates(comparisons["digits"], 1, "euler", 0, [2])) == 4


def test_without_gradio_the_extra_is_named(spaces, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match=r"pip install hf_flowft\[space\]"):
        build_page(spaces["toy"])


def test_the_app_is_python_that_a_person_can_edit(spaces):
    """Its text is short, and opens the page of its own folder wherever it is started."""
    text = (spaces["digits"] / "app.py").read_text()
    compile(text, "app.py", "exec")
    assert 'build_page(FOLDER, base=FOLDER / "base")' in text
    assert len(text.splitlines()) < 20
    assert importlib.util.find_spec("hf_flowft.space") is not None
    assert json.loads((spaces["digits"] / "results.json").read_text())["metrics"]["base"]
