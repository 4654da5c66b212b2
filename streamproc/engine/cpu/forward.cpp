// One step of a decoder on the CPU: packed rows of many sequences through all layers in one call, KV read in place.
//
// A row's bits depend on its own sequence alone. Every sum over weights goes through k in ascending order in one
// accumulator; keys are taken in tiles of KEYS at absolute positions, in ascending order, and a key that a row does not
// see adds exactly nothing. So rows may come in any chunks, beside any company, on any thread.
//
//   weights   packed[n / PANEL][k][PANEL] in float, [n / PANEL][k / 2][PANEL][2] in bfloat16 (cpu/program.py)
//   KV        [block][layer][K, V][kv_head]; K of a block lies [head_dim][block_size], V [block_size][head_dim]
//   rest      float
//
// Attention is FlashAttention's online softmax (Dao et al. 2022) over paged KV (Kwon et al. 2023), the query heads of
// one KV head folded into the rows of a tile.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
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
constexpr int DEPTH = 512;      // of k at once, so that a panel's part stays in the first cache
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
inline Ints load_pairs(const bfloat16* from) { Ints x; std::memcpy(&x, from, sizeof x); return x; }
inline float widen(float x) { return x; }
inline float widen(bfloat16 x) { uint32_t bits = uint32_t(x) << 16; float y; std::memcpy(&y, &bits, 4); return y; }
inline void narrow(float x, float* to) { *to = x; }
inline void narrow(float x, bfloat16* to) {     // to nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    *to = x != x ? 0x7fc0 : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

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
    const Floats clamped = larger(x, all(-87.0f));
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
// What cpu/program.py and cpu/runner.py hand over; the fields lie as their ctypes.Structure says.

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
    int32_t start, num_rows, first_row, samples;
};

struct Step {
    void* blocks;               // the KV pool
    const int32_t* token_ids;   // [num_rows]
    const Chunk* chunks;
    int32_t* sampled_ids;       // [chunks that sample]
    float* sampled_logits;      // of those ids
    int32_t num_rows, num_chunks;
};

struct Team;

}  // extern "C"

// ---------------------------------------------------------------------------------------------------------------------
// Threads that share the tasks of one caller.

struct Team {
    explicit Team(int size) {
        for (int i = 1; i < size; i++) threads.emplace_back([this] { work(); });
    }
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
    std::atomic<int> round{0}, next{0}, busy{0};
    void (*job)(const void*, int) = nullptr;
    const void* argument = nullptr;
    int num_tasks = 0;

private:
    void take() {
        for (int task; (task = next.fetch_add(1)) < num_tasks;) job(argument, task);
    }
    void work() {
        for (int seen = 0;;) {
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

// What weights of a kind are multiplied with: processors with products of bfloat16 want both sides so.
template <class Weight> struct Operand { using Type = float; };
#ifdef __AVX512BF16__
template <> struct Operand<bfloat16> { using Type = bfloat16; };
#endif

// ROWS rows of x [.., inputs] against one panel, `depth` of k.
template <int ROWS> inline void multiply(Floats (&out)[ROWS][2], const float* x, int inputs, const float* panel, int depth) {
    for (int k = 0; k < depth; k++, panel += PANEL) {
        const Floats left = load(panel), right = load(panel + LANES);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            const Floats scalar = all(x[r * inputs + k]);
            out[r][0] = fma(scalar, left, out[r][0]);
            out[r][1] = fma(scalar, right, out[r][1]);
        }
    }
}

#ifdef __AVX512BF16__
template <int ROWS>
inline void multiply(Floats (&out)[ROWS][2], const bfloat16* x, int inputs, const bfloat16* panel, int depth) {
    for (int k = 0; k < depth; k += 2, panel += 2 * PANEL) {
        const __m512bh left = (__m512bh)load_pairs(panel), right = (__m512bh)load_pairs(panel + PANEL);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            int32_t pair;
            std::memcpy(&pair, x + r * inputs + k, sizeof pair);
            const __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
            out[r][0] = (Floats)_mm512_dpbf16_ps((__m512)out[r][0], both, left);
            out[r][1] = (Floats)_mm512_dpbf16_ps((__m512)out[r][1], both, right);
        }
    }
}
#else
template <int ROWS>
inline void multiply(Floats (&out)[ROWS][2], const float* x, int inputs, const bfloat16* panel, int depth) {
    constexpr int HIGH = 0xffff0000;
    for (int k = 0; k < depth; k += 2, panel += 2 * PANEL) {
        const Ints left = load_pairs(panel), right = load_pairs(panel + PANEL);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            const Floats even = all(x[r * inputs + k]), odd = all(x[r * inputs + k + 1]);
            out[r][0] = fma(odd, (Floats)(left & HIGH), fma(even, (Floats)(left << 16), out[r][0]));
            out[r][1] = fma(odd, (Floats)(right & HIGH), fma(even, (Floats)(right << 16), out[r][1]));
        }
    }
}
#endif

