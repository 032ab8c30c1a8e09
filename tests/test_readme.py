"""The README keeps its word: short commands and examples run (with few steps), long ones are parsed, links and numbers exist."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from tiny import SMALL_RUN, pretrained

from hf_flowft import load_config
from hf_flowft.cli import METHODS, main

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"<!-- test: (run|parse|hub|gpu) -->\n```(bash|python)\n(.*?)```", re.DOTALL)
BLOCKS = BLOCK.findall(TEXT)
SMALL_EVALUATION = "--eval.num_repeats=2 --eval.report_num_steps=[1,2] --eval.max_samples=32 --eval.path_numbers=false"
FEW = f"--train.num_steps=2 --eval.every=2 --train.batch_size=16 --train.log_every=1 {SMALL_EVALUATION}"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder like a clone, to run commands in."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("configs", "scripts"):
        (folder / name).symlink_to(ROOT / name)
    for number in range(60):
        picture = folder / "my_images" / "abc"[number % 3] / f"{number}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (4 * number, 90 * (number % 3), 0)).save(picture)
    return folder


def run(command, place, variables=os.environ):
    """Run a command as a user would, in the given folder; offline, unless the variables say otherwise."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**variables, "PATH": path, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"


def test_every_block_says_how_it_is_tested():
    """No command or example escapes the test."""
    assert len(BLOCKS) == len(re.findall(r"^```(?:bash|python)$", TEXT, re.MULTILINE))
    assert {kind for kind, _, _ in BLOCKS} == {"run", "parse", "hub", "gpu"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [code for kind, language, code in BLOCKS if (kind, language) == ("run", "python")],
    ids=["example", "own", "tensors"],
)
def test_examples_run(code, place):
    """The Python examples run as they stand, but for the number of steps."""
    run([sys.executable, "-c", re.sub(r"num_steps=\d{3,}", "num_steps=2", code)], place)


@pytest.mark.slow
def test_commands_run(place, monkeypatch):
    """The commands run in their order, trainings for two steps; ours in this process (test_cli.py starts the program itself), others in their own."""
    monkeypatch.chdir(place)
    commands = [code for kind, language, code in BLOCKS if (kind, language) == ("run", "bash")]
    for line in "".join(commands).strip().splitlines():
        words = line.replace("--episodes 200", "--episodes 12").replace("--episodes 100", "--episodes 2")
        if "--config" in line or "my_images" in line:
            words += f" {SMALL_EVALUATION if 'evaluate' in line else FEW}"
        if "few_steps.yaml" in line:
            words += " --pairs.num_pairs=64"
        if "pusht" in line and "--config" in line:
            words += " --eval.episodes=1 --pairs.num_steps=2"
        if "my_images" in line:
            words += (
                " --model.channels=[8] --eval.max_samples=8" if "unet2d" in line else " --objective.replay_samples=8"
            )
        program, *options = shlex.split(words)
        if program == "hf-flowft":
            assert main(options) == 0, line
        else:
            run([program, *options], place)


@pytest.mark.slow
def test_sharing_works(tmp_path, hub_env):
    """The commands and the example that talk to the Hub, in their order, with a small run of digits in the place of theirs."""
    base = tmp_path / "base"
    pretrained("digits", num_classes=10).save_pretrained(base)
    words = [
        *SMALL_RUN,
        "--data.train_size=20",
        f"--model.path={base}",
        f"--output_dir={tmp_path / 'runs/digits_few_steps'}",
    ]
    assert main(["finetune", "plain", "--data.name=digits", *words]) == 0
    blocks = [(language, code) for kind, language, code in BLOCKS if kind == "hub"]
    assert [language for language, _ in blocks] == ["bash", "python"]
    for line in blocks[0][1].strip().splitlines():
        run(line.split(), tmp_path, hub_env)
    run([sys.executable, "-c", blocks[1][1]], tmp_path, hub_env)


def test_make_targets_exist():
    """What is only parsed is a make target that exists."""
    for line in "".join(code for kind, _, code in BLOCKS if kind == "parse").split("\n"):
        if line:
            assert re.fullmatch(r"make [a-z-]+", line), line
            assert re.search(rf"^{line.removeprefix('make ')}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_commands_for_a_gpu_are_understood():
    """What cannot run here names a method, a config and settings that there are."""
    lines = "".join(code for kind, _, code in BLOCKS if kind == "gpu").strip().splitlines()
    for line in lines:
        program, verb, method, option, config, *words = line.removesuffix(" --plan").split()
        assert (program, verb, option) == ("hf-flowft", "finetune", "--config")
        chosen = load_config(ROOT / config, words).as_dict()["objective"]["name"]
        assert chosen == METHODS[method]["objective"]["name"]


def test_links_lead_somewhere():
    """Files and pictures the README names are in the repository."""
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", TEXT):
        assert (ROOT / target).exists(), target
