// One step of a decoder on the CPU: packed rows of many sequences through all layers in one call, KV read in place.
//
// A row's bits depend on its own sequence alone, as long as its cells are numbers. Every sum over weights goes through k
// in ascending order in one accumulator; keys are taken in tiles of KEYS at absolute positions, in ascending order, and
// a key that a row does not see adds exactly nothing. So rows may come in any chunks, beside any company, on any thread.
//
//   weights   packed[n / PANEL][k / PAIR][PANEL][PAIR] (cpu/program.py)
//   K         [block][layer][0][kv_head][head_dim / PAIR][block_size][PAIR]
//   V         [block][layer][1][kv_head][block_size / PAIR][head_dim][PAIR]
//   rest      float
//
// PAIR is 1 for float and 2 for bfloat16: what is summed over lies together by twos, as the processors' products of
// bfloat16 want it, and one load widens to both where there are none.
//
// Attention is FlashAttention's online softmax (Dao et al. 2022) over paged KV (Kwon et al. 2023), the query heads of
// one KV head folded into the rows of a tile.

#include <algorithm>
#include <climits>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

#include "attention.h"
#include "groups.h"
#include "product.h"
#include "tables.h"
#include "team.h"
#include "vectors.h"

extern "C" {

struct Step {
    void* blocks;               // the KV pool
    const int32_t* token_ids;   // [num_rows]
    const Chunk* chunks;
    int32_t* sampled_ids;       // [samples of all chunks]; -1 where no token is allowed
    float* sampled_logits;      // of those ids
    float* sampled_rows;        // [samples][hidden] what the head sees of them: written by the layers, read by the sampler
    const uint32_t* const* masks;   // [samples] the tokens allowed, a bit each; null where all are, for a sample or at all
    int32_t num_rows, num_chunks;
};

}  // extern "C"

