// One step of a decoder on the CPU: packed rows of many sequences through all layers in one call, KV read in place.
//
// A row's bits depend on its own sequence alone, as long as its cells are numbers. Every sum over weights goes through k in ascending order in one
// accumulator; keys are taken in tiles of KEYS at absolute positions, in ascending order, and a key that a row does not
// see adds exactly nothing. So rows may come in any chunks, beside any company, on any thread.
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
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace {

constexpr int LANES = 16;       // floats of a vector; narrower machines take several registers for one
constexpr int PANEL = 32;       // outputs whose weights lie together
constexpr int KEYS = 64;        // of a tile of attention
constexpr int MAX_HEAD_DIM = 256;
constexpr int LAYOUT = 2;        // of packed weights and of KV; library.py has it too
constexpr float UNSEEN = -2e30f, LOWEST = -1e30f;   // score of a key that a row does not see; maximum of no keys

using bfloat16 = uint16_t;
typedef float Floats __attribute__((vector_size(LANES * sizeof(float)), aligned(4)));
typedef int32_t Ints __attribute__((vector_size(LANES * sizeof(int32_t)), aligned(4)));
typedef uint16_t Halves __attribute__((vector_size(LANES * sizeof(uint16_t)), aligned(2)));

inline Floats all(float x) { return x - Floats{}; }   // x - 0 is x, so nothing is subtracted

// One rounding on every machine: left to the compiler, some multiply-adds would round twice.
inline Floats fma(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
    return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    union { Floats all; __m256 half[2]; } x{a}, y{b}, z{c};
    for (int i = 0; i < 2; i++) z.half[i] = _mm256_fmadd_ps(x.half[i], y.half[i], z.half[i]);
    return z.all;
#elif defined(__ARM_NEON)
    union { Floats all; float32x4_t part[4]; } x{a}, y{b}, z{c};
    for (int i = 0; i < 4; i++) z.part[i] = vfmaq_f32(z.part[i], x.part[i], y.part[i]);
    return z.all;
#else
    for (int i = 0; i < LANES; i++) c[i] = std::fma(a[i], b[i], c[i]);
    return c;
#endif
}

inline Floats load(const float* from) { Floats x; std::memcpy(&x, from, sizeof x); return x; }
inline void store(float* to, Floats x) { std::memcpy(to, &x, sizeof x); }
inline Floats load(const bfloat16* from) {
    Halves x;
    std::memcpy(&x, from, sizeof x);
    return (Floats)(__builtin_convertvector(x, Ints) << 16);
}
inline float widen(float x) { return x; }
inline float widen(bfloat16 x) { uint32_t bits = uint32_t(x) << 16; float y; std::memcpy(&y, &bits, 4); return y; }
inline void narrow(float x, float* to) { *to = x; }
inline void narrow(float x, bfloat16* to) {     // to nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    *to = x != x ? 0x7fc0 : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Sums of products, a vector of them at once: `add` takes PAIR operands and a vector of PAIR cells each.
template <class Cell> struct Sum;

template <> struct Sum<float> {
    static constexpr int PAIR = 1;
    using Operand = float;
    using Cells = Floats;
    static Cells take(const float* from) { return load(from); }
    static Floats add(Floats sum, const Operand* x, Cells cells) { return fma(all(*x), cells, sum); }
    static void narrow(Floats x, Operand* to) { store(to, x); }
};

template <> struct Sum<bfloat16> {
    static constexpr int PAIR = 2;
    using Cells = Ints;
    static Cells take(const bfloat16* from) { Ints x; std::memcpy(&x, from, sizeof x); return x; }
    static Cells first(Cells cells) { return cells & 0xffff; }
#ifdef __AVX512BF16__
    using Operand = bfloat16;
    static Floats add(Floats sum, const Operand* x, Cells cells) {
        int32_t pair;
        std::memcpy(&pair, x, sizeof pair);
        return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)cells);
    }
    static void narrow(Floats x, Operand* to) {
        const __m256bh y = _mm512_cvtneps_pbh((__m512)x);
        std::memcpy(to, &y, sizeof y);
    }
#else
    using Operand = float;
    static Floats add(Floats sum, const Operand* x, Cells cells) {
        return fma(all(x[1]), (Floats)(cells & int32_t(0xffff0000)), fma(all(x[0]), (Floats)(cells << 16), sum));
    }
    static void narrow(Floats x, Operand* to) { store(to, x); }
#endif
};