struct Product {
    const Matrix& weights;
    const float* x;         // [rows][inputs]
    float* y;               // [rows][stride]
    int rows, stride;
    Then then;

    template <int ROWS, class Weight> void tile(const typename Operand<Weight>::Type* x, int row, int panel) const {
        const int n = panel * PANEL, inputs = weights.inputs;
        const Weight* packed = static_cast<const Weight*>(weights.packed) + size_t(panel) * inputs * PANEL;
        Floats out[ROWS][2] = {};
        for (int k = 0; k < inputs; k += DEPTH)
            multiply<ROWS>(out, x + size_t(row) * inputs + k, inputs, packed + size_t(k) * PANEL,
                           std::min(DEPTH, inputs - k));
        if (weights.bias)
            for (auto& part : out) part[0] += load(weights.bias + n), part[1] += load(weights.bias + n + LANES);
        for (int r = 0; r < ROWS; r++) {
            float* to = y + size_t(row + r) * stride;
            if (then == Then::GATE_SILU || then == Then::GATE_GELU) {
                store(to + n / 2, activated(out[r][0], then == Then::GATE_GELU) * out[r][1]);
                continue;
            }
            for (int half = 0; half < 2 && n + half * LANES < weights.outputs; half++) {
                float* place = to + n + half * LANES;
                store(place, then == Then::ADD ? load(place) + out[r][half] : out[r][half]);
            }
        }
    }

    template <class Weight>
    void column(const typename Operand<Weight>::Type* x, int panel, int first, int last) const {
        int row = first;
        for (; row + 8 <= last; row += 8) tile<8, Weight>(x, row, panel);
        if (row + 4 <= last) tile<4, Weight>(x, row, panel), row += 4;
        if (row + 2 <= last) tile<2, Weight>(x, row, panel), row += 2;
        if (row < last) tile<1, Weight>(x, row, panel);
    }
};

// The operand of a product: x itself, or a copy in the caller's memory.
inline const float* operand(Team*, const Product& product, const float*) { return product.x; }
inline const bfloat16* operand(Team* team, const Product& product, const bfloat16*) {
    static thread_local std::vector<bfloat16> memory;
    constexpr int AT_ONCE = 64;         // rows of a task
    const int inputs = product.weights.inputs;
    if (memory.size() < size_t(product.rows) * inputs) memory.resize(size_t(product.rows) * inputs);
    bfloat16* to = memory.data();
    share(team, (product.rows + AT_ONCE - 1) / AT_ONCE, [&, to](int task) {
        const size_t first = size_t(task) * AT_ONCE * inputs;
        const size_t last = std::min(size_t(product.rows), size_t(task + 1) * AT_ONCE) * inputs;
        for (size_t i = first; i < last; i++) narrow(product.x[i], to + i);
    });
    return to;
}

template <class Weight> void multiply(Team* team, const Product& product) {
    constexpr int AT_ONCE = 128;        // rows of a task
    const int panels = (product.weights.outputs + PANEL - 1) / PANEL, cuts = (product.rows + AT_ONCE - 1) / AT_ONCE;
    const auto* x = operand(team, product, static_cast<const typename Operand<Weight>::Type*>(nullptr));
    share(team, panels * cuts, [&](int task) {
        const int first = task / panels * AT_ONCE;
        product.column<Weight>(x, task % panels, first, std::min(product.rows, first + AT_ONCE));
    });
}

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
// Attention of up to ROWS query rows of one KV head. Row i stands at positions[i] and sees `window` keys, itself the last.

struct Keys {
    const int32_t* block_table;
    size_t block_stride, offset;        // elements: from block to block, and to this layer's K of this head
    int block_size, head_dim;

