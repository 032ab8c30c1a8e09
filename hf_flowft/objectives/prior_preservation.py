"""Prior preservation: flow matching on the new data and, with a fixed weight, on the base's own samples (arXiv 2208.12242); a baseline of replay."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from ..batch import Batch
from ..choices import Choices
from ..randomness import keyed_generator
from ..replay import build_replay
from ..times import TimeDensity
from .base import ObjectiveContext, Paper
from .gradual import ReplayObjective
from .words import path_words


class PriorPreservationObjective(ReplayObjective):
    """The usual regularisation images: samples of the base stand beside the data and are trained on as if they were data.

        L = E w_t || v(x_t, t, c) - v_t ||^2  +  weight E || v(z_t, t, c_base) - (z_1 - z_0) ||^2

    What `ReplayObjective` is with the conditional velocity z_1 - z_0, fresh noise z_0, in place of the base's: the same minimiser where the
    samples follow the base, but a noisy target, and no call of the base.
    """

    name = "prior"
    title = "flow matching with prior preservation"
    paper = Paper(
        "DreamBooth: Fine Tuning Text-to-Image Diffusion Models for Subject-Driven Generation",
        "2208.12242",
        "@inproceedings{ruiz2023dreambooth, title={DreamBooth: Fine Tuning Text-to-Image Diffusion Models for Subject-Driven Generation}, "
        "author={Ruiz, Nataniel and Li, Yuanzhen and Jampani, Varun and Pritch, Yael and Rubinstein, Michael and Aberman, Kfir}, "
        "booktitle={CVPR}, year={2023}}",
    )

    def kept(self, replay: Batch) -> Batch:
        """The replay batch with z_1 - z_0 as its velocity."""
        return replace(replay, v_t=replay.x_1 - replay.x_0)


@dataclass(frozen=True)
class PriorPreservationConfig(Choices):
    """Flow matching beside the base's own samples, as if they were data: the baseline of replay."""

    coupling: Literal["independent", "ot", "sinkhorn"] = "independent"
    """How noise and data of a batch are paired."""
    times: TimeDensity = field(default_factory=TimeDensity)
    """Density of the training time."""
    weight: float = 1.0
    """Of the base's samples."""
    samples: int = 2048
    """Samples of the base."""

    def build(self, context: ObjectiveContext) -> PriorPreservationObjective:
        """The objective; the samples are drawn here."""
        bank = build_replay(
            context.require_reference("prior preservation"),
            context.require_conditions("prior preservation"),
            context.event_shape,
            keyed_generator(context.seed, "replay"),
            states="interpolant",
            num_samples=self.samples,
            shift=context.shift,
            batch_size=context.batch_size,
            progress=context.progress,
            keep=context.keep,
        )
        times = self.times.on(context.shift)
        return PriorPreservationObjective(bank, self.weight, coupling=context.coupling(self.coupling), times=times)

    def describe(self, context: ObjectiveContext) -> str:
        """What stands beside the data, and how noise, data and times meet."""
        return (
            f"Flow matching on the new data and, with the constant weight {self.weight:g}, on {self.samples} samples the base has drawn itself, as "
            f"if they were data (prior preservation). {path_words(self.coupling, self.times.on(context.shift), 'one')}"
        )
