// Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
//
// Multi-scale deformable attention on the CPU, forward and backward. Plain C functions over pointers: nothing here
// depends on Python or torch. The instruction set is the one the file is compiled for (see setup.py).
//
// All workers call the same function with the same Problem, and take tasks from a shared counter. Each element of the
// results is written by one task, in an order that does not depend on the workers: results are the same to the bit.
//
// docs/kernel.md explains the layout and the numbers behind it.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <type_traits>

#include <sched.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif

#define EXPORT extern "C" __attribute__((visibility("default")))

enum Type : int32_t { FLOAT32 = 0, BFLOAT16 = 1 };

// Mirrored by `Problem` in __init__.py. Strides count elements; everything without strides is contiguous.
struct Problem {
    int64_t batch, queries, heads, head_dim, levels, points;
    const int64_t *spatial_shapes;  // (levels, 2): height, width
    const void *value;              // (batch, cells, heads, head_dim), the last stride is 1
    int64_t value_strides[3];
    const float *reference_points;  // (batch, queries, levels, 2), the last stride is 1; null in the plain form
    int64_t reference_strides[3];
    const void *positions;    // (batch, queries, heads, levels, points, 2): offsets, or locations in the plain form
    const void *scores;       // (batch, queries, heads, levels, points): logits, or weights in the plain form
    void *output;             // (batch, queries, heads, head_dim), of the value's type; forward only
    const void *grad_output;  // like output; this and the following are for the backward only
    void *grad_value;         // (batch, cells, heads, head_dim), and the others like their tensors
    void *grad_positions;
    void *grad_scores;
    float *workspace;   // workspace_size() floats, 64-byte aligned, not initialized
    int64_t *counters;  // 1 + 2 * batch * heads zeros
    Type value_type, position_type, score_type;
    int32_t workers;
};

namespace {

typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Integers __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

inline Integers &integers(int32_t *numbers) { return *reinterpret_cast<Integers *>(numbers); }
inline Vector &vector(float *numbers) { return *reinterpret_cast<Vector *>(numbers); }
inline const Vector &vector(const float *numbers) { return *reinterpret_cast<const Vector *>(numbers); }

// Channels and samples come in multiples of this many, so that no loop over vectors has a remainder.
constexpr int64_t WIDTH = 16;
// Queries of one task. The heads of the same queries follow one another: they read the same memory pages.
constexpr int64_t CHUNK = 512;
// Queries whose samples are located first, then read a few points at a time: neighbors read the same cells.
constexpr int64_t BLOCK = 16;
constexpr int64_t GROUP = 4;
// Queries between a prefetch and its use. Their data lie a few kilobytes apart, which hardware does not foresee.
constexpr int64_t AHEAD = 16;

inline float from_bfloat16(uint16_t bits) {
    uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float result;
    std::memcpy(&result, &wide, sizeof result);
    return result;
}

inline uint16_t to_bfloat16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return static_cast<uint16_t>(value == value ? rounded : 0x7fc0);
}

inline void load(const void *base, Type type, int64_t offset, int64_t count, float *__restrict target) {
    if (type == FLOAT32) {
        std::memcpy(target, static_cast<const float *>(base) + offset, count * sizeof(float));
    } else {
        const uint16_t *__restrict source = static_cast<const uint16_t *>(base) + offset;
        for (int64_t i = 0; i < count; ++i) target[i] = from_bfloat16(source[i]);
    }
}

inline void store(void *base, Type type, int64_t offset, int64_t count, const float *__restrict source) {
    if (type == FLOAT32) {
        std::memcpy(static_cast<float *>(base) + offset, source, count * sizeof(float));
    } else {
        uint16_t *__restrict target = static_cast<uint16_t *>(base) + offset;
        for (int64_t i = 0; i < count; ++i) target[i] = to_bfloat16(source[i]);
    }
}

// Asks for numbers that will be read soon.
inline void prefetch(const void *base, Type type, int64_t offset, int64_t count) {
    const int64_t size = type == FLOAT32 ? 4 : 2;
    const char *first = static_cast<const char *>(base) + offset * size;
    for (int64_t i = 0; i < count * size; i += 64) __builtin_prefetch(first + i);
}

