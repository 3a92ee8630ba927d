// A part of a tensor is replaced; where it lies is said by numbers that are read when it is done.

#include <cstring>

#include "vectors.hpp"
#include "work.hpp"

namespace popxl {

namespace {

int64_t start(const Put& op, int64_t of_index) {
    int64_t offset = 0;
    for (int64_t axis = 0; axis < op.count; axis++) {
        const char* from = static_cast<const char*>(op.index) + of_index + axis * op.index_step;
        int64_t at = op.wide_index ? load<int64_t>(from) : load<int32_t>(from);
        offset += std::min(std::max<int64_t>(at, 0), op.most[axis]) * op.first[axis];
    }
    return offset;
}

void copy_line(char* to, int64_t to_step, const char* from, int64_t from_step, int64_t count, int64_t bytes) {
    if (to_step == bytes && from_step == bytes) {
        std::memcpy(to, from, count * bytes);
        return;
    }
    for (int64_t i = 0; i < count; i++, to += to_step, from += from_step) std::memcpy(to, from, bytes);
}

}  // namespace

// The innermost axis is a line, of which threads share the others' out.
void run(const Put& op, const Worker& worker) {
    constexpr int LAST = PLACE_AXES - 1;
    int64_t items = 1;
    for (int axis = 0; axis < LAST; axis++) items *= op.sizes[axis];
    worker.pieces(items, op.sizes[LAST], [&](int64_t item) {
        int64_t rest = item, target = 0, update = 0, index = 0;
        for (int axis = LAST - 1; axis >= 0; axis--) {
            int64_t at = rest % op.sizes[axis];
            rest /= op.sizes[axis];
            target += at * op.target_strides[axis];
            update += at * op.update_strides[axis];
            index += at * op.index_strides[axis];
        }
        copy_line(static_cast<char*>(op.target) + target + start(op, index), op.target_strides[LAST],
                  static_cast<const char*>(op.update) + update, op.update_strides[LAST],
                  op.sizes[LAST], op.item_bytes);
    });
}

}  // namespace popxl
