"""The name of a scale for 8-bit floats, which are not there."""

from popxl_shared.absent import FLOAT8, absent

fp8_amax_scale = absent("fp8_amax_scale", FLOAT8)
