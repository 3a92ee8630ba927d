// ALiBi (arXiv 2108.12409), as `popxl_shared/alibi.py` has it.

#pragma once

#include "work.hpp"

namespace popxl {
namespace {

// What is added to a score; `distance` is from the query to the key, 0 or less.
template <class T> inline T alibi_bias(float slope, T distance) { return distance * slope; }

// The slope of a head; 0 where there is no bias.
template <class Op> float alibi_slope(const Op& op, const MeshPosition& place, int64_t head) {
    return op.slopes ? static_cast<const float*>(op.slopes)[place.offset(op.slopes_mesh) + head] : 0;
}

}  // namespace
}  // namespace popxl
