"""Pipelines: what a user samples with."""

from .output import FlowPipelineOutput, describe_data
from .pipeline_flow import MAX_CONDITIONS, FlowPipeline
from .pipeline_flow_policy import FlowPolicyOutput, FlowPolicyPipeline

__all__ = [
    "MAX_CONDITIONS",
    "FlowPipeline",
    "FlowPipelineOutput",
    "FlowPolicyOutput",
    "FlowPolicyPipeline",
    "describe_data",
]
