// Which of several ways is the quickest, where processors with the same instructions differ. The build
// names the maker; `docs/kernels.md` has the figures.

#pragma once

namespace popxl {
namespace {

// What asking for weights says. AMD: that they are not used again. Intel does that a line at a time
// without its second cache's readers, at half the rate: for the second cache instead.
#if defined(POPXL_AMD)
constexpr int ONCE = 0;
#elif defined(POPXL_INTEL)
constexpr int ONCE = 2;
#else
constexpr int ONCE = 3;
#endif

// Whether products of pairs of bfloat16 are worth their instruction: on AMD twice as many products a
// cycle as floats have, on Intel half as many.
#if defined(__AVX512BF16__) && !defined(POPXL_INTEL)
#define POPXL_PAIRS 1
#endif

// Whether weights of 8 and 4 bits are multiplied as whole numbers.
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define POPXL_BYTES 1
#endif

// Whether many rows are multiplied here. Processors with tiles are quicker through torch.
#if defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__) && !defined(__AMX_BF16__)
#define POPXL_PANELS 1
#endif

}  // namespace
}  // namespace popxl
