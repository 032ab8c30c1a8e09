"""Pipelines: what a user samples with."""

from typing import Any

from .output import FlowPipelineOutput, describe_data
from .pipeline_flow import MAX_CONDITIONS, FlowPipeline
from .pipeline_flow_policy import FlowPolicyOutput, FlowPolicyPipeline


def make_pipeline(model: Any, scheduler: Any, description: dict[str, Any], conditions: dict[str, Any]) -> FlowPipeline:
    """The pipeline of a trained model: a policy where the description says how it sees and acts, a `FlowPipeline` otherwise."""
    kind = FlowPolicyPipeline if "policy" in description else FlowPipeline
    return kind(model, scheduler, description, conditions)


__all__ = [
    "MAX_CONDITIONS",
    "FlowPipeline",
    "FlowPipelineOutput",
    "FlowPolicyOutput",
    "FlowPolicyPipeline",
    "describe_data",
    "make_pipeline",
]
