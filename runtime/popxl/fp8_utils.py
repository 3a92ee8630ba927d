"""The names of 8-bit floats on the host, which are not there."""

from popxl_shared.absent import FLOAT8, absent

host_fp8_mse_scale = absent("host_fp8_mse_scale", FLOAT8)
host_fp8_mse_scale_pb = absent("host_fp8_mse_scale_pb", FLOAT8)
host_pow2scale_cast_to_fp8 = absent("host_pow2scale_cast_to_fp8", FLOAT8)
host_pow2scale_cast_from_fp8 = absent("host_pow2scale_cast_from_fp8", FLOAT8)
