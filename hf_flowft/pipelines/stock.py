"""A flow pipeline as one of diffusers' own, for people without this package."""

from __future__ import annotations

from collections.abc import Sequence

from diffusers import DDPMPipeline, FlowMatchEulerDiscreteScheduler, UNet2DModel

from .pipeline_flow import FlowPipeline


def to_stock(pipeline: FlowPipeline) -> DDPMPipeline:
    """The same network in diffusers' unconditional image pipeline, which despite its name runs whatever scheduler it is given.

    The scheduler becomes `FlowMatchEulerDiscreteScheduler`, whose N steps end with a short one at sigma = 0.001; with that scheduler in
    both, the images are the same.  Raises: ValueError when a part has no stock counterpart, naming it.
    """
    if not isinstance(pipeline.model, UNet2DModel):
        raise ValueError(
            f"diffusers has no {type(pipeline.model).__name__}: only a UNet2DModel can be exported as stock; push the pipeline instead."
        )
    if pipeline.model.config.num_class_embeds:
        raise ValueError(
            "diffusers' unconditional pipeline gives its network no labels: this model needs FlowPipeline."
        )
    if pipeline.predicts != "velocity":
        raise ValueError(f"only flows are exported as stock; this model predicts the {pipeline.predicts}.")
    low, high = _value_range(pipeline)
    if (pipeline.normalisation.mean, pipeline.normalisation.std) != ((low + high) / 2, (high - low) / 2):
        raise ValueError(
            f"diffusers takes model units of [-1, 1] for the range of images, here {low} to {high}, but this model was trained with "
            f"mean {pipeline.normalisation.mean} and std {pipeline.normalisation.std}."
        )
    return DDPMPipeline(unet=pipeline.model, scheduler=_stock_scheduler(pipeline))


def _value_range(pipeline: FlowPipeline) -> Sequence[float]:
    if not pipeline.description.get("is_image"):
        raise ValueError("the samples of this pipeline are not images: it has no stock counterpart.")
    return pipeline.description["value_range"]


def _stock_scheduler(pipeline: FlowPipeline) -> FlowMatchEulerDiscreteScheduler:
    if isinstance(pipeline.scheduler, FlowMatchEulerDiscreteScheduler):
        return pipeline.scheduler
    solver = pipeline.scheduler.config.get("solver")
    if solver != "euler":
        raise ValueError(
            f"diffusers' flow scheduler is Euler's method; this pipeline samples with {solver or type(pipeline.scheduler).__name__}: "
            "give it a FlowODEScheduler(solver='euler') first."
        )
    return FlowMatchEulerDiscreteScheduler(shift=pipeline.shift)