// `count` pairs.
inline void load_pairs(const void *base, Type type, int64_t offset, int64_t count, float *__restrict first,
                       float *__restrict second) {
    if (type == FLOAT32) {
        const float *__restrict source = static_cast<const float *>(base) + offset;
        for (int64_t i = 0; i < count; ++i) first[i] = source[2 * i], second[i] = source[2 * i + 1];
    } else {
        const uint16_t *__restrict source = static_cast<const uint16_t *>(base) + offset;
        for (int64_t i = 0; i < count; ++i) {
            first[i] = from_bfloat16(source[2 * i]);
            second[i] = from_bfloat16(source[2 * i + 1]);
        }
    }
}

inline void store_pairs(void *base, Type type, int64_t offset, int64_t count, const float *__restrict first,
                        const float *__restrict second) {
    if (type == FLOAT32) {
        float *__restrict target = static_cast<float *>(base) + offset;
        for (int64_t i = 0; i < count; ++i) target[2 * i] = first[i], target[2 * i + 1] = second[i];
    } else {
        uint16_t *__restrict target = static_cast<uint16_t *>(base) + offset;
        for (int64_t i = 0; i < count; ++i) {
            target[2 * i] = to_bfloat16(first[i]);
            target[2 * i + 1] = to_bfloat16(second[i]);
        }
    }
}

