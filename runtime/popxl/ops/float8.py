"""The names of ops on 8-bit floats, which are not there."""

from popxl_shared.absent import FLOAT8, absent

conv_pow2scaled = absent("conv_pow2scaled", FLOAT8)
conv_transpose_pow2scaled = absent("conv_transpose_pow2scaled", FLOAT8)
matmul_pow2scaled = absent("matmul_pow2scaled", FLOAT8)
pow2scale_cast_from_fp8 = absent("pow2scale_cast_from_fp8", FLOAT8)
pow2scale_cast_to_fp8 = absent("pow2scale_cast_to_fp8", FLOAT8)
