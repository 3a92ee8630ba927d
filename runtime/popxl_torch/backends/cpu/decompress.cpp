// Weights of four bits as floats.

#include <algorithm>

#include "nibbles.hpp"
#include "work.hpp"

namespace popxl {

// Words, scales and offsets of a shard lie without gaps.

void run(const Decompress& op, const Worker& worker) {
    constexpr int64_t GROUPS = 256;  // of an item
    int64_t items = (op.groups + GROUPS - 1) / GROUPS;
    for (int64_t item = worker.next(items); item >= 0; item = worker.next(items))
        for (int64_t g = item * GROUPS; g < std::min((item + 1) * GROUPS, op.groups); g++) {
            float scale = load_some(at(op.scale, op.scale_type, g), op.scale_type, 1)[0];
            float offset = load_some(at(op.offset, op.scale_type, g), op.scale_type, 1)[0];
            const char* words = at(op.words, NIBBLES, g * op.group / PER_WORD);
            char* out = at(op.out, op.out_type, g * op.group);
            for (int64_t i = 0; i < op.group; i += LANES) {
                int64_t count = std::min<int64_t>(op.group - i, LANES);
                Ints numbers = nibbles_in_order(words + nibble_bytes(i), count);
                Floats values = __builtin_convertvector(numbers, Floats);
                values = values * scale;
                asm("" : "+m"(values));  // rounded before the offset is added, as it is op by op
                store_some(out + i * size_of(op.out_type), op.out_type, values + offset, count);
            }
        }
}

}  // namespace popxl