// e^x for x <= 0, NaN for NaN: 2^n times the Taylor series of the rest, |rest| <= ln(2) / 2, good to a float's last bit.
inline Vector exponential(Vector x) {
    x = x < -87.0f ? Vector{} - 87.0f : x;
    const float shifter = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, found in the low bits
    const Vector shifted = x * 1.44269504f + shifter;
    const Vector n = shifted - shifter;
    const Vector rest = (x - n * 0.693145752f) - n * 1.42860677e-6f;
    Vector sum = Vector{} + 1.0f / 5040;
    for (const float coefficient : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
        sum = sum * rest + coefficient;
    return sum * (Vector)(((Integers)shifted + 127) << 23);
}

// A map holds one head of one image: level after level, each with two rows of zeros above, one below, and a zero cell
// to the left of each row, which is also the one to the right of the row before. So corners outside of a level read
// zeros, and the first 2 x 2 cells of a level, all zero, are for samples that lie outside altogether.
struct Level {
    int64_t height, width, first_cell, cells, stride;

    int64_t padded_cells() const { return (height + 3) * stride + 1; }
};

inline Level make_level(const Problem &p, int64_t index) {
    Level level{};
    for (int64_t i = 0;; ++i) {
        level.height = p.spatial_shapes[2 * i];
        level.width = p.spatial_shapes[2 * i + 1];
        level.cells = level.height * level.width;
        level.stride = level.width + 1;
        if (i == index) return level;
        level.first_cell += level.cells;
    }
}

inline int64_t aligned(int64_t count) { return (count + WIDTH - 1) / WIDTH * WIDTH; }

inline int64_t padded_channels(const Problem &p) { return aligned(p.head_dim); }

inline int64_t map_size(const Problem &p) {
    int64_t cells = 0;
    for (int64_t i = 0; i < p.levels; ++i) cells += make_level(p, i).padded_cells();
    return cells * padded_channels(p);
}

inline int64_t largest_level(const Problem &p) {
    int64_t cells = 0;
    for (int64_t i = 0; i < p.levels; ++i) {
        const int64_t level = make_level(p, i).padded_cells();
        cells = level > cells ? level : cells;
    }
    return cells * padded_channels(p);
}

void pack(const Problem &p, int64_t batch, int64_t head, float *map) {
    const int64_t channels = padded_channels(p);
    for (int64_t i = 0; i < p.levels; ++i) {
        const Level level = make_level(p, i);
        std::memset(map, 0, 2 * level.stride * channels * sizeof(float));
        float *cell = map + 2 * level.stride * channels;
        for (int64_t n = 0; n < level.cells; ++n) {
            if (n % level.width == 0) {
                std::memset(cell, 0, channels * sizeof(float));
                cell += channels;
            }
            const int64_t offset = batch * p.value_strides[0] + (level.first_cell + n) * p.value_strides[1] +
                                   head * p.value_strides[2];
            load(p.value, p.value_type, offset, p.head_dim, cell);
            for (int64_t c = p.head_dim; c < channels; ++c) cell[c] = 0;
            cell += channels;
        }
        std::memset(cell, 0, (level.stride + 1) * channels * sizeof(float));
        map += level.padded_cells() * channels;
    }
}

// Locations and weights of the samples of some queries: arrays with a number for each sample.
struct Samples {
    int32_t *cell;  // first float of the upper left corner, from the start of the map
    float *x, *y;   // how far the sample is from there, in cells
    float *weight;
    float *corner[4];  // weight of the upper left, upper right, lower left and lower right corner

    Samples at(int64_t i) const {
        return {cell + i, x + i, y + i, weight + i, {corner[0] + i, corner[1] + i, corner[2] + i, corner[3] + i}};
    }
};

// The memory of a worker, besides the problem. Positions in a map are scale * position + shift, in cells.
struct Worker {
    const Problem &p;
    int64_t channels, count, size;  // samples of a query and head, and room for them
    float *x_scale, *y_scale, *x_shift, *y_shift, *width, *height;  // of each sample
    int32_t *stride, *first;
    float *x, *y, *scores;  // positions and scores of a query, or their gradients, in float32
    float *dots;            // dot products with the four corners of each sample
    float *rows;            // output or its gradient, for the queries of a block
    float *grad_map;        // of one level
    Samples samples;

    // The last level of a query is read in whole vectors too.
    static int64_t room(const Problem &p) { return aligned(p.levels * p.points) + WIDTH; }

    static int64_t memory(const Problem &p, bool backward) {
        return (15 + 8 * BLOCK) * room(p) + BLOCK * padded_channels(p) + (backward ? aligned(largest_level(p)) : 0);
    }

    Worker(const Problem &p, float *memory)
        : p(p), channels(padded_channels(p)), count(p.levels * p.points), size(room(p)) {
        auto take = [&](int64_t floats) {
            float *start = memory;
            memory += floats;
            return start;
        };
        x_scale = take(size), y_scale = take(size), x_shift = take(size), y_shift = take(size);
        width = take(size), height = take(size);
        stride = reinterpret_cast<int32_t *>(take(size)), first = reinterpret_cast<int32_t *>(take(size));
        x = take(size), y = take(size), scores = take(size), dots = take(4 * size);
        samples.cell = reinterpret_cast<int32_t *>(take(BLOCK * size));
        samples.x = take(BLOCK * size), samples.y = take(BLOCK * size), samples.weight = take(BLOCK * size);
        for (float *&corner : samples.corner) corner = take(BLOCK * size);
        rows = take(BLOCK * channels);
        grad_map = memory;

        // Samples of no level lie outside of it.
        std::memset(x_scale, 0, (rows - x_scale) * sizeof(float));
        int64_t start = 0;
        for (int64_t i = 0, s = 0; i < p.levels; ++i) {
            const Level level = make_level(p, i);
            for (int64_t j = 0; j < p.points; ++j, ++s) {
                width[s] = static_cast<float>(level.width), height[s] = static_cast<float>(level.height);
                stride[s] = static_cast<int32_t>(level.stride), first[s] = static_cast<int32_t>(start);
                x_scale[s] = p.reference_points ? 1.0f : width[s], x_shift[s] = -0.5f;
                y_scale[s] = p.reference_points ? 1.0f : height[s], y_shift[s] = -0.5f;
            }
            start += level.padded_cells() * channels;
        }
    }

    // Position of a query's data in `scores`; in `positions` it is twice that.
    int64_t query_offset(int64_t batch, int64_t query, int64_t head) const {
        return ((batch * p.queries + query) * p.heads + head) * count;
    }

    // Locates samples begin..end of a query: all of them, when `log_sum`, the logarithm of the sum of e^logit, is found
    // here, or, when it is `known`, those of one level, in a map of that level alone.
    void locate(int64_t batch, int64_t query, int64_t head, int64_t begin, int64_t end, bool known, float *log_sum,
                const Samples &out) {
        const int64_t offset = query_offset(batch, query, head) + begin, n = end - begin;
        if (query + AHEAD < p.queries) {
            const int64_t later = query_offset(batch, query + AHEAD, head) + begin;
            prefetch(p.positions, p.position_type, 2 * later, 2 * n);
            prefetch(p.scores, p.score_type, later, n);
        }
        load_pairs(p.positions, p.position_type, 2 * offset, n, x, y);
        load(p.scores, p.score_type, offset, n, p.reference_points ? scores : out.weight);
        if (p.reference_points) {
            if (known) {
                for (int64_t s = 0; s < n; s += LANES) vector(out.weight + s) = exponential(vector(scores + s) - *log_sum);
            } else {
                softmax(out.weight, log_sum);
            }
            const float *point = p.reference_points + batch * p.reference_strides[0] + query * p.reference_strides[1] +
                                 begin / p.points * p.reference_strides[2];
            for (int64_t s = begin; s < end; s += p.points, point += p.reference_strides[2]) {
                const float x = point[0] * width[s] - 0.5f, y = point[1] * height[s] - 0.5f;
                for (int64_t j = s; j < s + p.points; ++j) x_shift[j] = x, y_shift[j] = y;
            }
        }

        const int32_t origin = known ? first[begin] : 0, step = static_cast<int32_t>(channels);
        for (int64_t s = 0; s < n; s += LANES) {
            const int64_t i = begin + s;
            Vector across = vector(x + s) * vector(x_scale + i) + vector(x_shift + i);
            Vector along = vector(y + s) * vector(y_scale + i) + vector(y_shift + i);
            // False for NaN as well.
            const Integers inside = (across > -1.0f) & (across < vector(width + i)) & (along > -1.0f) &
                                    (along < vector(height + i));
            across = inside ? across : Vector{} - 1.0f;
            along = inside ? along : Vector{} - 2.0f;
            // Conversion cuts towards zero; a comparison that holds is -1.
            Integers left = __builtin_convertvector(across, Integers), top = __builtin_convertvector(along, Integers);
            left += across < __builtin_convertvector(left, Vector);
            top += along < __builtin_convertvector(top, Vector);
            across -= __builtin_convertvector(left, Vector);
            along -= __builtin_convertvector(top, Vector);
            integers(out.cell + s) = integers(first + i) - origin + ((top + 2) * integers(stride + i) + left + 1) * step;
            const Vector lower = vector(out.weight + s) * along, upper = vector(out.weight + s) - lower;
            vector(out.x + s) = across;
            vector(out.y + s) = along;
            vector(out.corner[1] + s) = upper * across;
            vector(out.corner[0] + s) = upper - upper * across;
            vector(out.corner[3] + s) = lower * across;
            vector(out.corner[2] + s) = lower - lower * across;
        }
    }

    // Softmax of `scores`.
    void softmax(float *weight, float *log_sum) {
        for (int64_t s = count; s % LANES; ++s) scores[s] = -__builtin_inff();
        Vector largest = vector(scores);
        for (int64_t s = LANES; s < count; s += LANES)
            largest = vector(scores + s) > largest ? vector(scores + s) : largest;
        float peak = largest[0];
        for (int i = 1; i < LANES; ++i) peak = largest[i] > peak ? largest[i] : peak;
        Vector sums{};
        for (int64_t s = 0; s < count; s += LANES) sums += vector(weight + s) = exponential(vector(scores + s) - peak);
        float sum = 0;
        for (int i = 0; i < LANES; ++i) sum += sums[i];
        for (int64_t s = 0; s < count; s += LANES) vector(weight + s) *= 1.0f / sum;
        if (log_sum) *log_sum = peak + __builtin_logf(sum);
    }
};

// The weighted sum of `points` samples of one level, added to V vectors of channels.
template <int V>
inline void gather(const float *map, int64_t right, int64_t down, const Samples &samples, int64_t points, float *row) {
    // Several sums hide the latency of the additions.
    constexpr int SUMS = V <= 2 ? 4 : V <= 4 ? 2 : 1;
    Vector sum[SUMS][V];
    for (int v = 0; v < V; ++v) {
        sum[0][v] = vector(row + v * LANES);
        for (int i = 1; i < SUMS; ++i) sum[i][v] = Vector{};
    }
    for (int64_t s = 0; s < points; ++s) {
        const float *cell = map + samples.cell[s];
        const float *corner[4] = {cell, cell + right, cell + down, cell + down + right};
        for (int i = 0; i < 4; ++i) {
            const float weight = samples.corner[i][s];
            for (int v = 0; v < V; ++v) sum[i % SUMS][v] += weight * vector(corner[i] + v * LANES);
        }
    }
    for (int v = 0; v < V; ++v) {
        for (int i = 1; i < SUMS; ++i) sum[0][v] += sum[i][v];
        vector(row + v * LANES) = sum[0][v];
    }
}

// Four sums over lanes at once.
inline void add_sums(Vector a, Vector b, Vector c, Vector d, float *target) {
#if LANES == 16
    const __m512 ab = _mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b);
    const __m512 cd = _mm512_unpacklo_ps(c, d) + _mm512_unpackhi_ps(c, d);
    const __m512 wide = _mm512_shuffle_ps(ab, cd, 0x44) + _mm512_shuffle_ps(ab, cd, 0xee);
    const __m256 half = _mm512_castps512_ps256(wide) + _mm512_extractf32x8_ps(wide, 1);
#elif LANES == 8
    const __m256 ab = _mm256_unpacklo_ps(a, b) + _mm256_unpackhi_ps(a, b);
    const __m256 cd = _mm256_unpacklo_ps(c, d) + _mm256_unpackhi_ps(c, d);
    const __m256 half = _mm256_shuffle_ps(ab, cd, 0x44) + _mm256_shuffle_ps(ab, cd, 0xee);
#endif
#if LANES >= 8
    const __m128 sums = _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1);
    _mm_storeu_ps(target, _mm_loadu_ps(target) + sums);
