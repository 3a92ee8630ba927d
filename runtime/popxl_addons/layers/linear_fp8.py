"""The name of the linear layer of 8-bit floats, which is not there."""

from popxl_shared.absent import FLOAT8, absent_class

LinearFP8 = absent_class("popxl_addons.layers.LinearFP8", FLOAT8)
