"""What is pushed is what a stranger needs, once, with nothing of this machine in it; an interrupted push is repeated."""

import json
import re
import shutil

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from tiny import SMALL_RUN, pretrained

from hf_flowft import FlowPipeline, Run, load_config
from hf_flowft.cli import main
from hf_flowft.hub import push_run, push_space
from hf_flowft.models.saved import weights_digest

NAME = "user/digits"
WEIGHTS = "model/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base, and the run of a residual on it; a token lies in the environment all the while."""
    folder = tmp_path_factory.mktemp("push")
    pretrained("digits").save_pretrained(folder / "base")
    choice = {"data": {"name": "digits"}, "model": {"name": "viscosity"}, "objective": {"name": "mle"}}
    words = ["--data.train_size=20", "--pairs.num_steps=2", "--model.hidden_dim=8"]
    words += [f"--model.path={folder / 'base'}", f"--output_dir={folder / 'run'}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", "hf_good")
        Run(load_config(None, [*SMALL_RUN, *words], choice), progress=False).execute()
    return folder


@pytest.fixture
def run_folder(folders, tmp_path):
    """A copy of the run, to be pushed or spoilt."""
    shutil.copytree(folders / "run", tmp_path / "run")
    return tmp_path / "run"


def digest(source):
    """What the weights of a pipeline are."""
    return weights_digest(FlowPipeline.from_pretrained(source).model)


def refused(capsys, message, *arguments):
    """Exit code 2 and one line (beside progress bars), without a token in it."""
    capsys.readouterr()
    assert main([str(word) for word in arguments]) == 2
    printed = capsys.readouterr().err
    error = printed[printed.index("hf-flowft: error: ") :]
    assert error.count("\n") == 1
    assert re.search(message, error), error
    assert "hf_" not in printed.replace("hf_flowft", "")


def test_a_run_on_the_hub(run_folder, hub, capsys):
    """Pipeline at the root, card, results, settings and figures; loaded in one line; the address is printed."""
    assert main(["push", str(run_folder), "--repo", NAME]) == 0
    assert "/user/digits/commit/" in capsys.readouterr().out
    files = hub.files(NAME)
    assert {"README.md", "model_index.json", "results.json", "config.yaml", WEIGHTS} <= set(files)
    assert any(path.startswith("figures/") for path in files)
    assert not [path for path in files if "checkpoint" in path or path.endswith((".pt", ".tmp"))]
    assert {path for path in files if path.endswith(".py")} == {
        "hf_flowft_stub.py",
        "model/hf_flowft_stub.py",
        "scheduler/hf_flowft_stub.py",
    }
    assert digest(NAME) == digest(run_folder / "pipeline")


def test_the_card_on_the_hub(run_folder, hub):
    """Its pictures are there, its metadata parse, and its code loads the repository and draws."""
    push_run(run_folder, NAME)
    files = hub.files(NAME)
    text = files["README.md"].decode()
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert pictures
    assert set(pictures) <= set(files)
    assert ModelCard(text).data.license == "apache-2.0"
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) if "FlowPipeline" in block)
    assert f'"{NAME}"' in code
    scope: dict = {}
    exec(code, scope)
    assert len(scope["samples"]) == 4


def test_nothing_of_this_machine_is_published(run_folder, hub, folders):
    """No file holds a path, and no file of run or repository holds the token."""
    push_run(run_folder, NAME)
    written = [path.read_bytes() for path in run_folder.rglob("*") if path.is_file()]
    pushed = hub.files(NAME)
    for path, content in pushed.items():
        assert str(folders.parent).encode() not in content, path
    assert not [content for content in [*written, *pushed.values()] if b"hf_good" in content]
    assert yaml.safe_load(pushed["config.yaml"])["model"]["path"].endswith("/base")
    assert not yaml.safe_load(pushed["config.yaml"])["model"]["path"].startswith("/")


def test_the_same_again_changes_nothing(run_folder, hub):
    """A second push of the same run makes no commit and sends no weights."""
    push_run(run_folder, NAME)
    before = hub.repo(NAME).find("main").sha
    hub.requests.clear()
    push_run(run_folder, NAME)
    assert hub.repo(NAME).find("main").sha == before
    assert hub.matching("PUT ") == []


def test_what_a_person_wrote_is_kept(run_folder, hub):
    """Text outside of the markers and keys of the metadata stay; the sections between them are new."""
    push_run(run_folder, NAME)
    text = hub.files(NAME)["README.md"].decode()
    mine = text.replace("license: apache-2.0", "license: mit").replace(
        "<!-- hf_flowft:begin results -->", "My own words.\n\n<!-- hf_flowft:begin results -->"
    )
    hub.commit(NAME, {"README.md": mine})
    results = json.loads((run_folder / "results.json").read_text())
    results["selection"]["verdict"] = "The verdict of another run."
    (run_folder / "results.json").write_text(json.dumps(results))
    push_run(run_folder, NAME)
    after = hub.files(NAME)["README.md"].decode()
    assert "license: mit" in after
    assert "My own words." in after
    assert "The verdict of another run." in after
    hub.commit(NAME, {"README.md": "# All mine"})
    push_run(run_folder, NAME)
    assert hub.files(NAME)["README.md"] == b"# All mine"


