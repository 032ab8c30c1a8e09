"""What networks say of images: features that tell photographs from spoilt ones, CLIP scores as transformers computes them, both in a run's report."""

import sys

import numpy as np
import pytest
import torch
from datasets import load_dataset
from PIL import Image
from tiny import digits, toy
from tiny_latents import PIPELINES, captioned, clip_tokenizer, saved, settings
from torch.nn import functional

from hf_flowft import EvalConfig, Run, Velocity, VelocityMLP, load_config
from hf_flowft.metrics.distances import kid
from hf_flowft.metrics.image_features import CLIPScore, ImageFeatures
from hf_flowft.training.evaluation import Evaluator
from hf_flowft.training.image_numbers import ImageNumbers
from hf_flowft.training.report import report


def photographs(path, number):
    """The first images of a parquet file, (number, 3, 32, 32) in [0, 1]."""
    rows = load_dataset("parquet", data_files=str(path), split="train").select(range(number))
    (column,) = [name for name in rows.column_names if "im" in name]
    pixels = np.stack([np.asarray(row[column].convert("RGB")) for row in rows])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255


@pytest.mark.slow
def test_features_tell_photographs_from_spoilt_ones(shared_data, generator):
    """Two sets of CIFAR photographs are at a distance of about 0, blurred and noisy ones far away."""
    features = ImageFeatures()
    first = features(photographs(shared_data / "images" / "cifar10_train.parquet", 40))
    others = photographs(shared_data / "images" / "cifar10_test.parquet", 40)
    assert first.shape == (40, 1280)
    assert abs(kid(first, features(others))) < 0.05
    noisy = (others + 0.3 * torch.randn(others.shape, generator=generator)).clamp(0, 1)
    assert kid(first, features(noisy)) > 0.3
    assert kid(first, features(functional.avg_pool2d(others, 5, 1, 2))) > 0.1


def test_features_of_any_size(generator):
    """Grey and oblong images are images: what is cut off at the sides is not seen."""
    wide = torch.rand(2, 1, 20, 40, generator=generator)
    features = ImageFeatures(batch_size=1)(wide)
    assert features.shape == (2, 1280)
    assert not torch.equal(features[0], features[1])


@pytest.fixture
def clip(tmp_path):
    """A small CLIP that looks at 16 x 16 pixels, in a folder."""
    from transformers import CLIPConfig, CLIPModel

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    text = {**sizes, "vocab_size": 64, "eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 1}
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(text_config=text, vision_config={**sizes, "image_size": 16, "patch_size": 8}, projection_dim=8)
    ).eval()
    model.save_pretrained(tmp_path / "clip")
    clip_tokenizer().save_pretrained(tmp_path / "clip")
    return tmp_path / "clip", model


def test_the_score_is_that_of_transformers(clip, generator):
    """100 times the cosine that `logits_per_image` is made of, with the pixels its own image processor makes."""
    from transformers import CLIPImageProcessor

    folder, model = clip
    pixels = (torch.rand(3, 16, 16, 3, generator=generator) * 255).byte()
    captions = ["a red square", "a circle", "blue"]
    processor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    seen = processor([Image.fromarray(image) for image in pixels.numpy()], return_tensors="pt")
    words = clip_tokenizer()(captions, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = 100 * model(**seen, **words).logits_per_image.diagonal() / model.logit_scale.exp()
    scores = CLIPScore(str(folder), batch_size=2)(pixels.permute(0, 3, 1, 2) / 255, captions)
    torch.testing.assert_close(scores, expected, atol=2e-2, rtol=1e-3)


def test_what_is_no_clip_is_refused(tmp_path):
    """By its name."""
    with pytest.raises(ValueError, match=r"eval\.clip .*nothing' is no CLIP model of transformers"):
        CLIPScore(str(tmp_path / "nothing"))
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="is no CLIP model of transformers: its model_type is bert"):
        CLIPScore(str(tmp_path / "bert"))


def test_only_images_have_such_numbers(monkeypatch):
    """Points have none, digits no captions; without the extra it is named."""
    with pytest.raises(ValueError, match="are for images, but 'five_gaussians' holds none"):
        ImageNumbers(EvalConfig(kid=True), toy())
    with pytest.raises(ValueError, match="compares images with their captions, but 'digits' has none"):
        ImageNumbers(EvalConfig(clip="some/clip"), digits())
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ValueError, match=r"pip install hf_flowft\[metrics\]"):
        ImageNumbers(EvalConfig(kid=True), digits())


def test_models_are_selected_by_it():
    """With metric kid the number that selects is the kernel distance of the features of samples and held-out images, drawn once for a report."""
    data = digits()
    evaluator = Evaluator(
        data, EvalConfig(metric="kid", max_samples=12, num_repeats=2, report_num_steps=[1], path_numbers=False)
    )
    velocity = Velocity(VelocityMLP([1, 8, 8], hidden_dim=8, num_layers=1, num_classes=10))
    held_out, features = evaluator.held_out("validation"), ImageFeatures()
    expected = [
        kid(
            features(data.to_unit(evaluator.samples(velocity, held_out, 1, repeat), {})),
            features(data.to_unit(held_out.x_1, {})),
        )
        for repeat in range(2)
    ]
    assert evaluator.distances(velocity, "validation", 1) == pytest.approx(expected)
    assert [name for name in report(evaluator, velocity) if name.startswith("target/")] == ["target/kid@1"]


@pytest.mark.slow
def test_they_are_in_the_report(tmp_path, clip, monkeypatch):
    """Of base and result, at every number of steps and on the base's own samples; the card says which way they went."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    captioned(tmp_path / "images")
    (tmp_path / "prompts.txt").write_text("a white circle\na red ground\n")
    saved(tmp_path / "base", PIPELINES["sd3"])
    words = settings(
        tmp_path, output_dir=tmp_path / "run", **{"eval.kid": True, "eval.clip": clip[0], "data.base_samples": 2}
    )
    results = Run(load_config(None, words), progress=False).execute().results
    for numbers in results["metrics"].values():
        for domain in ("target", "base_domain"):
            for steps in (1, 2):
                assert numbers[f"{domain}/kid@{steps}"]["direction"] == "lower"
                assert -100 <= numbers[f"{domain}/clip@{steps}"]["value"] <= 100
    assert "CLIP score of images and captions at 1 step" in (tmp_path / "run" / "README.md").read_text()
