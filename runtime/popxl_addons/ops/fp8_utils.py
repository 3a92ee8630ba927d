"""The names of formats of 8-bit floats, which are not there."""

from popxl_shared.absent import FLOAT8, absent

float8_143_def = absent("float8_143_def", FLOAT8)
float8_152_def = absent("float8_152_def", FLOAT8)