def test_an_interrupted_push_is_repeated(run_folder, hub, capsys):
    """The connection dies within a large file: no commit, one sentence; the repetition sends what is missing and no more."""
    large = [path for path in run_folder.rglob("*.png")]
    assert large
    hub.fail(lambda line: line.startswith("PUT ") and len(hub.repo(NAME).objects) >= 2, after_bytes=50, times=None)
    refused(capsys, "cannot push to 'user/digits': .*repeat", "push", run_folder, "--repo", NAME)
    assert "model_index.json" not in hub.files(NAME)
    there = len(hub.repo(NAME).objects)
    assert there >= 2
    hub.heal()
    hub.requests.clear()
    assert main(["push", str(run_folder), "--repo", NAME]) == 0
    assert len(hub.matching("PUT ")) == len(hub.repo(NAME).objects) - there
    assert digest(NAME) == digest(run_folder / "pipeline")


def test_what_is_no_longer_part_of_it_is_removed(run_folder, hub):
    """Figures and shards of an earlier push go; files of other names stay."""
    push_run(run_folder, NAME)
    hub.commit(NAME, {"figures/old.png": b"\x89PNG", "model/old.safetensors": b"x", "notes.txt": "mine"})
    push_run(run_folder, NAME)
    assert not {"figures/old.png", "model/old.safetensors"} & set(hub.files(NAME))
    assert hub.files(NAME)["notes.txt"] == b"mine"


def test_branches_pull_requests_and_privacy(run_folder, hub, capsys):
    """A branch that is made for it, a pull request that leaves main alone, and a private repository."""
    assert main(["push", str(run_folder), "--repo", NAME, "--revision", "v1", "--private"]) == 0
    assert "results.json" in hub.files(NAME, "v1")
    assert "results.json" not in hub.files(NAME)
    assert hub.repo(NAME).private
    assert main(["push", str(run_folder), "--repo", NAME, "--create-pr"]) == 0
    assert "results.json" in hub.files(NAME, "refs/pr/1")
    assert "results.json" not in hub.files(NAME)


@pytest.mark.parametrize(
    ("token", "message"), [("hf_other", "refuses this token|no such repository"), ("hf_nobody", "refuses this token")]
)
def test_who_may_not_write_is_told(run_folder, hub, capsys, monkeypatch, token, message):
    """Somebody else's repository, and a token nobody has."""
    monkeypatch.setenv("HF_TOKEN", token)
    refused(capsys, message, "push", run_folder, "--repo", NAME)


def test_without_a_token(run_folder, hub, capsys, monkeypatch):
    """Nobody is logged in."""
    monkeypatch.delenv("HF_TOKEN")
    refused(capsys, "log in with `hf auth login`", "push", run_folder, "--repo", NAME)


def test_bad_names_and_folders(run_folder, hub, capsys, tmp_path):
    """No finished run, and no name of a repository."""
    refused(capsys, "is not the folder of a finished run", "push", tmp_path / "nowhere", "--repo", NAME)
    refused(capsys, "no name of a repository", "push", run_folder, "--repo", "a/b/c")
    refused(capsys, "holds no pipeline|no folder here", "export", tmp_path / "nowhere", "--out", tmp_path / "x")
    refused(capsys, "not an empty folder", "export", run_folder / "pipeline", "--out", run_folder)


def test_the_residual_alone(run_folder, folders, hub, capsys):
    """With the base on the Hub, only the residual is sent; the card names the base at its commit, as an adapter's."""
    FlowPipeline.from_pretrained(folders / "base").push_to_hub("user/base")
    commit = hub.repo("user/base").find("main").sha
    assert main(["push", str(run_folder), "--repo", NAME, "--base", "user/base"]) == 0
    files = hub.files(NAME)
    assert json.loads(files["model/base.json"])["revision"] == commit
    assert len(files[WEIGHTS]) < (run_folder / "pipeline" / WEIGHTS).stat().st_size
    assert digest(NAME) == digest(run_folder / "pipeline")
    metadata = ModelCard(files["README.md"].decode()).data.to_dict()
    assert (metadata["base_model"], metadata["base_model_relation"]) == ("user/base", "adapter")
    pretrained("digits", seed=1).push_to_hub("user/base")
    refused(capsys, "does not hold the base", "push", run_folder, "--repo", NAME, "--base", "user/base")
    assert main(["push", str(run_folder), "--repo", NAME, "--base", f"user/base@{commit}"]) == 0
    refused(capsys, "has no revision 'v9'", "push", run_folder, "--repo", NAME, "--base", "user/base@v9")