#else
    const Vector vectors[4] = {a, b, c, d};
    for (int i = 0; i < 4; ++i) target[i] += (vectors[i][0] + vectors[i][1]) + (vectors[i][2] + vectors[i][3]);
#endif
}

// Adds the dot products of `row` with the four corners of each sample to `dots`.
template <int V>
inline void dot(const float *map, int64_t right, int64_t down, const Samples &samples, int64_t points, const float *row,
                float *dots) {
    Vector gradient[V];
    for (int v = 0; v < V; ++v) gradient[v] = vector(row + v * LANES);
    for (int64_t s = 0; s < points; ++s) {
        const float *cell = map + samples.cell[s];
        const float *corner[4] = {cell, cell + right, cell + down, cell + down + right};
        Vector sum[4];
        for (int i = 0; i < 4; ++i) {
            sum[i] = gradient[0] * vector(corner[i]);
            for (int v = 1; v < V; ++v) sum[i] += gradient[v] * vector(corner[i] + v * LANES);
        }
        add_sums(sum[0], sum[1], sum[2], sum[3], dots + 4 * s);
    }
}

// Adds the weighted `row` to the four corners of each sample.
template <int V>
inline void scatter(float *map, int64_t right, int64_t down, const Samples &samples, int64_t points, const float *row) {
    Vector gradient[V];
    for (int v = 0; v < V; ++v) gradient[v] = vector(row + v * LANES);
    for (int64_t s = 0; s < points; ++s) {
        float *cell = map + samples.cell[s];
        float *corner[4] = {cell, cell + right, cell + down, cell + down + right};
        for (int i = 0; i < 4; ++i) {
            const float weight = samples.corner[i][s];
            for (int v = 0; v < V; ++v) vector(corner[i] + v * LANES) += weight * gradient[v];
        }
    }
}

