"""Pipelines: what a user samples with."""

from .output import FlowPipelineOutput, describe_data
from .pipeline_flow import MAX_CONDITIONS, FlowPipeline

__all__ = ["MAX_CONDITIONS", "FlowPipeline", "FlowPipelineOutput", "describe_data"]
