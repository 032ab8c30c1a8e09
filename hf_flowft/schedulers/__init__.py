"""Schedulers of flow models under diffusers' contract."""

from .scheduling_flow_ode import FlowODEScheduler
from .scheduling_flow_sde import FlowSDEScheduler

__all__ = ["FlowODEScheduler", "FlowSDEScheduler"]
