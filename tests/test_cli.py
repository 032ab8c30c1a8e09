"""The console command: every verb does its work, and what goes wrong is one sentence and exit code 2."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import SMALL_RUN, pretrained

from hf_flowft import FlowPipeline
from hf_flowft.cli import METHODS, STUDIES, build_parser, main
from hf_flowft.studies import policy as policy_study

SMALL = [*SMALL_RUN, "--data.train_size=20"]
NETWORK = ["--model.hidden_dim=8"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A saved pipeline of digits."""
    folder = tmp_path_factory.mktemp("cli") / "base"
    pretrained("digits").save_pretrained(folder)
    return folder


@pytest.fixture
def words(base, tmp_path):
    """Settings of a small fine-tune of digits."""
    return [*SMALL, "--data.name=digits", f"--model.path={base}", f"--output_dir={tmp_path / 'run'}"]


def refused(capsys, message, *arguments):
    """Exit code 2, one line on stderr, nothing on stdout."""
    assert main([str(word) for word in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("hf-flowft: error: ")
    assert err.count("\n") == 1
    assert message in err


# Verbs


def test_pretrain(tmp_path, capsys):
    """A config and overrides make a run folder; the verdict and the folder are told."""
    config = tmp_path / "a.yaml"
    config.write_text(
        "data: {name: toy, train_size: 999, eval_size: 24}\nmodel: {name: mlp, hidden_dim: 8, num_layers: 1}\n"
    )
    arguments = ["pretrain", "--config", str(config), *SMALL, "--output_dir", str(tmp_path / "run")]
    assert main(arguments) == 0
    assert f"Written to {tmp_path / 'run'}" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "results.json").read_text())["data"]["counts"]["train"] == 20


@pytest.mark.parametrize("method", METHODS)
def test_finetune(method, words, tmp_path):
    """The method fixes objective and model, and nothing else is needed but data and base."""
    more = {
        "gft": ["--objective.replay_samples=16"],
        "mle": ["--pairs.num_steps=2"],
        "gav": ["--pairs.num_steps=2", *NETWORK],
        "prior": ["--objective.samples=16"],
    }
    assert main(["finetune", method, *words, *more.get(method, [])]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["method"] == {"plain": "fm", "gft": "gft_replay", "gav": "mle"}.get(method, method)
    assert (FlowPipeline.from_pretrained(tmp_path / "run" / "pipeline").model.config._class_name) == (
        "ViscousFlowModel" if method == "gav" else "VelocityMLP"
    )


def test_evaluate_writes_what_it_prints(base, tmp_path, capsys):
    """On the test split of a config's data; into folders that are made."""
    config = tmp_path / "a.yaml"
    config.write_text("data: {name: digits, labels: [1, 2]}\nmodel: {name: mlp}\nobjective: {name: fm}\n")
    out = tmp_path / "deep" / "numbers.json"
    assert main(["evaluate", str(base), "--config", str(config), *SMALL_RUN, "--out", str(out)]) == 0
    printed, written = capsys.readouterr().out, json.loads(out.read_text())
    assert {"target/energy@1", "held_out_loss", "nfe_dopri5"} <= set(written["metrics"])
    for name, entry in written["metrics"].items():
        assert f"{entry['value']:.4g}" in next(line for line in printed.splitlines() if line.startswith(f"| {name} "))


def test_sample(base, tmp_path, capsys):
    """The same seed gives the same samples; pictures as PNG, numbers as NPY, in folders that are made."""
    files = [tmp_path / "new" / name for name in ("a.npy", "b.npy", "c.npy")]
    for file, seed in zip(files, (0, 0, 1), strict=True):
        assert (
            main(["sample", str(base), "--labels", "3", "4", "--steps", "2", "--seed", str(seed), "--out", str(file)])
            == 0
        )
    a, b, c = (np.load(file) for file in files)
    assert a.shape == (2, 1, 8, 8)
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)
    assert f"2 samples written to {files[2]}" in capsys.readouterr().out
    picture = tmp_path / "a.png"
    labels = [str(i % 10) for i in range(12)]
    assert main(["sample", str(base), "--labels", *labels, "--steps", "1", "--out", str(picture)]) == 0
    assert Image.open(picture).size[0] > 100


@pytest.mark.parametrize("arguments", [["study", "digits"], ["demo"]])
def test_studies_are_called(arguments, monkeypatch, tmp_path):
    """With their folder and whether to be quick; the work is that of the study."""
    import hf_flowft.studies.digits as study

    calls = []
    monkeypatch.setattr(study, "main", lambda folder, quick: calls.append((folder, quick)))
    assert main([*arguments, "--quick", "--out", str(tmp_path)]) == 0
    assert main(arguments) == 0
    assert calls == [(tmp_path, True), (Path("runs/digits" if "study" in arguments else "runs/demo"), False)]


def test_every_study_is_there():
    from importlib import import_module

    assert all(callable(import_module(f"hf_flowft.studies.{name}").main) for name in STUDIES)


