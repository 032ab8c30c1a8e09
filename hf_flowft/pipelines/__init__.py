"""Pipelines: what a user samples with."""

from .output import FlowPipelineOutput, describe_data
from .pipeline_flow import FlowPipeline

__all__ = ["FlowPipeline", "FlowPipelineOutput", "describe_data"]