// Calls `body` with a block of channels, as few times as the registers allow, and the number of vectors in it.
template <typename Body>
inline void for_channels(int64_t channels, Body body) {
    for (int64_t c = 0; c < channels;) {
        if (LANES >= 16 && channels - c >= 64) {
            body(c, std::integral_constant<int, 64 / LANES>());
            c += 64;
        } else if (LANES >= 8 && channels - c >= 32) {
            body(c, std::integral_constant<int, 32 / LANES>());
            c += 32;
        } else {
            body(c, std::integral_constant<int, 16 / LANES>());
            c += 16;
        }
    }
}

inline int64_t take_task(const Problem &p) { return __atomic_fetch_add(p.counters, 1, __ATOMIC_RELAXED); }

inline void finish(int64_t *counter) { __atomic_fetch_add(counter, 1, __ATOMIC_RELEASE); }

// Whoever counts up took its task earlier and is at work.
inline void wait_for(const int64_t *counter, int64_t count) {
    while (__atomic_load_n(counter, __ATOMIC_ACQUIRE) < count) sched_yield();
}

void attend(Worker &worker, int64_t batch, int64_t head, int64_t begin, int64_t end, const float *map) {
    const Problem &p = worker.p;
    const int64_t channels = worker.channels, count = worker.count;
    for (int64_t first = begin; first < end; first += BLOCK) {
        const int64_t queries = end - first < BLOCK ? end - first : BLOCK;
        for (int64_t i = 0; i < queries; ++i)
            worker.locate(batch, first + i, head, 0, count, false, nullptr, worker.samples.at(i * worker.size));
        std::memset(worker.rows, 0, queries * channels * sizeof(float));
        for (int64_t s = 0; s < count;) {
            const int64_t left = p.points - s % p.points, group = left < GROUP ? left : GROUP;
            const int64_t down = worker.stride[s] * channels;
            for (int64_t i = 0; i < queries; ++i)
                for_channels(channels, [&](int64_t c, auto vectors) {
                    gather<vectors>(map + c, channels, down, worker.samples.at(i * worker.size + s), group,
                                    worker.rows + i * channels + c);
                });
            s += group;
        }
        for (int64_t i = 0; i < queries; ++i)
            store(p.output, p.value_type, ((batch * p.queries + first + i) * p.heads + head) * p.head_dim, p.head_dim,
                  worker.rows + i * channels);
    }
}