    template <class Cell> const Cell* k(const Cell* pool, int position) const {
        return pool + block_table[position / block_size] * block_stride + offset + position % block_size;
    }
    template <class Cell> const Cell* v(const Cell* pool, int position, size_t to_values) const {
        return pool + block_table[position / block_size] * block_stride + offset + to_values
            + size_t(position % block_size) * head_dim;
    }
};

template <int ROWS, class Cell> struct Tile {
    float queries[ROWS][MAX_HEAD_DIM];
    float out[ROWS][MAX_HEAD_DIM];
    float weights[ROWS][KEYS];
    float highest[ROWS];
    Floats sums[ROWS];

    // Scores of `count` keys from `first` on.
    void score(const Keys& keys, const Cell* pool, int first, int count) {
        for (int j = 0; j < count; j += LANES) {
            const Cell* k = keys.k(pool, first + j);
            Floats dots[ROWS] = {};
            for (int d = 0; d < keys.head_dim; d++, k += keys.block_size) {
                const Floats key = load(k);
#pragma GCC unroll 8
                for (int r = 0; r < ROWS; r++) dots[r] = fma(all(queries[r][d]), key, dots[r]);
            }
            for (int r = 0; r < ROWS; r++) store(&weights[r][j], dots[r]);
        }
    }

    // Weights in place of scores; what was summed so far is scaled to the new maximum.
    void soften(const int* positions, int window, int first, int count, int head_dim) {
        const Ints lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        for (int r = 0; r < ROWS; r++) {
            const int last = positions[r] - first, before = last - window;      // seen: before < j <= last
            Floats top = all(highest[r]);
            for (int j = 0; j < count; j += LANES) {
                Floats x = load(&weights[r][j]);
                if (j + LANES - 1 > last || j <= before) {
                    x = (lane + j > last) | (lane + j <= before) ? all(UNSEEN) : x;
                    store(&weights[r][j], x);
                }
                top = larger(top, x);
            }
            const float now = largest(top);
            const Floats scale = exp(all(highest[r] - now));
            Floats total = sums[r] * scale;
            for (int j = 0; j < count; j += LANES) {
                const Floats weight = exp(load(&weights[r][j]) - now);
                store(&weights[r][j], weight);
                total += weight;
            }
            sums[r] = total;
            if (now != highest[r])
                for (int d = 0; d < head_dim; d += LANES) store(&out[r][d], load(&out[r][d]) * scale);
            highest[r] = now;
        }
    }

    // WIDTH vectors of the head's dimensions from d on.
    template <int WIDTH> void gather(const Keys& keys, const Cell* pool, size_t to_values, int first, int count, int d) {
        Floats sums[ROWS][WIDTH];
        for (int r = 0; r < ROWS; r++)
            for (int w = 0; w < WIDTH; w++) sums[r][w] = load(&out[r][d + w * LANES]);
        for (int j = 0; j < count;) {
            const int end = std::min(count, j + keys.block_size - (first + j) % keys.block_size);
            const Cell* v = keys.v(pool, first + j, to_values) + d;
            for (; j < end; j++, v += keys.head_dim) {
                Floats value[WIDTH];
                for (int w = 0; w < WIDTH; w++) value[w] = load(v + w * LANES);
#pragma GCC unroll 8
                for (int r = 0; r < ROWS; r++) {
                    const Floats weight = all(weights[r][j]);
#pragma GCC unroll 2
                    for (int w = 0; w < WIDTH; w++) sums[r][w] = fma(weight, value[w], sums[r][w]);
                }
            }
        }
        for (int r = 0; r < ROWS; r++)
            for (int w = 0; w < WIDTH; w++) store(&out[r][d + w * LANES], sums[r][w]);
    }

    void run(const Keys& keys, const Cell* pool, size_t to_values, const int* positions, int window) {
        std::memset(out, 0, sizeof out);
        for (int r = 0; r < ROWS; r++) highest[r] = LOWEST, sums[r] = Floats{};
        const int end = positions[ROWS - 1] + 1;        // positions ascend
        const int start = std::max(0, positions[0] + 1 - window) / KEYS * KEYS;
        for (int first = start; first < end; first += KEYS) {
            const int count = std::min(KEYS, end - first);
            score(keys, pool, first, count);
            soften(positions, window, first, (count + LANES - 1) / LANES * LANES, keys.head_dim);
            int d = 0;
            for (; d + 2 * LANES <= keys.head_dim; d += 2 * LANES) gather<2>(keys, pool, to_values, first, count, d);
            if (d < keys.head_dim) gather<1>(keys, pool, to_values, first, count, d);
        }
        for (int r = 0; r < ROWS; r++) {
            const float inverse = 1.0f / sum(sums[r]);
            for (int d = 0; d < keys.head_dim; d += LANES) store(&out[r][d], load(&out[r][d]) * inverse);
        }
    }
};