def test_a_pipeline_without_a_run(hub):
    """`push_to_hub` writes a card that claims nothing, and keeps one that a person wrote."""
    pipeline = pretrained("digits")
    address = pipeline.push_to_hub(NAME, private=True)
    assert "/user/digits/commit/" in address
    assert digest(NAME) == weights_digest(pipeline.model)
    assert "model-index" not in ModelCard(hub.files(NAME)["README.md"].decode()).data.to_dict()
    hub.commit(NAME, {"README.md": "# Mine"})
    pipeline.push_to_hub(NAME)
    assert hub.files(NAME)["README.md"] == b"# Mine"
    with pytest.raises(ValueError, match=r"call push_to_hub\(repo_id\)"):
        pipeline.save_pretrained("x", push_to_hub=True)


def test_export_is_whole(run_folder, folders, hub, tmp_path, capsys):
    """`export` writes a residual with its base, for a machine without network."""
    FlowPipeline.from_pretrained(folders / "base").push_to_hub("user/base")
    push_run(run_folder, NAME, base="user/base")
    assert main(["export", NAME, "--out", str(tmp_path / "whole")]) == 0
    assert digest(tmp_path / "whole") == digest(run_folder / "pipeline")
    refused(capsys, "diffusers has no ViscousFlowModel", "export", NAME, "--stock", "--out", tmp_path / "stock")


def test_a_space(hub, tmp_path):
    """A folder becomes a Gradio Space."""
    (tmp_path / "app.py").write_text("print('hello')")
    (tmp_path / "README.md").write_text("---\nsdk: gradio\napp_file: app.py\n---\n")
    push_space(tmp_path, "user/page")
    assert hub.files("user/page", repo_type="space")["app.py"] == b"print('hello')"
    with pytest.raises(ValueError, match=r"holds no page: it has no app.py"):
        push_space(tmp_path / "nowhere", "user/page")


def test_tensors_survive_the_way(hub):
    """What is recorded beside the weights comes back too."""
    pipeline = pretrained("digits")
    pipeline.push_to_hub(NAME)
    loaded = FlowPipeline.from_pretrained(NAME)
    assert torch.equal(loaded.conditions["class_labels"], pipeline.conditions["class_labels"])
    assert loaded.description == pipeline.description


# While training


def train(folder, **hub):
    """A small fine-tune of a toy that pushes itself, in which every evaluation is a new best."""
    pretrained("toy").save_pretrained(folder / "base")
    choice = {"data": {"name": "toy"}, "model": {"name": "pretrained"}, "objective": {"name": "fm"}}
    words = ["--data.train_size=64", "--data.eval_size=32", f"--model.path={folder / 'base'}", "--eval.every=1"]
    words += [f"--output_dir={folder / 'run'}", "--eval.min_delta=0", "--train.learning_rate=0.01"]
    words += [f"--hub.{key}={value}" for key, value in hub.items()]
    return Run(load_config(None, [*SMALL_RUN, *words], choice), progress=False)


def test_a_run_pushes_itself(hub, tmp_path):
    """The finished run arrives on main as `push` would bring it, and the best so far on its branch, once for each that was one."""
    run = train(tmp_path, push_to_hub=NAME, push_best_to="best", private=True)
    result = run.execute()
    assert hub.repo(NAME).private
    assert digest(NAME) == weights_digest(result.pipeline.model)
    assert "results.json" in hub.files(NAME)
    scores = run.trainer.selection.scores
    best = [s.step for i, s in enumerate(scores) if i and s.value < min(x.value for x in scores[:i])]
    titles = [commit.title for commit in hub.repo(NAME).history("best")]
    assert best
    assert [title for title in titles if "best" in title] == [
        f"The best model so far, of step {step}" for step in reversed(best)
    ]


def test_a_wrong_name_is_told_before_training(hub, tmp_path):
    """Neither a folder nor a minute is spent on a run that could not be pushed."""
    with pytest.raises(ValueError, match=r"cannot push to 'a/b/c'"):
        train(tmp_path, push_to_hub="a/b/c")
    with pytest.raises(ValueError, match=r"push_to_hub, which is empty"):
        train(tmp_path, push_best_to="best")


def test_a_hub_that_fails_costs_nothing(hub, tmp_path):
    """Training goes on when a best model cannot be pushed; a finished run is kept, and the sentence says how to repeat the push."""
    run = train(tmp_path, push_to_hub=NAME, push_best_to="best")
    hub.fail("/commit/", status=403, times=None)
    with (
        pytest.warns(UserWarning, match=r"best model of step \d was not pushed"),
        pytest.raises(ValueError, match=rf"is finished and kept in .*hf-flowft push .* --repo {NAME}"),
    ):
        run.execute()
    assert (tmp_path / "run" / "results.json").is_file()
    hub.heal()
    assert main(["push", str(tmp_path / "run"), "--repo", NAME]) == 0
    assert digest(NAME) == digest(tmp_path / "run" / "pipeline")