def test_settings_are_printed(capsys):
    assert main(["finetune", "gft", "--settings"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("  --output_dir FOLDER")
    assert "--seed SEED" in out
    assert main(["finetune", "gft", "--settings"]) == 0
    assert "--objective.replay_weight" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["pretrain", "finetune", "evaluate", "sample", "study", "demo"])
def test_every_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: hf-flowft {verb}")
    assert build_parser().prog == "hf-flowft"


# What goes wrong


def test_wrong_words_are_refused(capsys):
    """By argparse, with code 2: no verb, another verb, method, study or option."""
    for arguments in ([], ["train"], ["finetune", "rlhf"], ["study", "x"], ["sample", "p", "--tepms", "3"], ["sample"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
        assert "Traceback" not in capsys.readouterr().err


def test_wrong_settings_are_one_sentence(words, capsys, base, tmp_path):
    refused(capsys, "Did you mean 'num_steps'?", "finetune", "plain", *words, "--train.num_step=3")
    refused(
        capsys, "expected an option such as --train.num_steps 100, got 'extra'", "finetune", "plain", *words, "extra"
    )
    refused(capsys, "cannot read the config nowhere.yaml", "pretrain", "--config", "nowhere.yaml")
    refused(capsys, "nothing says what data is: give --config FILE, or --data.name, one of toy", "pretrain")
    refused(capsys, "model.path must name the pretrained pipeline", "finetune", "plain", *words, "--model.path=")
    refused(capsys, "is no folder here", "finetune", "plain", *words, "--model.path=no/thing")
    assert not (tmp_path / "run").exists()


def test_a_study_is_given_its_demonstrations(capsys, monkeypatch, tmp_path):
    """`study policy --data`; no other study takes any."""
    given = {}
    monkeypatch.setattr(policy_study, "main", lambda folder, **options: given.update(options))
    assert main(["study", "policy", "--data", "user/demonstrations", "--out", str(tmp_path)]) == 0
    assert given == {"quick": False, "data": "user/demonstrations"}
    refused(
        capsys, "--data is for the studies policy, mnist and captions", "study", "toy", "--data", "user/demonstrations"
    )


def test_a_method_is_not_another(words, capsys):
    """A config of one method under the verb of another is refused, not run."""
    refused(
        capsys,
        "trains with objective 'gft', but the settings say 'fm'",
        "finetune",
        "gft",
        *words,
        "--objective.name=fm",
    )
    refused(
        capsys,
        "trains with model 'viscosity', but the settings say 'pretrained'",
        "finetune",
        "gav",
        *words,
        "--model.name=pretrained",
    )


def test_a_run_that_diverges_is_one_sentence(words, capsys, tmp_path):
    """With the checkpoint it left."""
    refused(
        capsys, "not finite at step", "finetune", "plain", *words, "--train.learning_rate=1e30", "--train.num_steps=9"
    )
    assert list((tmp_path / "run" / "checkpoints").iterdir())


def test_many_samples_of_one_label(base, capsys, tmp_path):
    """--num goes with one label, and with none; a policy has observations."""
    out = tmp_path / "five.npy"
    assert main(["sample", str(base), "--labels", "3", "--num", "5", "--out", str(out)]) == 0
    assert len(np.load(out)) == 5
    capsys.readouterr()
    refused(capsys, "--num 5 goes with one label or none", "sample", base, "--labels", 3, 4, "--num", 5, "--out", out)


def test_samples_that_cannot_be_are_one_sentence(base, capsys, tmp_path):
    out = tmp_path / "a.png"
    refused(capsys, "--out must end in .png (images) or .npy (anything), got 'a.txt'", "sample", base, "--out", "a.txt")
    refused(capsys, "labels of this model are 0 to 9, got 99", "sample", base, "--labels", 99, "--out", out)
    refused(capsys, "conditioned on ['class_labels']", "sample", base, "--num", 2, "--out", out)
    refused(
        capsys,
        "num_inference_steps must be at least 1, got 0",
        "sample",
        base,
        "--labels",
        1,
        "--steps",
        0,
        "--out",
        out,
    )
    refused(capsys, "is no folder here", "sample", "no/thing", "--out", out)
    pretrained("toy").save_pretrained(tmp_path / "toy")
    refused(capsys, "are not images: give --out a name that ends in .npy", "sample", tmp_path / "toy", "--out", out)
    refused(capsys, "at least one sample", "sample", tmp_path / "toy", "--num", 0, "--out", tmp_path / "a.npy")
    (tmp_path / "file").write_text("x")
    refused(capsys, "file", "sample", tmp_path / "toy", "--out", tmp_path / "file" / "a.npy")
    assert not out.exists()


def test_a_pipeline_is_judged_on_data_of_its_shape(base, capsys, tmp_path):
    config = tmp_path / "a.yaml"
    config.write_text("data: {name: toy}\nmodel: {name: mlp}\nobjective: {name: fm}\n")
    refused(capsys, "samples of shape (1, 8, 8), but the data have shape (2,)", "evaluate", base, "--config", config)


@pytest.mark.slow
def test_the_process_exits_with_the_code():
    """As a shell sees it: no traceback, code 2; the version of Python's own module works too."""
    process = subprocess.run(
        [sys.executable, "-m", "hf_flowft", "pretrain", "--config", "nowhere.yaml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 2
    assert process.stderr.splitlines()[-1].startswith("hf-flowft: error: cannot read the config nowhere.yaml")
    assert "Traceback" not in process.stderr
