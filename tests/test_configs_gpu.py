"""Configurations for pipelines of billions of weights: each trains two steps on a small pipeline of the same kind, through the command line."""

from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from datasets import Dataset, Features, Image
from diffusers import UNet2DModel
from PIL import Image as PILImage
from tiny import SMALL_RUN
from tiny_latents import PIPELINES, captioned, saved, settings

from hf_flowft import FlowODEScheduler, FlowPipeline, Run, load_config
from hf_flowft.cli import main
from hf_flowft.data import CaptionedConfig
from hf_flowft.training.models import PretrainedConfig

FOLDER = Path(__file__).parents[1] / "configs" / "gpu"
CONFIGS = sorted(FOLDER.glob("*.yaml"))
LATENTS = [path for path in CONFIGS if isinstance(load_config(path).data, CaptionedConfig)]
IMAGES = [path for path in CONFIGS if path not in LATENTS]
METHODS = {"fm": "plain", "gft": "gft", "mle": "mle"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_says_that_it_was_not_run(path):
    """In its first line; and its run folder bears its name."""
    assert path.read_text().startswith("# ")
    assert "not run by us" in path.read_text().splitlines()[0]
    assert load_config(path).output_dir == f"runs/{path.stem}"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Images, and a saved pipeline of each family with an adapter to go on from."""
    folder = tmp_path_factory.mktemp("gpu")
    captioned(folder / "images")
    (folder / "prompts.txt").write_text("a white circle\na red ground\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
        for name in ("sd3", "flux"):
            saved(folder / name, PIPELINES[name])
        words = settings(folder, output_dir=folder / "start", **{"model.path": folder / "sd3"})
        Run(load_config(None, words), progress=False).execute()
        yield folder


@pytest.fixture
def half_precision():
    """Accelerate keeps the precision of a process; it is given back afterwards."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.slow
@pytest.mark.usefixtures("half_precision")
@pytest.mark.parametrize("path", LATENTS, ids=lambda path: path.stem)
def test_it_trains(path, home, tmp_path):
    """What it names is found in small here: the family, the images, the adapter it goes on from; everything else is as it stands."""
    config = load_config(path)
    small = {
        "output_dir": tmp_path / "run",
        "data.path": home / "images",
        "data.resolution": 16,
        "data.base_samples": 2,
    }
    small |= {"model.path": home / path.stem.split("_")[0], "data.base_prompts": home / "prompts.txt", "model.rank": 2}
    small |= {"objective.replay_samples": 8} if config.objective.__class__.__name__ == "GradualConfig" else {}
    small |= {"pairs.num_pairs": 16, "pairs.num_steps": 4} if config.model.start else {}
    small |= {"model.start": home / "start" / "pipeline"} if config.model.start else {}
    method = METHODS[config.as_dict()["objective"]["name"]]
    words = [*SMALL_RUN, *(f"--{key}={value}" for key, value in small.items())]
    assert main(["finetune", method, "--config", str(path), *words]) == 0
    assert (tmp_path / "run" / "pipeline" / "pytorch_lora_weights.safetensors").is_file()
    assert "base_domain/" in (tmp_path / "run" / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("half_precision")
@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.stem)
def test_it_trains_on_small_images(path, tmp_path):
    """A few coloured squares in the column its data set has, and a U-Net of a few channels; a fine-tune starts from one that was never trained."""
    config = load_config(path)
    squares = [PILImage.new("RGB", (8, 8), (9 * row, 80, 255 - 9 * row)) for row in range(28)]
    features = Features({config.data.image_column: Image()})
    Dataset.from_dict({config.data.image_column: squares}, features).to_parquet(tmp_path / "train.parquet")
    network = UNet2DModel(
        sample_size=8, block_out_channels=(4, 8), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)  # fmt: skip
    description = {"event_shape": [3, 8, 8], "normalisation": {"mean": 127.5, "std": 127.5}, "is_image": True}
    FlowPipeline(network, FlowODEScheduler(), description).save_pretrained(tmp_path / "base")
    is_fine_tune = isinstance(config.model, PretrainedConfig)
    model = (
        {"path": tmp_path / "base"} if is_fine_tune else {"channels": "[4,8]", "norm_groups": 4, "layers_per_block": 1}
    )
    small = {"output_dir": tmp_path / "run", "data.path": tmp_path / "train.parquet", "data.resolution": 8}
    small |= {"data.validation": 0.25, "data.test": 0.25, **{f"model.{key}": value for key, value in model.items()}}
    small |= {"pairs.num_pairs": 16, "pairs.num_steps": 2} if is_fine_tune else {}
    words = [*SMALL_RUN, "--eval.path_numbers=false", *(f"--{key}={value}" for key, value in small.items())]
    verb = ["finetune", "mle"] if is_fine_tune else ["pretrain"]
    assert main([*verb, "--config", str(path), *words]) == 0
    assert "target/kid@1" in (tmp_path / "run" / "results.json").read_text()
