"""The output of every flow model of this package."""

from dataclasses import dataclass

from diffusers.utils import BaseOutput
from torch import Tensor


@dataclass
class FlowModelOutput(BaseOutput):
    """`sample`: (batch, *event), dx/dsigma = noise - data, as diffusers' flow schedulers take it."""

    sample: Tensor
