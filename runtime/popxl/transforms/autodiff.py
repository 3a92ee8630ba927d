"""The names of automatic differentiation, which is not there."""

from __future__ import annotations

from enum import Enum

from popxl_shared.absent import GRADIENTS, absent, absent_class


class ExpectedConnectionType(Enum):
    """What an input or output of a gradient graph belongs to."""

    Fwd = "Fwd"
    FwdGrad = "FwdGrad"


autodiff = absent("popxl.transforms.autodiff", GRADIENTS)
ExpectedConnection = absent_class("popxl.transforms.ExpectedConnection", GRADIENTS)
GradGraphInfo = absent_class("popxl.transforms.GradGraphInfo", GRADIENTS)
