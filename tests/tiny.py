"""Small stand-ins: data, a pretrained pipeline for each kind of data, and settings under which a run takes a second."""

import hashlib

import torch

from hf_flowft import FlowODEScheduler, FlowPipeline, VelocityMLP
from hf_flowft.data import DATA, DigitsConfig, FlowData, ToyConfig, load_digits, load_toy
from hf_flowft.pipelines import describe_data

SMALL_RUN = [
    "--train.num_steps=2",
    "--train.batch_size=8",
    "--train.lr_warmup_steps=0",
    "--train.log_every=1",
    "--eval.every=2",
    "--eval.num_repeats=2",
    "--eval.max_samples=16",
    "--eval.select_num_steps=[2]",
    "--eval.report_num_steps=[1,2]",
]


def toy(**options) -> FlowData:
    """A few points of five Gaussians."""
    return load_toy(ToyConfig(**{"train_size": 64, "eval_size": 32, **options}))


def digits(**options) -> FlowData:
    """A few digits."""
    return load_digits(DigitsConfig(**{"train_size": 20, **options}))


def network(data: FlowData, seed: int = 0, **options) -> VelocityMLP:
    """A small network for the data, with no weight left at zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        shape = {"event_shape": list(data.event_shape), "num_classes": data.num_classes}
        model = VelocityMLP(**{**shape, "hidden_dim": 16, "num_layers": 1, **options})
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def pretrained(kind: str, **options) -> FlowPipeline:
    """An untrained pipeline that stands for a pretrained one, of a kind of data: toy or digits."""
    data = {"toy": toy, "digits": digits}[kind]()
    description = describe_data(data, "independent")
    return FlowPipeline(network(data, **options), FlowODEScheduler(), description, data.rows("train").condition)


def kind_of(config) -> str:
    """The name of the data section of a config."""
    return next(name for name, (kind, _) in DATA.items() if kind is type(config.data))


def tree(folder) -> dict:
    """Every file of a folder by its digest."""
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}
