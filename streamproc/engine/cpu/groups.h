// Rows whose attention is one task for each KV head: a part of a chunk, or chunks whose block tables begin alike.

#pragma once

#include <algorithm>
#include <vector>

#include "tables.h"
#include "vectors.h"

namespace {

struct Group {
    int first_chunk, last_chunk, first_row, last_row;     // the last ones are not in it
    int shared;         // keys that lie in the same cells for all of its chunks: whole tiles, or all keys of a lone chunk
    int64_t work;       // pairs of a row and a key, about

    int num_chunks() const { return last_chunk - first_chunk; }
};

// Keys that two chunks have in the same cells.
inline int common_keys(const Chunk& one, const Chunk& other, int block_size) {
    const int end = std::min(one.start + one.num_rows, other.start + other.num_rows);
    const int blocks = (end + block_size - 1) / block_size;
    const auto differ = std::mismatch(one.block_table, one.block_table + blocks, other.block_table);
    return std::min(end, int(differ.first - one.block_table) * block_size) / KEYS * KEYS;
}

// Consecutive chunks join where that saves more reading of keys than it costs: all of them then share what each shares.
inline bool joins(const Group& group, int num_rows, int shared, int most_rows) {
    constexpr int FEWEST = 4 * KEYS;
    if (group.last_row - group.first_row + num_rows > most_rows || shared < FEWEST) return false;
    return group.num_chunks() == 1 || shared > (group.num_chunks() - 1) * int64_t(group.shared - shared);
}

// Of all rows, at most `most_rows` of them in a group; the most work first.
inline std::vector<Group> find_groups(const Chunk* chunks, int num_chunks, int block_size, int most_rows) {
    std::vector<Group> groups;
    for (int c = 0; c < num_chunks; c++) {
        const Chunk& chunk = chunks[c];
        for (int row = 0; row < chunk.num_rows; row += most_rows) {
            const int num_rows = std::min(most_rows, chunk.num_rows - row), end = chunk.start + row + num_rows;
            const int64_t work = int64_t(num_rows) * end;
            Group* last = groups.empty() || row ? nullptr : &groups.back();
            const int shared = last ? std::min(last->shared, common_keys(chunks[c - 1], chunk, block_size)) : 0;
            if (last && joins(*last, num_rows, shared, most_rows)) {
                last->last_chunk = c + 1, last->last_row += num_rows, last->shared = shared, last->work += work;
            } else {
                const int first_row = chunk.first_row + row;
                groups.push_back({c, c + 1, first_row, first_row + num_rows, end, work});
            }
        }
    }
    std::stable_sort(groups.begin(), groups.end(), [](const Group& a, const Group& b) { return a.work > b.work; });
    return groups;
}

}  // namespace