// A row of the output's gradient, padded with zeros.
void load_gradient(const Problem &p, int64_t batch, int64_t query, int64_t head, int64_t channels, float *row) {
    const int64_t offset = ((batch * p.queries + query) * p.heads + head) * p.head_dim;
    if (query + AHEAD < p.queries)
        prefetch(p.grad_output, p.value_type, offset + AHEAD * p.heads * p.head_dim, p.head_dim);
    load(p.grad_output, p.value_type, offset, p.head_dim, row);
    for (int64_t c = p.head_dim; c < channels; ++c) row[c] = 0;
}

void sample_gradients(Worker &worker, int64_t batch, int64_t head, int64_t begin, int64_t end, const float *map,
                      float *log_sums) {
    const Problem &p = worker.p;
    const int64_t channels = worker.channels, count = worker.count;
    for (int64_t query = begin; query < end; ++query) {
        const Samples &samples = worker.samples;
        worker.locate(batch, query, head, 0, count, false, log_sums + query, samples);
        load_gradient(p, batch, query, head, channels, worker.rows);
        std::memset(worker.dots, 0, 4 * count * sizeof(float));
        for (int64_t s = 0; s < count; s += p.points)
            for_channels(channels, [&](int64_t c, auto vectors) {
                dot<vectors>(map + c, channels, worker.stride[s] * channels, samples.at(s), p.points, worker.rows + c,
                             worker.dots + 4 * s);
            });

        // The dot products, sorted by corner, go where the weights of the corners were.
        for (int64_t s = 0; s < count; ++s)
            for (int i = 0; i < 4; ++i) samples.corner[i][s] = worker.dots[4 * s + i];
        Vector means{};
        for (int64_t s = 0; s < count; s += LANES) {
            const Vector x = vector(samples.x + s), y = vector(samples.y + s), weight = vector(samples.weight + s);
            const Vector upper = vector(samples.corner[1] + s) - vector(samples.corner[0] + s);
            const Vector lower = vector(samples.corner[3] + s) - vector(samples.corner[2] + s);
            const Vector top = vector(samples.corner[0] + s) + x * upper;
            const Vector bottom = vector(samples.corner[2] + s) + x * lower;
            vector(worker.x + s) = weight * vector(worker.x_scale + s) * (upper + y * (lower - upper));
            vector(worker.y + s) = weight * vector(worker.y_scale + s) * (bottom - top);
            const Vector score = top + y * (bottom - top);
            vector(worker.scores + s) = score;
            means += weight * score;
        }
        if (p.reference_points) {
            float mean = 0;
            for (int i = 0; i < LANES; ++i) mean += means[i];
            for (int64_t s = 0; s < count; s += LANES)
                vector(worker.scores + s) = vector(samples.weight + s) * (vector(worker.scores + s) - mean);
        }
        const int64_t offset = worker.query_offset(batch, query, head);
        store_pairs(p.grad_positions, p.position_type, 2 * offset, count, worker.x, worker.y);
        store(p.grad_scores, p.score_type, offset, count, worker.scores);
    }
}