namespace {

template <class Number> struct Forward {        // of weights and of KV
    static constexpr int PAIR = Sum<Number>::PAIR;

    const Model& model;
    const Step& step;
    Team* team;

    const int q_size = model.num_heads * model.head_dim, kv_size = model.num_kv_heads * model.head_dim;
    const int qkv_size = q_size + 2 * kv_size, groups = model.num_heads / model.num_kv_heads;
    const size_t head_cells = size_t(model.block_size) * model.head_dim, layer_cells = 2 * model.num_kv_heads * head_cells;
    const size_t block_cells = model.num_layers * layer_cells;
    Number* const pool = static_cast<Number*>(step.blocks);

    template <class F> void rows(const F& work) const {
        constexpr int AT_ONCE = 32;
        share(team, (step.num_rows + AT_ONCE - 1) / AT_ONCE, [&](int task) {
            for (int row = task * AT_ONCE; row < std::min(step.num_rows, (task + 1) * AT_ONCE); row++) work(row);
        });
    }

    // Of one step; what a row or a query row has lies together.
    struct Memory {
        float *residual, *x, *qkv, *attended, *inner;
        float *out, *sums, *highest;            // [kv_heads][query rows], as in Queries
        typename Sum<Number>::Operand* queries;
        int* positions;                         // [query rows]
        std::vector<Group> groups;
    };

    Memory reserve() const {
        static thread_local std::vector<float> memory;
        const size_t num_rows = step.num_rows, hidden = model.hidden, query_rows = num_rows * model.num_heads;
        memory.resize(num_rows * (2 * hidden + qkv_size + 3 * q_size + model.intermediate + groups)
                      + query_rows * (LANES + 1) + 4 * LANES);
        float* free = memory.data();
        const auto take = [&free](size_t size) { return std::exchange(free, free + size); };
        Memory m{take(num_rows * hidden), take(num_rows * hidden), take(num_rows * qkv_size), take(num_rows * q_size),
                 take(num_rows * model.intermediate), take(num_rows * q_size), take(query_rows * LANES), take(query_rows),
                 reinterpret_cast<typename Sum<Number>::Operand*>(take(num_rows * q_size)),
                 reinterpret_cast<int*>(take(num_rows * groups)),
                 find_groups(step.chunks, step.num_chunks, model.block_size, rows_at_once())};
        for (int c = 0; c < step.num_chunks; c++)
            for (int i = 0; i < step.chunks[c].num_rows * groups; i++)
                m.positions[step.chunks[c].first_row * groups + i] = step.chunks[c].start + i / groups;
        return m;
    }

    // Rows of a task of attention: enough that keys are read for many, few enough that every thread has some tasks.
    int rows_at_once() const {
        constexpr int TASKS = 4, FEWEST = 24, MOST = 128;       // of a thread; query rows
        const int threads = team ? int(team->threads.size()) + 1 : 1;
        const int even = step.num_rows * model.num_heads / (threads * TASKS);
        return std::max(8, (std::clamp(even, FEWEST, MOST) / groups + 7) / 8 * 8);
    }

    void run() const {
        const Memory m = reserve();
        const size_t hidden = model.hidden;
        rows([&](int row) {
            const Number* from = static_cast<const Number*>(model.embedding) + step.token_ids[row] * hidden;
            for (size_t i = 0; i < hidden; i++) m.residual[row * hidden + i] = widen(from[i]) * model.embedding_scale;
        });
        for (int i = 0; i < model.num_layers; i++) {
            const Layer& layer = model.layers[i];
            rows([&](int row) { norm(m.x, m.residual, layer.input_norm, row); });
            multiply<Number>(team, {layer.qkv, m.x, m.qkv, step.num_rows, qkv_size, Then::STORE});
            write(layer, i, m);
            attend(layer, i, m);
            add(layer.out, m.attended, layer.attention_norm, m.residual, m.x);
            rows([&](int row) { norm(m.x, m.residual, layer.mlp_norm, row); });
            multiply<Number>(team, {layer.gate_up, m.x, m.inner, step.num_rows, model.intermediate,
                                    model.is_gelu ? Then::GATE_GELU : Then::GATE_SILU});
            add(layer.down, m.inner, layer.after_mlp_norm, m.residual, m.x);
        }
        take(m.residual);
    }

    void norm(float* to, const float* from, const float* weight, int row) const {
        const size_t at = size_t(row) * model.hidden;
        normalise(to + at, from + at, weight, model.hidden, model.epsilon);
    }

    // residual += norm(from @ weights), where there is such a norm
    void add(const Matrix& weights, const float* from, const float* weight, float* residual, float* x) const {
        if (!weight) {
            multiply<Number>(team, {weights, from, residual, step.num_rows, model.hidden, Then::ADD});
            return;
        }
        multiply<Number>(team, {weights, from, x, step.num_rows, model.hidden, Then::STORE});
        rows([&](int row) {
            norm(x, x, weight, row);
            const size_t at = size_t(row) * model.hidden;
            for (int i = 0; i < model.hidden; i += LANES) store(residual + at + i, load(residual + at + i) + load(x + at + i));
        });
    }

    // Norms and rotation of Q and K in place; K and V into their cells, Q to where it is attended.
    void write(const Layer& layer, int index, const Memory& m) const {
        share(team, int(m.groups.size()), [&](int task) {
            const Group& group = m.groups[task];
            for (int i = group.first_row, c = group.first_chunk; i < group.last_row; i++) {
                while (i >= step.chunks[c].first_row + step.chunks[c].num_rows) c++;
                const Chunk& chunk = step.chunks[c];
                const int position = m.positions[i * groups], half = model.rotary_dim / 2;
                float* row = m.qkv + size_t(i) * qkv_size;
                for (int head = 0; head < model.num_heads + model.num_kv_heads; head++) {
                    float* at = row + head * model.head_dim;
                    const float* weight = head < model.num_heads ? layer.q_norm : layer.k_norm;
                    if (weight) normalise(at, at, weight, model.head_dim, model.epsilon);
                    if (layer.cosines)
                        rotate(at, layer.cosines + size_t(position) * half, layer.sines + size_t(position) * half, half);
                }
                write_cells(chunk.block_table[position / model.block_size], index, position % model.block_size, row + q_size);
                write_queries(row, i, m);
            }
        });
    }

    void write_cells(int block_id, int index, int cell, const float* from) const {
        Number* block = pool + block_id * block_cells + index * layer_cells;
        for (int head = 0; head < model.num_kv_heads; head++, from += model.head_dim) {
            Number* k = block + head * head_cells + cell * PAIR;
            Number* v = block + (model.num_kv_heads + head) * head_cells
                + size_t(cell / PAIR) * PAIR * model.head_dim + cell % PAIR;
            for (int d = 0; d < model.head_dim; d++) {
                narrow(from[d], k + size_t(d / PAIR) * PAIR * model.block_size + d % PAIR);
                narrow(from[kv_size + d], v + d * PAIR);
            }
        }
    }

    void write_queries(const float* from, int row, const Memory& m) const {
        for (int head = 0; head < model.num_heads; head++, from += model.head_dim) {
            const auto to = m.queries + query_row(head / groups, row, head % groups) * model.head_dim;
            for (int d = 0; d < model.head_dim; d += LANES) Sum<Number>::narrow(load(from + d) * model.scaling, to + d);
        }
    }

    size_t query_row(int kv_head, int row, int group) const {
        return (size_t(kv_head) * step.num_rows + row) * groups + group;
    }

    void attend(const Layer& layer, int index, const Memory& m) const {
        share(team, int(m.groups.size()) * model.num_kv_heads, [&](int task) {
            const Group& group = m.groups[task / model.num_kv_heads];
            const int head = task % model.num_kv_heads, count = (group.last_row - group.first_row) * groups;
            const auto keys = [&](int chunk) {
                return Keys<Number>{pool, step.chunks[chunk].block_table, block_cells, index * layer_cells + head * head_cells,
                                    model.num_kv_heads * head_cells, model.block_size, model.head_dim};
            };
            const size_t first = query_row(head, group.first_row, 0);
            const Queries<Number> queries{
                m.queries + first * model.head_dim, m.out + first * model.head_dim,
                reinterpret_cast<Floats*>(m.sums) + first, m.highest + first, m.positions + group.first_row * groups,
                model.head_dim, layer.window ? layer.window : 1 << 30, model.score_cap};
            queries.begin(count);
            attend_keys(queries, count, keys(group.first_chunk), 0, group.shared);
            for (int c = group.first_chunk; c < group.last_chunk && group.num_chunks() > 1; c++) {
                const int row = std::max(step.chunks[c].first_row, group.first_row);
                const int own = (step.chunks[c].first_row + step.chunks[c].num_rows - row) * groups;
                attend_keys(queries.from((row - group.first_row) * groups), own, keys(c), group.shared, INT_MAX);
            }
            for (int i = 0; i < count; i++) finish(queries.from(i), head, group.first_row * groups + i, m.attended);
        });
    }

    void finish(const Queries<Number>& query, int head, int i, float* attended) const {
        float* to = attended + size_t(i / groups) * q_size + (head * groups + i % groups) * model.head_dim;
        const float inverse = 1.0f / sum(*query.sums);
        for (int d = 0; d < model.head_dim; d += LANES) store(to + d, load(query.out + d) * inverse);
    }

    void take(const float* residual) const {
        int count = 0;
        for (int c = 0; c < step.num_chunks; c++) {
            const Chunk& chunk = step.chunks[c];
            for (int row = chunk.first_row + chunk.num_rows - chunk.samples; row < chunk.first_row + chunk.num_rows; row++)
                normalise(step.sampled_rows + size_t(count++) * model.hidden, residual + size_t(row) * model.hidden,
                          model.final_norm, model.hidden, model.epsilon);
        }
    }

    void sample() const {
        int count = 0;
        for (int c = 0; c < step.num_chunks; c++) count += step.chunks[c].samples;
        const int stride = (model.head.outputs + PANEL - 1) / PANEL * PANEL;
        std::vector<float> logits(size_t(count) * stride);
        multiply<Number>(team, {model.head, step.sampled_rows, logits.data(), count, stride, Then::STORE});
        if (model.logit_cap > 0.0f)
            for (size_t i = 0; i < logits.size(); i += LANES) store(&logits[i], capped(load(&logits[i]), model.logit_cap));
        for (int i = 0; i < count; i++) {
            const float* row = logits.data() + size_t(i) * stride;
            const uint32_t* mask = step.masks ? step.masks[i] : nullptr;
            int best = -1;
            bool is_number = true;
            for (int n = 0; n < model.head.outputs; n++) {
                is_number &= std::isfinite(row[n]);
                if ((!mask || mask[n / 32] >> n % 32 & 1) && (best < 0 || row[n] > row[best])) best = n;
            }
            step.sampled_ids[i] = best;
            step.sampled_logits[i] = is_number ? row[std::max(best, 0)] : NAN;
        }
    }
};

}  // namespace

extern "C" {

// A step in two calls: all layers, then, once the masks are there, the head for the rows that are sampled.
// 0, or 1 where memory ran out. Tasks allocate nothing, so whatever is thrown is thrown here.
int streamproc_layers(const Model* model, const Step* step, Team* team) {
    try {
        if (model->is_bfloat16) Forward<bfloat16>{*model, *step, team}.run();
        else Forward<float>{*model, *step, team}.run();
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

int streamproc_sample(const Model* model, const Step* step, Team* team) {
    try {
        if (model->is_bfloat16) Forward<bfloat16>{*model, *step, team}.sample();
        else Forward<float>{*model, *step, team}.sample();
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

// Null for one thread, and where no more can be had.
Team* streamproc_team(int size) {
    if (size < 2) return nullptr;
    Team* team = nullptr;
    try {
        team = new Team;
        for (int i = 1; i < size; i++) team->add();
        return team;
    } catch (...) {
        delete team;
        return nullptr;
    }
}

// Changes with whatever changes between the tables of program.py and this code.
int streamproc_layout() { return LAYOUT * 10'000 + int(sizeof(Model) + sizeof(Layer) + sizeof(Step) + sizeof(Chunk)); }

void streamproc_disband(Team* team) { delete team; }

}  // extern "C"