// ---------------------------------------------------------------------------------------------------------------------

template <class Number> struct Forward {        // of weights and of KV
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
        sample(residual, x);
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
                    Number* k = block + head * head_cells + cell;
                    Number* v = block + (model.num_kv_heads + head) * head_cells + size_t(cell) * model.head_dim;
                    for (int d = 0; d < model.head_dim; d++) {
                        narrow(from[d], k + size_t(d) * model.block_size);
                        narrow(from[kv_size + d], v + d);
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
            const Keys keys{chunk.block_table, block_cells, index * layer_cells + head * head_cells, model.block_size,
                            model.head_dim};
            int i = first * groups;
            for (; i + 8 <= last; i += 8) tile<8>(layer, chunk, keys, head, i, qkv, attended);
            if (i + 4 <= last) tile<4>(layer, chunk, keys, head, i, qkv, attended), i += 4;
            if (i + 2 <= last) tile<2>(layer, chunk, keys, head, i, qkv, attended), i += 2;
            if (i < last) tile<1>(layer, chunk, keys, head, i, qkv, attended);
        });
    }

    // Query rows i .. of a chunk: row by row, the heads of this KV head beside each other.
    template <int ROWS> void tile(const Layer& layer, const Chunk& chunk, const Keys& keys, int head, int i,
                                  const float* qkv, float* attended) const {
        Tile<ROWS, Number> tile;
        int positions[ROWS];
        for (int r = 0; r < ROWS; r++) {
            const int row = (i + r) / groups, query_head = head * groups + (i + r) % groups;
            positions[r] = chunk.start + row;
            const float* from = qkv + size_t(chunk.first_row + row) * qkv_size + query_head * model.head_dim;
            for (int d = 0; d < model.head_dim; d++) tile.queries[r][d] = from[d] * model.scaling;
        }
        tile.run(keys, pool, model.num_kv_heads * head_cells, positions, layer.window ? layer.window : 1 << 30);
        for (int r = 0; r < ROWS; r++) {
            const int row = (i + r) / groups, query_head = head * groups + (i + r) % groups;
            std::memcpy(attended + size_t(chunk.first_row + row) * q_size + query_head * model.head_dim, tile.out[r],
                        model.head_dim * sizeof(float));
        }
    }

    void sample(const float* residual, float* x) const {
        int count = 0;
        for (int c = 0; c < step.num_chunks; c++) {
            const Chunk& chunk = step.chunks[c];
            if (!chunk.samples) continue;
            const float* from = residual + size_t(chunk.first_row + chunk.num_rows - 1) * model.hidden;
            normalise(x + size_t(count++) * model.hidden, from, model.final_norm, model.hidden, model.epsilon);
        }
        if (!count) return;
        const int stride = (model.head.outputs + PANEL - 1) / PANEL * PANEL;
        std::vector<float> logits(size_t(count) * stride);
        multiply<Number>(team, {model.head, x, logits.data(), count, stride, Then::STORE});
        for (int i = 0; i < count; i++) {
            const float* row = logits.data() + size_t(i) * stride;
            int best = 0;
            bool is_number = true;
            for (int n = 0; n < model.head.outputs; n++) {
                is_number &= std::isfinite(row[n]);
                if (row[n] > row[best]) best = n;
            }
            step.sampled_ids[i] = best;
            step.sampled_logits[i] = is_number ? row[best] : NAN;
        }
    }
};

}  // namespace

extern "C" {

void streamproc_forward(const Model* model, const Step* step, Team* team) {
    if (model->is_bfloat16) Forward<bfloat16>{*model, *step, team}.run();
    else Forward<float>{*model, *step, team}.run();
}

Team* streamproc_team(int size) { return size > 1 ? new Team(size) : nullptr; }

void streamproc_disband(Team* team) { delete team; }

}  // extern "C"
