"""What adapters cost on a Stable Diffusion 3 transformer of some tens of millions of weights: time and memory of a step, by objective."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import torch
from diffusers import ConfigMixin, ModelMixin
from torch import Tensor

from ..batch import Batch
from ..couplings import Shard
from ..latents import FAMILIES, adapters_off, add_lora
from ..models import FlowModelOutput
from ..objectives import FlowMatchingObjective, GradualObjective, Objective, ReconstructionObjective
from ..randomness import keyed_generator
from ..times import TemperatureSchedule
from ..velocity import SharedVelocity, Velocity
from .bench_memory import memory_of_this_process
from .bench_tools import ENDLESS, BareLoop, Row, TrainerLoop, compare, quiet

FAMILY = FAMILIES["StableDiffusion3Pipeline"]
SHAPE, TOKENS, RANK, BATCH = (16, 16, 16), 16, 16, 4
MEMORY_STEPS = 8


class OnePrompt(ModelMixin, ConfigMixin):
    """A transformer under adapters, always asked under the same text."""

    config_name = "config.json"
    _supports_gradient_checkpointing = True

    def __init__(self, quick: bool):
        from diffusers import SD3Transformer2DModel

        super().__init__()
        heads, layers = (2, 1) if quick else (8, 6)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.transformer = SD3Transformer2DModel(
                sample_size=SHAPE[1],
                patch_size=2,
                in_channels=SHAPE[0],
                out_channels=SHAPE[0],
                num_layers=layers,
                attention_head_dim=40,
                num_attention_heads=heads,
                caption_projection_dim=40 * heads,
                joint_attention_dim=128,
                pooled_projection_dim=128,
                pos_embed_max_size=SHAPE[1] // 2,
            )
            self.text = torch.randn(1, TOKENS, 128)
            self.pooled = torch.randn(1, 128)
        add_lora(self.transformer, FAMILY.targets, RANK, RANK, 0.0, 0)

    def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool = True) -> FlowModelOutput | tuple[Tensor]:
        """noise - data of latents (batch, *SHAPE)."""
        text = {"encoder_hidden_states": self.text, "pooled_projections": self.pooled}
        text = {key: value.expand(len(sample), *value.shape[1:]) for key, value in text.items()}
        output = FAMILY.output(self.transformer, sample, timestep, text, 0.0)
        return FlowModelOutput(output) if return_dict else (output,)


def plain(model: OnePrompt) -> Objective:
    """Flow matching."""
    return FlowMatchingObjective()


def gradual(model: OnePrompt) -> Objective:
    """GFT on the target measure, whose base is the network with its adapters off."""
    base = SharedVelocity(model, partial(adapters_off, model.transformer))
    return GradualObjective(base, TemperatureSchedule(end=1.0), ENDLESS)


def reconstruction(model: OnePrompt) -> Objective:
    """MLE through eight checkpointed solver steps."""
    return ReconstructionObjective(MEMORY_STEPS, gradient="checkpointed")


def latent_rows(quick: bool) -> Iterator[Row]:
    """Steps of the trainer against a hand-written one and each other; then peaks of memory."""
    data = torch.randn(64, *SHAPE, generator=keyed_generator(0, "latents"))
    pairs = 1 if quick else 9

    def trainer(kind: Callable[[OnePrompt], Objective]) -> TrainerLoop:
        model = OnePrompt(quick)
        return TrainerLoop(model, kind(model), data, BATCH, 1)

    with quiet():
        bare = BareLoop(OnePrompt(quick), data, BATCH, 1)
        yield compare("LoRA step, plain / bare loop", trainer(plain), bare, pairs, limit=1.0, goal=1.05)
    with quiet():
        name = "LoRA step, GFT on the target measure / plain"
        note = "frozen weights have no gradients: a backward costs what a forward does"
        yield compare(name, trainer(gradual), trainer(plain), pairs, limit=3 / 2, goal=4 / 3, note=note)
    for name, kinds, recompute, goal in (
        ("LoRA memory, GFT on the target measure / plain", ("gradual", "plain"), False, 1.02),
        (f"LoRA memory, MLE, {MEMORY_STEPS} steps checkpointed / plain", ("reconstruction", "plain"), True, 1.3),
    ):
        peaks = [_peak(kind, recompute, quick) for kind in kinds]
        if None in peaks:
            yield Row(name, note="this system does not tell the peak", goal=goal)
            continue
        note = f"{peaks[0]:.0f} MB / {peaks[1]:.0f} MB{', gradient checkpointing in both' if recompute else ''}"
        yield Row(name, peaks[0] / peaks[1], repetitions=0, limit=1.0, goal=goal, note=note)


def _peak(kind: str, recompute: bool, quick: bool) -> float | None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(peak_of_steps, kind, recompute, quick).result()


def peak_of_steps(kind: str, recompute: bool, quick: bool) -> float | None:
    """Peak resident MB of weights, adapters and three steps, over what the process had before them; None where the system does not tell."""
    torch.set_num_threads(1)
    OnePrompt(quick=True)(torch.zeros(1, *SHAPE), torch.zeros(1))  # the libraries are loaded
    start = memory_of_this_process()
    if start is None:
        return None
    model = OnePrompt(quick)
    if recompute:
        model.transformer.enable_gradient_checkpointing()
    objective = {"plain": plain, "gradual": gradual, "reconstruction": reconstruction}[kind](model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer, velocity = torch.optim.AdamW(trained), Velocity(model.train())
    for step in range(3):
        optimizer.zero_grad()
        _loss(objective, velocity, step).backward()
        optimizer.step()
    return memory_of_this_process("VmHWM:") - start


def _loss(objective: Objective, velocity: Velocity, step: int) -> Tensor:
    generator = keyed_generator(0, "memory", step)
    x_1 = torch.randn(BATCH, *SHAPE, generator=generator)
    batch = objective.draw(Batch(x_1, x_0=x_1.flip(0)), generator, Shard())
    return objective(velocity, batch, step, generator)[0]
