"""Pipelines: what a user samples with."""

from .pipeline_flow import FlowPipeline, FlowPipelineOutput, describe_data

__all__ = ["FlowPipeline", "FlowPipelineOutput", "describe_data"]
