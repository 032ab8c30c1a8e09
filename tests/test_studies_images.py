"""The studies of images: their judge gives the numbers it is known by, their small pipeline reads its captions, and the whole runs, twice."""

import json

import numpy as np
import pytest
import torch

from hf_flowft.metrics.distances import frechet_distance
from hf_flowft.studies import captions, captions_base, mnist_judge


def test_the_judge_of_digits_is_the_one_described(shared_data):
    """Distances to 10,000 training digits as measured with the network elsewhere: test digits 1.35, a thousand of them 6.2, all with noise of .3 35."""
    with np.load(shared_data / "images" / "mnist.npz") as arrays:
        train, test = (torch.from_numpy(arrays[name][:10_000])[:, None] / 127.5 - 1 for name in ("x_train", "x_test"))
    network = mnist_judge.feature_network(shared_data / "models" / "mnist_feature_cnn.safetensors")
    noisy = (test + 0.3 * torch.randn(test.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    with torch.no_grad():
        truth, clean, spoilt = (torch.cat([network(part) for part in x.split(1000)]) for x in (train, test, noisy))
    assert frechet_distance(clean, truth) == pytest.approx(1.35, abs=0.02)
    assert frechet_distance(clean[:1000], truth) == pytest.approx(6.2, abs=0.1)
    assert frechet_distance(spoilt, truth) == pytest.approx(35, rel=0.02)


def test_every_word_of_a_caption_is_a_token():
    """No caption is cut off, no two are the same, and both tokenizers tell them apart."""
    texts = [captions_base.caption(digit, stroke) for digit in range(10) for stroke in range(3)]
    assert len(set(texts)) == 30
    for tokenizer in (captions_base.clip_tokenizer(), captions_base.t5_tokenizer()):
        read = [tuple(tokenizer(text).input_ids) for text in texts]
        assert len(set(read)) == 30
        assert max(map(len, read)) <= tokenizer.model_max_length == captions_base.MAX_TOKENS


def test_strokes_are_thirds_by_ink(generator):
    """Of each digit the third with most ink is thick, that with least thin."""
    ink, labels = torch.rand(90, generator=generator), torch.arange(90) % 3
    style = captions_base.strokes(ink[:, None, None, None].expand(-1, 1, 2, 2), labels)
    for digit in range(3):
        one = ink[labels == digit].argsort()
        assert style[labels == digit][one].tolist() == [2] * 10 + [0] * 10 + [1] * 10


@pytest.mark.slow
def test_the_study_of_captions_runs_and_goes_on(tmp_path, monkeypatch, capsys):
    """Base, an adapter, one that goes on from it, a viscosity, and all weights, for two steps each; then all of it is found again."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    chosen = ("plain", "replay", "replay_self", "gav", "full")
    monkeypatch.setattr(captions, "ROWS", {name: captions.ROWS[name] for name in chosen})
    captions.main(tmp_path / "study", quick=True)
    table = (tmp_path / "study" / "captions.md").read_text()
    rows = json.loads((tmp_path / "study" / "results.json").read_text())["rows"]
    assert set(rows) == {"base", *chosen}
    assert all(np.isfinite(entry["value"]) for row in rows.values() for entry in row.values())
    assert all(captions.ROWS[name].title in table for name in chosen)
    assert all((tmp_path / "study" / f"captions_{steps}.png").stat().st_size > 1000 for steps in (1, 28))
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "study").glob("*-0/results.json")}
    capsys.readouterr()
    captions.main(tmp_path / "study", quick=True)
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert table.splitlines()[-1] in capsys.readouterr().out