void value_gradient(Worker &worker, int64_t batch, int64_t head, int64_t index, float *log_sums) {
    const Problem &p = worker.p;
    const Level level = make_level(p, index);
    const int64_t channels = worker.channels, s = index * p.points;
    float *map = worker.grad_map;
    std::memset(map, 0, level.padded_cells() * channels * sizeof(float));
    for (int64_t query = 0; query < p.queries; ++query) {
        worker.locate(batch, query, head, s, s + p.points, true, log_sums + query, worker.samples);
        load_gradient(p, batch, query, head, channels, worker.rows);
        for_channels(channels, [&](int64_t c, auto vectors) {
            scatter<vectors>(map + c, channels, level.stride * channels, worker.samples, p.points, worker.rows + c);
        });
    }
    const int64_t cells = p.levels ? make_level(p, p.levels - 1).first_cell + make_level(p, p.levels - 1).cells : 0;
    for (int64_t n = 0; n < level.cells; ++n) {
        const int64_t cell = (n / level.width + 2) * level.stride + n % level.width + 1;
        store(p.grad_value, p.value_type, ((batch * cells + level.first_cell + n) * p.heads + head) * p.head_dim,
              p.head_dim, map + cell * channels);
    }
}

}  // namespace

// Changes whenever Problem does.
EXPORT int64_t unept_abi_version() { return 1; }

EXPORT int64_t unept_vector_lanes() { return LANES; }

// Floats of workspace that a problem needs for p->workers workers.
EXPORT int64_t unept_workspace_size(const Problem *p, int32_t backward) {
    const int64_t maps = p->batch * p->heads;
    return maps * aligned(map_size(*p)) + (backward ? aligned(maps * p->queries) : 0) +
           p->workers * Worker::memory(*p, backward != 0);
}

// Tasks in which the maps are packed, and then tasks with a chunk of the queries of a map.
struct Task {
    int64_t map, batch, head, begin, end;
};

inline Task make_task(const Problem &p, int64_t index, int64_t chunks) {
    const int64_t head = index % p.heads, chunk = index / p.heads % chunks, batch = index / p.heads / chunks;
    const int64_t begin = chunk * CHUNK, end = begin + CHUNK;
    return {batch * p.heads + head, batch, head, begin, end < p.queries ? end : p.queries};
}

EXPORT void unept_forward(const Problem *problem, int32_t index) {
    const Problem &p = *problem;
    const int64_t maps = p.batch * p.heads, size = aligned(map_size(p)), chunks = (p.queries + CHUNK - 1) / CHUNK;
    Worker worker(p, p.workspace + maps * size + index * Worker::memory(p, false));
    int64_t *packed = p.counters + 1;
    for (int64_t i; (i = take_task(p)) < maps * (1 + chunks);) {
        if (i < maps) {
            pack(p, i / p.heads, i % p.heads, p.workspace + i * size);
            finish(packed + i);
        } else {
            const Task task = make_task(p, i - maps, chunks);
            wait_for(packed + task.map, 1);
            attend(worker, task.batch, task.head, task.begin, task.end, p.workspace + task.map * size);
        }
    }
}

EXPORT void unept_backward(const Problem *problem, int32_t index) {
    const Problem &p = *problem;
    const int64_t maps = p.batch * p.heads, size = aligned(map_size(p)), chunks = (p.queries + CHUNK - 1) / CHUNK;
    float *log_sums = p.workspace + maps * size;
    Worker worker(p, log_sums + aligned(maps * p.queries) + index * Worker::memory(p, true));
    int64_t *packed = p.counters + 1, *sampled = packed + maps;
    for (int64_t i; (i = take_task(p)) < maps * (1 + chunks + p.levels);) {
        if (i < maps) {
            pack(p, i / p.heads, i % p.heads, p.workspace + i * size);
            finish(packed + i);
        } else if (i < maps * (1 + chunks)) {
            const Task task = make_task(p, i - maps, chunks);
            wait_for(packed + task.map, 1);
            sample_gradients(worker, task.batch, task.head, task.begin, task.end, p.workspace + task.map * size,
                             log_sums + task.map * p.queries);
            finish(sampled + task.map);
        } else {
            const int64_t map = (i - maps * (1 + chunks)) / p.levels, level = (i - maps * (1 + chunks)) % p.levels;
            wait_for(sampled + map, chunks);
            value_gradient(worker, map / p.heads, map % p.heads, level, log_sums + map * p.queries);
        }
    }
}