inline float sum(Floats x) {
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) x[i] += x[i + half];
    return x[0];
}
inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }
inline float largest(Floats x) {
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) x[i] = std::max(x[i], x[i + half]);
    return x[0];
}

// e^x for x <= 88; 0 below -87, 1 at 0. Cody and Waite's reduction, Cephes' polynomial; within 2 units of the last place.
inline Floats exp(Floats x) {
    const Floats clamped = x < -87.0f ? all(-87.0f) : x;     // what is no number stays none
    const Floats n = fma(clamped, all(1.44269504f), all(12582912.0f)) - 12582912.0f;     // to nearest
    Floats r = fma(n, all(-0.693359375f), clamped);
    r = fma(n, all(2.12194440e-4f), r);
    Floats y = all(1.9875691500e-4f);
    for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        y = fma(y, r, all(c));
    y = fma(y, r * r, r) + 1.0f;
    const Ints power = (__builtin_convertvector(n, Ints) + 127) << 23;
    return x < -87.0f ? Floats{} : y * (Floats)power;
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// What cpu/program.py and cpu/forward.py hand over; the fields lie as their ctypes.Structure says.

extern "C" {

struct Matrix {
    const void* packed;         // [ceil(outputs / PANEL)][inputs][PANEL]
    const float* bias;          // [outputs], or null
    int32_t outputs, inputs;
};

struct Layer {
    Matrix qkv, out, gate_up, down;         // gate and up alternate, LANES rows of each
    const float *input_norm, *q_norm, *k_norm, *attention_norm, *mlp_norm, *after_mlp_norm;     // null: none
    const float *cosines, *sines;           // [positions][rotary_dim / 2]
    int32_t window;                         // keys a row sees; 0: all before it
};

struct Model {
    const void* embedding;      // [vocabulary][hidden]
    const float* final_norm;
    const Layer* layers;
    Matrix head;
    int32_t num_layers, hidden, num_heads, num_kv_heads, head_dim, rotary_dim, intermediate, block_size;
    int32_t is_bfloat16, is_gelu;
    float epsilon, scaling, embedding_scale;
};

struct Chunk {
    const int32_t* block_table;
    int32_t start, num_rows, first_row, samples;     // of how many of its last rows the next token is wanted
};

struct Step {
    void* blocks;               // the KV pool
    const int32_t* token_ids;   // [num_rows]
    const Chunk* chunks;
    int32_t* sampled_ids;       // [samples of all chunks]
    float* sampled_logits;      // of those ids
    float* sampled_rows;        // [samples][hidden] what the head sees of them: written by the layers, read by the sampler
    const uint32_t* const* masks;   // [samples] the tokens allowed, a bit each; null where all are, for a sample or at all
    int32_t num_rows, num_chunks;
};

struct Team;

}  // extern "C"

// ---------------------------------------------------------------------------------------------------------------------
// Threads that share the tasks of one caller at a time. They do not outlive a fork.

struct Team {
    void add() { threads.emplace_back([this] { work(); }); }
    ~Team() {
        job = nullptr;
        round.fetch_add(1);
        round.notify_all();
        for (auto& thread : threads) thread.join();
    }

    void run(int tasks, void (*call)(const void*, int), const void* what) {
        job = call, argument = what, num_tasks = tasks;
        next.store(0), busy.store(int(threads.size()));
        round.fetch_add(1);
        round.notify_all();
        take();
        for (int left = busy.load(), spins = 0; left; left = busy.load())
            if (++spins > SPINS) busy.wait(left);
    }

    static constexpr int SPINS = 4000;      // some microseconds: the next tasks mostly come at once
    std::vector<std::thread> threads;
    std::atomic<uint32_t> round{0};
    std::atomic<int> next{0}, busy{0};
    void (*job)(const void*, int) = nullptr;
    const void* argument = nullptr;
    int num_tasks = 0;

private:
    void take() {
        for (int task; (task = next.fetch_add(1)) < num_tasks;) job(argument, task);
    }
    void work() {
        for (uint32_t seen = 0;;) {
            for (int spins = 0; round.load() == seen;)
                if (++spins > SPINS) round.wait(seen);
            seen++;
            if (!job) return;
            take();
            if (busy.fetch_sub(1) == 1) busy.notify_all();
        }
    }
};

namespace {

template <class F> void share(Team* team, int tasks, const F& task) {
    if (!team || tasks < 2) {
        for (int i = 0; i < tasks; i++) task(i);
    } else {
        team->run(tasks, [](const void* what, int i) { (*static_cast<const F*>(what))(i); }, &task);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Products with weights.

enum class Then { STORE, ADD, GATE_SILU, GATE_GELU };

inline Floats activated(Floats gate, bool is_gelu) {
    if (!is_gelu) return gate / (1.0f + exp(-larger(gate, all(-88.0f))));
    const Floats inner = fma(gate * gate * gate, all(0.044715f), gate) * 1.5957691216f;     // 2 sqrt(2 / pi)
    const Floats bounded = inner > 80.0f ? all(80.0f) : larger(inner, all(-80.0f));
    return gate - gate / (exp(bounded) + 1.0f);
}

struct Product {
    const Matrix& weights;
    const float* x;         // [rows][inputs]
    float* y;               // [rows][stride]
    int rows, stride;
    Then then;
};

template <class Weight> struct Multiply : Product {
    using S = Sum<Weight>;
    using Operand = typename S::Operand;

    void run(Team* team) const {
        constexpr int AT_ONCE = 128;        // rows of a task
        const int panels = (weights.outputs + PANEL - 1) / PANEL, cuts = (rows + AT_ONCE - 1) / AT_ONCE;
        const Operand* operands = narrowed(team, x);
        share(team, panels * cuts, [&](int task) {
            const int first = task / panels * AT_ONCE;
            column(operands, task % panels, first, std::min(rows, first + AT_ONCE));
        });
    }

    const float* narrowed(Team*, const float* from) const requires std::is_same_v<Operand, float> { return from; }
    const bfloat16* narrowed(Team* team, const float* from) const requires std::is_same_v<Operand, bfloat16> {
        static thread_local std::vector<bfloat16> memory;
        constexpr int AT_ONCE = 64;         // rows of a task
        const size_t size = size_t(rows) * weights.inputs, part = size_t(AT_ONCE) * weights.inputs;
        if (memory.size() < size) memory.resize(size);
        bfloat16* to = memory.data();
        share(team, (rows + AT_ONCE - 1) / AT_ONCE, [=](int task) {
            for (size_t i = task * part; i < std::min(size, (task + 1) * part); i += LANES) S::narrow(load(from + i), to + i);
        });
        return to;
    }

    void column(const Operand* operands, int panel, int first, int last) const {
        int row = first;
        for (; row + 8 <= last; row += 8) tile<8>(operands, row, panel);
        if (row + 4 <= last) tile<4>(operands, row, panel), row += 4;
        if (row + 2 <= last) tile<2>(operands, row, panel), row += 2;
        if (row < last) tile<1>(operands, row, panel);
    }

    // ROWS rows against one panel; every output has one sum, over k in ascending order.
    template <int ROWS> void tile(const Operand* operands, int row, int panel) const {
        const int n = panel * PANEL, inputs = weights.inputs;
        const Weight* packed = static_cast<const Weight*>(weights.packed) + size_t(panel) * inputs * PANEL;
        const Operand* from = operands + size_t(row) * inputs;
        Floats out[ROWS][2] = {};
        for (int k = 0; k < inputs; k += S::PAIR, packed += PANEL * S::PAIR) {
            const auto left = S::take(packed), right = S::take(packed + LANES * S::PAIR);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) {
                out[r][0] = S::add(out[r][0], from + r * inputs + k, left);
                out[r][1] = S::add(out[r][1], from + r * inputs + k, right);
            }
        }
        for (int r = 0; r < ROWS; r++) finish(out[r], y + size_t(row + r) * stride, n);
    }

    void finish(Floats (&out)[2], float* to, int n) const {
        if (weights.bias) out[0] += load(weights.bias + n), out[1] += load(weights.bias + n + LANES);
        if (then == Then::GATE_SILU || then == Then::GATE_GELU) {
            store(to + n / 2, activated(out[0], then == Then::GATE_GELU) * out[1]);
            return;
        }
        for (int half = 0; half < 2 && n + half * LANES < weights.outputs; half++) {
            float* place = to + n + half * LANES;
            store(place, then == Then::ADD ? load(place) + out[half] : out[half]);
        }
    }
};

template <class Weight> void multiply(Team* team, const Product& product) { Multiply<Weight>{product}.run(team); }

void normalise(float* to, const float* from, const float* weight, int size, float epsilon) {
    Floats squares = {};
    for (int i = 0; i < size; i += LANES) squares = fma(load(from + i), load(from + i), squares);
    const float scale = 1.0f / std::sqrt(sum(squares) / size + epsilon);
    for (int i = 0; i < size; i += LANES) store(to + i, load(from + i) * scale * load(weight + i));
}

void rotate(float* x, const float* cosines, const float* sines, int half) {
    for (int i = 0; i < half; i++) {
        const float first = x[i], second = x[i + half];
        x[i] = first * cosines[i] - second * sines[i];
        x[i + half] = second * cosines[i] + first * sines[i];
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Attention of ROWS query rows of one KV head.

template <class Cell> struct Keys {
    static constexpr int PAIR = Sum<Cell>::PAIR;

    const Cell* pool;
    const int32_t* block_table;
    size_t block_stride, offset, to_values;     // cells: from block to block, to this layer's K of this head, from K to V
    int block_size, head_dim;

    const Cell* block(int position) const { return pool + block_table[position / block_size] * block_stride + offset; }
    const Cell* k(int position) const { return block(position) + position % block_size * PAIR; }
    const Cell* v(int position) const { return block(position) + to_values + size_t(position % block_size) * head_dim; }
};

template <int ROWS, class Cell> struct Tile {
    using S = Sum<Cell>;
    using Operand = typename S::Operand;

    Operand queries[ROWS][MAX_HEAD_DIM];
    float out[ROWS][MAX_HEAD_DIM];
    float scores[ROWS][KEYS];
    Operand weights[ROWS][KEYS];
    float highest[ROWS];
    Floats sums[ROWS];

    // Scores of `count` keys from `first` on, and of what else their last vector holds.
    void score(const Keys<Cell>& keys, int first, int count) {
        constexpr int WIDTH = ROWS == 8 ? 2 : 4;    // vectors of keys at once: sums enough to hide each other's latency
        int j = 0;
        for (; j + (WIDTH - 1) * LANES < count; j += WIDTH * LANES) score_part<WIDTH>(keys, first, j);
        for (; j < count; j += LANES) score_part<1>(keys, first, j);
    }

    template <int WIDTH> void score_part(const Keys<Cell>& keys, int first, int j) {
        const Cell* k[WIDTH];
        for (int w = 0; w < WIDTH; w++) k[w] = keys.k(first + j + w * LANES);
        Floats dots[ROWS][WIDTH] = {};
        const int step = keys.block_size * S::PAIR;
        for (int d = 0, at = 0; d < keys.head_dim; d += S::PAIR, at += step) {
#pragma GCC unroll 4
            for (int w = 0; w < WIDTH; w++) {
                const auto cells = S::take(k[w] + at);
#pragma GCC unroll 8
                for (int r = 0; r < ROWS; r++) dots[r][w] = S::add(dots[r][w], &queries[r][d], cells);
            }
        }
        for (int r = 0; r < ROWS; r++)
            for (int w = 0; w < WIDTH; w++) store(&scores[r][j + w * LANES], dots[r][w]);
    }

    // Weights from scores; what was summed so far is scaled to the new maximum.
    void soften(const int* positions, int window, int first, int count, int head_dim) {
        const Ints lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        for (int r = 0; r < ROWS; r++) {
            const int last = positions[r] - first, before = last - window;      // seen: before < j <= last
            Floats top = all(highest[r]);
            for (int j = 0; j < count; j += LANES) {
                Floats x = load(&scores[r][j]);
                if (j + LANES - 1 > last || j <= before) {
                    x = (lane + j > last) | (lane + j <= before) ? all(UNSEEN) : x;
                    store(&scores[r][j], x);
                }
                top = larger(top, x);
            }
            const float now = largest(top);
            const Floats scale = exp(all(highest[r] - now));
            Floats total = sums[r] * scale;
            for (int j = 0; j < count; j += LANES) {
                const Floats weight = exp(load(&scores[r][j]) - now);
                S::narrow(weight, &weights[r][j]);
                total += weight;
            }
            sums[r] = total;
            if (now != highest[r])
                for (int d = 0; d < head_dim; d += LANES) store(&out[r][d], load(&out[r][d]) * scale);
            highest[r] = now;
        }
    }

    // WIDTH vectors of the head's dimensions from d on.
    template <int WIDTH> void gather(const Keys<Cell>& keys, int first, int count, int d) {
        Floats sums[ROWS][WIDTH];
        for (int r = 0; r < ROWS; r++)
            for (int w = 0; w < WIDTH; w++) sums[r][w] = load(&out[r][d + w * LANES]);
        for (int j = 0; j < count;) {
            const int end = std::min(count, j + keys.block_size - (first + j) % keys.block_size);
            const Cell* v = keys.v(first + j) + d * S::PAIR;
            for (; j < end; j += S::PAIR, v += keys.head_dim * S::PAIR) {
#pragma GCC unroll 4
                for (int w = 0; w < WIDTH; w++) {
                    auto cells = S::take(v + w * LANES * S::PAIR);
                    if constexpr (S::PAIR == 2)
                        if (j + 1 == count) cells = S::first(cells);    // the second may never have been written
#pragma GCC unroll 8
                    for (int r = 0; r < ROWS; r++) sums[r][w] = S::add(sums[r][w], &weights[r][j], cells);
                }
            }
        }
        for (int r = 0; r < ROWS; r++)
            for (int w = 0; w < WIDTH; w++) store(&out[r][d + w * LANES], sums[r][w]);
    }

    // ROWS query rows at ascending positions, each of which sees `window` keys, its own the last.
    void run(const Keys<Cell>& keys, const int* positions, int window) {
        std::memset(out, 0, sizeof out);
        for (int r = 0; r < ROWS; r++) highest[r] = LOWEST, sums[r] = Floats{};
        const int end = positions[ROWS - 1] + 1;
        const int start = std::max(0, positions[0] + 1 - window) / KEYS * KEYS;
        for (int first = start; first < end; first += KEYS) {
            const int count = std::min(KEYS, end - first);
            score(keys, first, count);
            soften(positions, window, first, (count + LANES - 1) / LANES * LANES, keys.head_dim);
            int d = 0;
            if constexpr (ROWS < 8)
                for (; d + 4 * LANES <= keys.head_dim; d += 4 * LANES) gather<4>(keys, first, count, d);
            for (; d + 2 * LANES <= keys.head_dim; d += 2 * LANES) gather<2>(keys, first, count, d);
            if (d < keys.head_dim) gather<1>(keys, first, count, d);
        }
        for (int r = 0; r < ROWS; r++) {
            const float inverse = 1.0f / sum(sums[r]);
            for (int d = 0; d < keys.head_dim; d += LANES) store(&out[r][d], load(&out[r][d]) * inverse);
        }
    }
};

// ---------------------------------------------------------------------------------------------------------------------

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

    void run() const {
        static thread_local std::vector<float> memory;
        const size_t hidden = model.hidden;
        memory.resize(step.num_rows * (2 * hidden + qkv_size + q_size + model.intermediate) + 4 * LANES);
        float* residual = memory.data();
        float* x = residual + step.num_rows * hidden;
        float* qkv = x + step.num_rows * hidden;
        float* attended = qkv + size_t(step.num_rows) * qkv_size;
        float* inner = attended + size_t(step.num_rows) * q_size;
        rows([&](int row) {
            const Number* from = static_cast<const Number*>(model.embedding) + step.token_ids[row] * hidden;
            for (size_t i = 0; i < hidden; i++) residual[row * hidden + i] = widen(from[i]) * model.embedding_scale;
        });
        for (int i = 0; i < model.num_layers; i++) {
            const Layer& layer = model.layers[i];
            rows([&](int row) { norm(x, residual, layer.input_norm, row); });
            multiply<Number>(team, {layer.qkv, x, qkv, step.num_rows, qkv_size, Then::STORE});
            write(layer, i, qkv);
            attend(layer, i, qkv, attended);
            add(layer.out, attended, layer.attention_norm, residual, x);
            rows([&](int row) { norm(x, residual, layer.mlp_norm, row); });
            multiply<Number>(team, {layer.gate_up, x, inner, step.num_rows, model.intermediate,
                                    model.is_gelu ? Then::GATE_GELU : Then::GATE_SILU});
            add(layer.down, inner, layer.after_mlp_norm, residual, x);
        }
        take(residual);
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

    // Norms and rotation of Q and K in place; K and V into their cells. A chunk at a time: its rows have cells of their own.
    void write(const Layer& layer, int index, float* qkv) const {
        share(team, step.num_chunks, [&](int task) {
            const Chunk& chunk = step.chunks[task];
            for (int i = 0; i < chunk.num_rows; i++) {
                float* row = qkv + size_t(chunk.first_row + i) * qkv_size;
                const int position = chunk.start + i, half = model.rotary_dim / 2;
                for (int head = 0; head < model.num_heads + model.num_kv_heads; head++) {
                    float* at = row + head * model.head_dim;
                    const float* weight = head < model.num_heads ? layer.q_norm : layer.k_norm;
                    if (weight) normalise(at, at, weight, model.head_dim, model.epsilon);
                    rotate(at, layer.cosines + size_t(position) * half, layer.sines + size_t(position) * half, half);
                }
                Number* block = pool + chunk.block_table[position / model.block_size] * block_cells + index * layer_cells;
                const int cell = position % model.block_size;
                for (int head = 0; head < model.num_kv_heads; head++) {
                    const float* from = row + q_size + head * model.head_dim;
                    Number* k = block + head * head_cells + cell * PAIR;
                    Number* v = block + (model.num_kv_heads + head) * head_cells
                        + size_t(cell / PAIR) * PAIR * model.head_dim + cell % PAIR;
                    for (int d = 0; d < model.head_dim; d++) {
                        narrow(from[d], k + size_t(d / PAIR) * PAIR * model.block_size + d % PAIR);
                        narrow(from[kv_size + d], v + d * PAIR);
                    }
                }
            }
        });
    }

    void attend(const Layer& layer, int index, const float* qkv, float* attended) const {
        constexpr int AT_ONCE = 32;     // rows of a chunk in a task
        std::vector<std::pair<int, int>> parts;
        for (int c = 0; c < step.num_chunks; c++)
            for (int row = 0; row < step.chunks[c].num_rows; row += AT_ONCE) parts.emplace_back(c, row);
        share(team, int(parts.size()) * model.num_kv_heads, [&](int task) {
            const auto [c, first] = parts[parts.size() - 1 - task / model.num_kv_heads];     // the longest first
            const Chunk& chunk = step.chunks[c];
            const int head = task % model.num_kv_heads, last = std::min(chunk.num_rows, first + AT_ONCE) * groups;
            const Keys<Number> keys{pool, chunk.block_table, block_cells, index * layer_cells + head * head_cells,
                                    model.num_kv_heads * head_cells, model.block_size, model.head_dim};
            int i = first * groups;
            for (; i + 8 <= last; i += 8) tile<8>(layer, chunk, keys, head, i, qkv, attended);
            if (i + 4 <= last) tile<4>(layer, chunk, keys, head, i, qkv, attended), i += 4;
            if (i + 2 <= last) tile<2>(layer, chunk, keys, head, i, qkv, attended), i += 2;
            if (i < last) tile<1>(layer, chunk, keys, head, i, qkv, attended);
        });
    }

    // Query rows i .. of a chunk: row by row, the heads of this KV head beside each other.
    template <int ROWS> void tile(const Layer& layer, const Chunk& chunk, const Keys<Number>& keys, int head, int i,
                                  const float* qkv, float* attended) const {
        Tile<ROWS, Number> tile;
        int positions[ROWS];
        for (int r = 0; r < ROWS; r++) {
            const int row = (i + r) / groups, query_head = head * groups + (i + r) % groups;
            positions[r] = chunk.start + row;
            const float* from = qkv + size_t(chunk.first_row + row) * qkv_size + query_head * model.head_dim;
            for (int d = 0; d < model.head_dim; d += LANES)
                Sum<Number>::narrow(load(from + d) * model.scaling, &tile.queries[r][d]);
        }
        tile.run(keys, positions, layer.window ? layer.window : 1 << 30);
        for (int r = 0; r < ROWS; r++) {
            const int row = (i + r) / groups, query_head = head * groups + (i + r) % groups;
            std::memcpy(attended + size_t(chunk.first_row + row) * q_size + query_head * model.head_dim, tile.out[r],
                        model.head_dim * sizeof(float));
        }
    }

    void take(const float* residual) const {
        int count = 0;
        for (int c = 0; c < step.num_chunks; c++) {
            const Chunk& chunk = step.chunks[c];
            for (int row = chunk.first_row + chunk.num_rows - chunk.samples; row < chunk.first_row + chunk.num_rows; row++)
                normalise(step.sampled_rows + size_t(count++) * model.hidden, residual + size_t(row) * model.hidden, model.final_norm,
                          model.hidden, model.epsilon);
        }
    }

    void sample() const {
        int count = 0;
        for (int c = 0; c < step.num_chunks; c++) count += step.chunks[c].samples;
        const int stride = (model.head.outputs + PANEL - 1) / PANEL * PANEL;
        std::vector<float> logits(size_t(count) * stride);
        multiply<Number>(team, {model.head, step.sampled_rows, logits.data(), count, stride, Then::STORE});
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
            step.sampled_logits[i] = is_number ? row[best] : NAN;
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
