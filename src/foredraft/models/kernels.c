// One decoder layer for few rows on a CPU, in float32 or (-DBF16) bfloat16; compiled at first use by kernels.py.
//
// With few rows a layer costs what its weights cost to read, so every weight is read once, by all threads, and is used for
// all rows while it is near. A row's result has the same bits whatever else is in the batch or the tree: each sum runs
// over the same numbers in the same order. That is what makes drafted decoding equal plain decoding token for token.
// A draft's matrices may be kept in eight bits, a scale for each row: a half or a quarter of the bytes; a sum is scaled once it is made.
//
// Letters: R rows (sequences × tokens), B sequences, T tokens of each, N query heads, K key heads, D head size, S slots read.
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(BF16) && defined(__AMX_BF16__) && defined(__linux__)
#define TILED 1
#include <sys/syscall.h>
#include <unistd.h>
#else
#define TILED 0
#endif
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#define AHEAD 16384 // bytes before its use that memory is asked for, at least, into the second-level cache: the first has too few requests open
#define LINE 64 // bytes that memory gives at once
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef uint32_t uvec __attribute__((vector_size(4 * LANES)));
typedef uint16_t hvec __attribute__((vector_size(2 * LANES)));
typedef int8_t bvec __attribute__((vector_size(LANES)));

// a + x·y, rounded once where the CPU can. Said outright: left to the compiler (-ffp-contract), whether a product is fused would
// depend on the loop around it, and a row's bits on how many rows are beside it.
#if defined(__AVX512F__) || defined(__FMA__)
#include <immintrin.h>
#endif
#if defined(__AVX512F__)
INLINE vec fused(vec a, vec x, vec y) { return (vec)_mm512_fmadd_ps((__m512)x, (__m512)y, (__m512)a); }
#elif defined(__FMA__)
INLINE vec fused(vec a, vec x, vec y) { return (vec)_mm256_fmadd_ps((__m256)x, (__m256)y, (__m256)a); }
#else
INLINE vec fused(vec a, vec x, vec y) { return a + x * y; }
#endif

INLINE vec splat(float x) { return x - (vec){0}; }
INLINE vec loadf(const float *p) { vec v; memcpy(&v, p, sizeof v); return v; }
INLINE void storef(float *p, vec v) { memcpy(p, &v, sizeof v); }
#if defined(__AVX512F__) // spelt out: the compiler converts from bytes one by one
INLINE vec load8(const int8_t *p) { return (vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p))); }
#elif defined(__AVX2__)
INLINE vec load8(const int8_t *p) { return (vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p))); }
#else
INLINE vec load8(const int8_t *p) { bvec b; memcpy(&b, p, sizeof b); return __builtin_convertvector(__builtin_convertvector(b, ivec), vec); }
#endif

#ifdef BF16
typedef uint16_t num;
INLINE float up(num x) { uint32_t u = (uint32_t)x << 16; float f; memcpy(&f, &u, 4); return f; }
INLINE num down(float f) { // to nearest, ties to even; a NaN stays one
    uint32_t u; memcpy(&u, &f, 4);
    return f != f ? 0x7fc0 : (num)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
#if defined(__AVX512F__) // spelt out: the compiler widens and narrows a quarter at a time
INLINE uvec widen(hvec h) { return (uvec)_mm512_cvtepu16_epi32((__m256i)h); }
INLINE hvec narrow(uvec u) { return (hvec)_mm512_cvtepi32_epi16((__m512i)u); }
#else
INLINE uvec widen(hvec h) { return __builtin_convertvector(h, uvec); }
INLINE hvec narrow(uvec u) { return __builtin_convertvector(u, hvec); }
#endif
INLINE vec load(const num *p) { hvec h; memcpy(&h, p, sizeof h); return (vec)(widen(h) << 16); }
INLINE const float *floats(const num *p, float *room, long size) { // as float32, in `room` where they are not yet
    for (long i = 0; i < size; i += LANES) storef(room + i, load(p + i));
    return room;
}
#define WIDER 1
INLINE void store(num *p, vec v) {
    uvec u = (uvec)v, rounded = (u + 0x7fff + (u >> 16 & 1)) >> 16, nan = (uvec)(v != v);
    hvec h = narrow((rounded & ~nan) | (0x7fc0 & nan));
    memcpy(p, &h, sizeof h);
}
#else
typedef float num;
INLINE float up(num x) { return x; }
INLINE num down(float f) { return f; }
INLINE vec load(const num *p) { return loadf(p); }
#define WIDER 0
INLINE void store(num *p, vec v) { storef(p, v); }
INLINE const float *floats(const num *p, float *room, long size) { return p; }
#endif

// Room that a thread keeps from pass to pass: 0 for what it multiplies by itself, 1 for what all threads read, 2 for what a draft's passes leave, 3 for its tree.
static float *kept_room(int which, long size) {
    static _Thread_local float *kept[4];
    static _Thread_local long have[4];
    if (have[which] < size) free(kept[which]), kept[which] = aligned_alloc(64, ((have[which] = size) * sizeof(float) + 63) / 64 * 64);
    return kept[which];
}

// What the inner product multiplies at a time: a vector; of bfloat16 two (of each pair of numbers the first in one, the second in the other),
// or pairs where the CPU multiplies these itself. `given`: a row as it is multiplied, widened once and not for every weight; behind `widened` rows
// there is room for `more`.
#if defined(BF16) && defined(__AVX512BF16__)
#define STEP 32
#define WIDENS 0
typedef num given;
typedef __m512i word;
INLINE word fetch(const num *p) { return _mm512_loadu_si512(p); }
INLINE word fetch8(const int8_t *p) { return (word)_mm512_cvtne2ps_pbh((__m512)load8(p + LANES), (__m512)load8(p)); } // no number is rounded
INLINE word take(const given *x) { return fetch(x); }
INLINE void put(given *x, word w) { _mm512_storeu_si512(x, w); }
INLINE vec mac(vec a, word x, word w) { return (vec)_mm512_dpbf16_ps((__m512)a, (__m512bh)x, (__m512bh)w); }
INLINE given *widened(const num *x, long size, long more, int eight) { return (given *)x; }
#elif defined(BF16)
#define STEP (2 * LANES)
#define WIDENS 1
typedef float given;
typedef struct { vec first, second; } word;
INLINE word fetch(const num *p) {
    uvec pairs;
    memcpy(&pairs, p, sizeof pairs);
    return (word){(vec)(pairs << 16), (vec)(pairs & 0xffff0000)};
}
INLINE word fetch8(const int8_t *p) { return (word){load8(p), load8(p + LANES)}; }
INLINE word take(const given *x) { return (word){loadf(x), loadf(x + LANES)}; }
INLINE void put(given *x, word w) { storef(x, w.first), storef(x + LANES, w.second); }
INLINE vec mac(vec a, word x, word w) { return fused(fused(a, x.first, w.first), x.second, w.second); }
INLINE given *widened(const num *x, long size, long more, int eight) { // beside numbers of eight bits, which come as they stand, no pairs
    float *wide = kept_room(0, size + more);
    if (eight) floats(x, wide, size);
    else for (long i = 0; i < size; i += STEP) put(wide + i, fetch(x + i));
    return wide;
}
#else
#define STEP LANES
#define WIDENS 0
typedef float given;
typedef vec word;
INLINE word fetch(const num *p) { return load(p); }
INLINE word fetch8(const int8_t *p) { return load8(p); }
INLINE word take(const given *x) { return loadf(x); }
INLINE void put(given *x, word w) { storef(x, w); }
INLINE vec mac(vec a, word x, word w) { return fused(a, x, w); }
INLINE given *widened(const num *x, long size, long more, int eight) { return (given *)x; }
#endif

// Sums of LANES vectors, each by halves (lane i and i + LANES/2, then quarters, …): lane j of the result is the sum of a[j].
// The lanes are spelt out: where the compiler is left to build them, it does so for every sum.
#define FROM(half, i) ((i) / (half) % 2 * LANES + (i) / (half) / 2 * 2 * (half) + (i) % (half)) // blocks of `half` lanes, alternating between two vectors
#define FOUR(half, i) FROM(half, i), FROM(half, i + 1), FROM(half, i + 2), FROM(half, i + 3)
#if LANES == 16
#define LOW(half) (ivec){FOUR(half, 0), FOUR(half, 4), FOUR(half, 8), FOUR(half, 12)}
#elif LANES == 8
#define LOW(half) (ivec){FOUR(half, 0), FOUR(half, 4)}
#else
#define LOW(half) (ivec){FOUR(half, 0)}
#endif
#define PAIR(half, j) a[j] = __builtin_shuffle(a[j], a[j + half], LOW(half)) + __builtin_shuffle(a[j], a[j + half], LOW(half) + half);
INLINE vec sums(vec *a) {
#if LANES == 16
    PAIR(8, 0) PAIR(8, 1) PAIR(8, 2) PAIR(8, 3) PAIR(8, 4) PAIR(8, 5) PAIR(8, 6) PAIR(8, 7)
#endif
#if LANES >= 8
    PAIR(4, 0) PAIR(4, 1) PAIR(4, 2) PAIR(4, 3)
#endif
    PAIR(2, 0) PAIR(2, 1)
    PAIR(1, 0)
    return a[0];
}

// y[r][o] = x[r]·w[o] + bias[o] for `rows` rows and `outs` outputs from o, rows × outs ≤ LANES; `in` is a multiple of STEP. `eight`: w is of eight
// bits, times scale[o]. Each number of w and x that is in a register is used as often as possible, in sums that need not wait for each other. The
// `first` rows read w; where it is `kept` they leave it, as it is multiplied, in `keep`, where the other rows take it. Memory is asked for ahead of its
// use while a line of each output is multiplied: where `asked` is 4 as many lines as outputs, in the order of memory; where it is 2, `stride`
// bytes from `ahead` on.
#define FETCH(j) (eight ? fetch8((const int8_t *)from[j] + s) : fetch((const num *)from[j] + s))
INLINE void tile(const int rows, const int outs, const int first, const int kept, const int asked, const int eight, const given *x, const void *w, const char *ahead, const long stride, const float *scale, given *keep, const num *bias, num *y, long o, long in, long out) {
    const long size = eight ? 1 : sizeof(num), line = LINE / size;
    const int wide = out - o < outs ? out - o : outs;
    const char *from[4];
    for (int j = 0; j < outs; j++) from[j] = (const char *)w + (j < wide ? o + j : o) * in * size;
    vec a[LANES] = {0};
    for (long i = 0; i < in; i += line) {
        if (asked == 4)
#pragma GCC unroll 4
            for (int j = 0; j < outs; j++) __builtin_prefetch(from[0] + AHEAD + outs * i * size + LINE * j, 0, 2);
        if (asked == 2) __builtin_prefetch(ahead, 0, 2), __builtin_prefetch(ahead + stride / 2, 0, 2), ahead += stride;
#pragma GCC unroll 4
        for (long s = i; s < i + line; s += STEP) {
            if (s >= in) break;
            if (outs >= rows) {
#pragma GCC unroll 4
                for (int j = 0; j < outs; j++) {
                    word with = kept && !first ? take(keep + j * in + s) : FETCH(j);
                    if (first && kept) put(keep + j * in + s, with);
#pragma GCC unroll 4
                    for (int r = 0; r < rows; r++) a[outs * r + j] = mac(a[outs * r + j], take(x + r * in + s), with);
                }
            } else {
                word with[4];
#pragma GCC unroll 4
                for (int j = 0; j < outs; j++) {
                    with[j] = kept && !first ? take(keep + j * in + s) : FETCH(j);
                    if (first && kept) put(keep + j * in + s, with[j]);
                }
#pragma GCC unroll 4
                for (int r = 0; r < rows; r++) {
                    word by = take(x + r * in + s);
#pragma GCC unroll 4
                    for (int j = 0; j < outs; j++) a[outs * r + j] = mac(a[outs * r + j], by, with[j]);
                }
            }
        }
    }
    vec total = sums(a);
    float more[LANES] = {0};
    if (eight) {
        for (int l = 0; l < outs * rows; l++) more[l] = scale[o + (l % outs < wide ? l % outs : 0)];
        total *= loadf(more);
    }
    if (bias) {
        for (int l = 0; l < outs * rows; l++) more[l] = up(bias[o + (l % outs < wide ? l % outs : 0)]);
        total += loadf(more);
    }
    num ready[LANES];
    store(ready, total);
    for (int r = 0; r < rows; r++) memcpy(y + r * out + o, ready + outs * r, wide * sizeof(num));
}

// Each thread of the region takes one stretch of the outputs, and so of the memory. `several`: of more than four rows; where they are `sharing`, the
// first four fours each ask for a part of what lies ahead, so that memory has work while all of them multiply, and not the first four alone.
INLINE void multiply_as(const int eight, const int several, const int sharing, const num *x, const void *w, const float *scale, const num *bias, num *y, long rows, long in, long out) {
    const int kept = WIDENS && several;
    const long size = eight ? 1 : sizeof(num), fours = (rows + 3) / 4, parts = fours < 4 ? fours : 4, chunk = 4 * in * size;
    given *wide = widened(x, rows * in, kept ? 4 * in : 0, eight);
#pragma omp for schedule(static) nowait
    for (long c = 0; c < (out + 3) / 4; c++)
        for (long r = 0; r < rows; r += 4) {
            const long part = sharing && r / 4 < parts ? LINE / parts : 0; // bytes for each line of an output
            const char *ahead = (const char *)w + c * chunk + (chunk > AHEAD ? chunk : AHEAD) + r / 4 * (chunk / LINE * part);
#define TILE(R, O, FIRST, ASKED) tile(R, O, FIRST, kept, ASKED, eight, wide + r * in, w, ahead + o % 4 * in * size / LINE * part, O * part, scale, wide + (rows + o % 4) * in, bias, y + r * out, o, in, out)
#define TILES(R, O) for (long o = 4 * c; o < 4 * c + 4 && o < out; o += O) { \
                if (!several) TILE(R, O, 1, 4); \
                else if (!r) TILE(R, O, 1, sharing ? 2 : 4); \
                else TILE(R, O, 0, sharing ? 2 : 0); }
            switch (rows - r) {
            case 1: TILES(1, 4) break;
            case 2: TILES(2, LANES < 8 ? 2 : 4) break;
            case 3: TILES(3, LANES < 16 ? LANES / 4 : 4) break;
            default: TILES(4, LANES / 4)
            }
        }
}

#define SWAP(half, i) ((i) & (half) ? LANES + (i) - (half) : (i)) // of two vectors the blocks of `half` lanes that trade places, and the others
#define STAY(half, i) ((i) & (half) ? LANES + (i) : (i) + (half))
#define FOUR_OF(which, half, i) which(half, i), which(half, i + 1), which(half, i + 2), which(half, i + 3)
#if LANES == 16
#define ALL_OF(which, half) (ivec){FOUR_OF(which, half, 0), FOUR_OF(which, half, 4), FOUR_OF(which, half, 8), FOUR_OF(which, half, 12)}
#elif LANES == 8
#define ALL_OF(which, half) (ivec){FOUR_OF(which, half, 0), FOUR_OF(which, half, 4)}
#else
#define ALL_OF(which, half) (ivec){FOUR_OF(which, half, 0)}
#endif
#define TRADE(half) for (int j = 0; j < LANES; j++) if (!(j & half)) { \
        vec low = __builtin_shuffle(a[j], a[j + half], ALL_OF(SWAP, half)); \
        a[j + half] = __builtin_shuffle(a[j], a[j + half], ALL_OF(STAY, half)), a[j] = low; }

// Lane j of vector i becomes lane i of vector j.
INLINE void turn(vec *a) {
#if LANES == 16
#pragma GCC unroll 16
    TRADE(8)
#endif
#if LANES >= 8
#pragma GCC unroll 16
    TRADE(4)
#endif
#pragma GCC unroll 16
    TRADE(2)
#pragma GCC unroll 16
    TRADE(1)
}

static int tiles; // whether the processor's tiles may be used, which the system is asked once
#if TILED
// Columns of a tile: rows of x, 1, 2, 4, 8 or 16; others are read more slowly.
static void shape_tiles(long columns) {
    struct { uint8_t palette, start, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } __attribute__((aligned(64))) config = {.palette = 1};
    for (int t = 0; t < 8; t++) config.rows[t] = 16, config.bytes[t] = t == 4 || t == 5 ? LINE : 4 * columns;
    _tile_loadconfig(&config);
}

// n vectors laid into each other, and taken apart: number k of vector r is number n·k + r of all.
#define ALTERNATE(i) i, i + 16, i + 1, i + 17, i + 2, i + 18, i + 3, i + 19, i + 4, i + 20, i + 5, i + 21, i + 6, i + 22, i + 7, i + 23
#define EVERY_OTHER(i) i, i + 2, i + 4, i + 6, i + 8, i + 10, i + 12, i + 14, i + 16, i + 18, i + 20, i + 22, i + 24, i + 26, i + 28, i + 30
INLINE void interleave(vec *a, const int n) {
    for (int level = 1; level < n; level *= 2) {
        vec b[LANES];
#pragma GCC unroll 8
        for (int i = 0; i < n / 2; i++) b[2 * i] = __builtin_shuffle(a[i], a[i + n / 2], (ivec){ALTERNATE(0)}), b[2 * i + 1] = __builtin_shuffle(a[i], a[i + n / 2], (ivec){ALTERNATE(8)});
        memcpy(a, b, n * sizeof(vec));
    }
}
INLINE void part(vec *a, const int n) {
    for (int level = 1; level < n; level *= 2) {
        vec b[LANES];
#pragma GCC unroll 8
        for (int i = 0; i < n / 2; i++) b[i] = __builtin_shuffle(a[2 * i], a[2 * i + 1], (ivec){EVERY_OTHER(0)}), b[i + n / 2] = __builtin_shuffle(a[2 * i], a[2 * i + 1], (ivec){EVERY_OTHER(1)});
        memcpy(a, b, n * sizeof(vec));
    }
}

// x as tiles read it, block by block of n rows: the first pair of numbers of each row, then the second; zeros where there is no row.
INLINE void pair_up(const int n, const num *x, float *pairs, long rows, long in) {
    for (long b = 0; b < rows; b += n)
        for (long k = 0; k < in / 2; k += LANES, pairs += n * LANES) {
            vec a[LANES];
#pragma GCC unroll 16
            for (int i = 0; i < n; i++) a[i] = b + i < rows ? loadf((const float *)(x + (b + i) * in) + k) : splat(0);
            interleave(a, n);
#pragma GCC unroll 16
            for (int i = 0; i < n; i++) storef(pairs + LANES * i, a[i]);
        }
}

// x as tiles of so many columns read it: one row as it is.
static const num *paired(const num *x, long rows, long columns, long in) {
    if (columns == 1) return x;
    float *pairs = kept_room(0, (rows + columns) * in / 2);
    switch (columns) {
    case 2: pair_up(2, x, pairs, rows, in); break;
    case 4: pair_up(4, x, pairs, rows, in); break;
    case 8: pair_up(8, x, pairs, rows, in); break;
    default: pair_up(16, x, pairs, rows, in);
    }
    return (const num *)pairs;
}

// What tiles have summed and is not yet written: of 16 outputs from `to` and of the rows from r, two sums for each block of these.
typedef struct {
    float sum[4][256];
    long to, r;
} Sums;

static void write_sums(const Sums *of, const float *scale, const num *bias, num *y, long rows, long columns, long out) {
    for (int t = 0; t < 2; t++) {
        const long to = of->to, o = to < out - 16 ? to : out - 16, skipped = to - o, r = of->r + t * 16, end = rows < r + 16 ? rows : r + 16;
        if (r >= rows) break;
        vec a[LANES], by = scale ? loadf(scale + o) : splat(1), more = bias ? load(bias + o) : splat(0);
        for (int i = 0; i < columns; i++) a[i] = loadf(of->sum[2 * t] + LANES * i) + loadf(of->sum[2 * t + 1] + LANES * i);
        switch (columns) {
        case 1: break;
        case 2: part(a, 2); break;
        case 4: part(a, 4); break;
        case 8: part(a, 8); break;
        default: part(a, 16);
        }
        for (long i = r; i < end; i++) {
            num ready[LANES];
            store(ready, a[i - r] * by + more);
            memcpy(y + i * out + to, ready + skipped, (16 - skipped) * sizeof(num));
        }
    }
}

// As `multiply_as`, by the processor's tiles: as many rows as a tile has columns take no longer than one. Tiles of w, as it lies, are multiplied by
// those of `pairs`, for 16 outputs and one or two blocks of rows at a time; what lies in two neighbouring lines of memory at once, into two sums.
// These are written in the middle of the next ones: at once, that would wait for memory, and the processor look no further than to it.
INLINE void multiply_tiles(const int eight, const num *x, const void *w, const float *scale, const num *bias, num *y, long rows, long in, long out) {
    const long size = eight ? 1 : sizeof(num), columns = rows > 8 ? 16 : rows > 4 ? 8 : rows > 2 ? 4 : rows, stride = 4 * columns;
    const num *pairs = paired(x, rows, columns, in);
    num wide[2][16 * 32] __attribute__((aligned(64)));
    Sums all[2], *now = all, *ready = NULL;
    shape_tiles(columns);
#pragma omp for schedule(static) nowait
    for (long c = 0; c < (out + 15) / 16; c++) {
        const char *from = (const char *)w + (16 * c < out - 16 ? 16 * c : out - 16) * in * size;
        for (long r = 0; r < rows; r += 32) {
            const int two = rows - r > 16;
            _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
            for (long k = 0; k < in; k += 64) {
                const num *by = pairs + r * in + k * columns;
                const int last = in - k < 64;
                for (int j = 0; !r && j < 16 * size; j++) __builtin_prefetch(from + 2 * AHEAD + 16 * k * size + LINE * j, 0, 2);
                if (ready && k == in / 128 * 64) write_sums(ready, scale, bias, y, rows, columns, out);
                if (eight) {
                    for (int half = 0; half < 2 - last; half++)
                        for (int j = 0; j < 16; j++) put(wide[half] + 32 * j, fetch8((const int8_t *)from + j * in + k + 32 * half));
                    _tile_loadd(4, wide[0], LINE); _tile_loadd(5, wide[1], LINE);
                } else {
                    _tile_loadd(4, from + k * size, in * size);
                    if (!last) { _tile_loadd(5, from + (k + 32) * size, in * size); }
                }
                _tile_loadd(6, by, stride);
                _tile_dpbf16ps(0, 4, 6);
                if (two) {
                    _tile_loadd(7, by + columns * in, stride);
                    _tile_dpbf16ps(2, 4, 7);
                }
                if (last) break;
                _tile_loadd(6, by + 32 * columns, stride);
                _tile_dpbf16ps(1, 5, 6);
                if (two) {
                    _tile_loadd(7, by + columns * (in + 32), stride);
                    _tile_dpbf16ps(3, 5, 7);
                }
            }
            _tile_stored(0, now->sum[0], stride); _tile_stored(1, now->sum[1], stride);
            if (two) {
                _tile_stored(2, now->sum[2], stride); _tile_stored(3, now->sum[3], stride);
            }
            now->to = 16 * c, now->r = r, ready = now, now = all + (now == all);
        }
    }
    if (ready) write_sums(ready, scale, bias, y, rows, columns, out);
    _tile_release();
}
#endif

// Whether products are by the processor's tiles, of one row too, though that reads memory a sixth more slowly than `multiply_four`: bits are one row's.
int tiled(void) {
#if TILED
    tiles = !syscall(SYS_arch_prctl, 0x1023, 18); // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
#endif
    return tiles;
}

// Of up to four rows, and of rows that share: functions of their own, so that each has all registers to itself.
#define MULTIPLY(name, ...) static __attribute__((noinline)) void name(const num *x, const void *w, const float *scale, const num *bias, num *y, long rows, long in, long out) { \
        multiply_as(__VA_ARGS__, x, w, scale, bias, y, rows, in, out); }
MULTIPLY(multiply_four, 0, 0, 0)
MULTIPLY(multiply_four8, 1, 0, 0)
MULTIPLY(multiply_sharing, 0, 1, 1)
MULTIPLY(multiply_sharing8, 1, 1, 1)

// `scale` is NULL where w is no matrix of eight bits. Rows beyond 24 that are widened multiply for longer than memory takes anyway.
static void multiply(const num *x, const void *w, const float *scale, const num *bias, num *y, long rows, long in, long out) {
#if TILED
    if (tiles && out >= 16) {
        if (scale) multiply_tiles(1, x, w, scale, bias, y, rows, in, out);
        else multiply_tiles(0, x, w, NULL, bias, y, rows, in, out);
        return;
    }
#endif
    if (rows <= 4) (scale ? multiply_four8 : multiply_four)(x, w, scale, bias, y, rows, in, out);
    else if (!WIDENS || rows <= 24) (scale ? multiply_sharing8 : multiply_sharing)(x, w, scale, bias, y, rows, in, out);
    else if (scale) multiply_as(1, 1, 0, x, w, scale, bias, y, rows, in, out);
    else multiply_as(0, 1, 0, x, w, NULL, bias, y, rows, in, out);
}

// A prompt's rows lie side by side in the lanes, SIDE of them at most, and a number of w is multiplied into all at once: nothing is summed across
// lanes. That is another order of sums, so only passes that read prompts do so: plain and drafted decoding read the same ones, by the same passes.
#define SIDE (2 * LANES)
#define OUTS (3 * LANES / 4) // whose sums over SIDE rows fill three quarters of the registers; every size is larger
// x as panels of SIDE rows, or of LANES where no more are left: number k of all of them, then number k + 1; zeros where there is no row.
static void spread(const num *x, float *panels, long rows, long in) {
    const long steps = in / LANES;
#pragma omp for schedule(static)
    for (long c = 0; c < (rows + LANES - 1) / LANES * steps; c++) {
        const long r = c / steps * LANES, k = c % steps * LANES, panel = r / SIDE * SIDE, side = rows - panel > LANES ? SIDE : LANES;
        vec a[LANES];
        for (int i = 0; i < LANES; i++) a[i] = r + i < rows ? load(x + (r + i) * in + k) : splat(0);
        turn(a);
        for (int i = 0; i < LANES; i++) storef(panels + panel * in + (k + i) * side + r - panel, a[i]);
    }
}

// y[r][o] = x[r]·w[o] + bias[o] for the rows of a panel of `parts` vectors and OUTS outputs from o, of which those before `from` are not written.
// Memory from `next` on is asked for, a line for every four numbers of a row.
INLINE void cross(const int parts, const float *panel, const float *w, const char *next, const num *bias, num *y, long rows, long o, long from, long in, long out) {
    vec sum[2][LANES] = {0};
    const float *pair[OUTS / 2 + 1];
    for (int j = 0; j < (OUTS + 1) / 2; j++) pair[j] = w + 2 * j * in;
    for (long k = 0; k < in; k++) {
        if (k % 4 == 0) __builtin_prefetch(next + k / 4 * LINE, 0, 2);
        vec x[2];
#pragma GCC unroll 2
        for (int i = 0; i < parts; i++) x[i] = loadf(panel + (k * parts + i) * LANES);
#pragma GCC unroll 16
        for (int j = 0; j < OUTS; j++) {
            vec by = splat(pair[j / 2][k + j % 2 * in]);
#pragma GCC unroll 2
            for (int i = 0; i < parts; i++) sum[i][j] = fused(sum[i][j], x[i], by);
        }
    }
    float more[LANES] = {0};
    for (int j = 0; bias && j < OUTS; j++) more[j] = up(bias[o + j]);
    for (int i = 0; i < parts; i++) {
        turn(sum[i]);
        for (long r = i * LANES; r < rows && r < (i + 1) * LANES; r++) {
            num ready[LANES];
            store(ready, sum[i][r % LANES] + loadf(more));
            memcpy(y + r * out + from, ready + from - o, (o + OUTS - from) * sizeof(num));
        }
    }
}

// `outs` rows of w as float32, in `room` where they are not yet.
INLINE const float *wider(const void *w, const float *scale, float *room, long o, long outs, long in) {
    if (!scale) return floats((const num *)w + o * in, room, outs * in);
    for (long j = 0; j < outs; j++)
        for (long i = 0; i < in; i += LANES) storef(room + j * in + i, load8((const int8_t *)w + (o + j) * in + i) * scale[o + j]);
    return room;
}

static void multiply_panels(const float *panels, const void *w, const float *scale, const num *bias, num *y, long rows, long in, long out) {
    const long size = scale ? 1 : sizeof(num);
#pragma omp for schedule(static) nowait
    for (long c = 0; c < (out + OUTS - 1) / OUTS; c++) {
        const long from = c * OUTS, o = from < out - OUTS ? from : out - OUTS;
        const float *wide = wider(w, scale, WIDER || scale ? kept_room(0, OUTS * in) : NULL, o, OUTS, in);
        for (long r = 0; r < rows; r += SIDE) {
            const char *next = (const char *)w + (o + OUTS) * in * size + r / SIDE * (in / 4 * LINE);
            if (rows - r > LANES) cross(2, panels + r * in, wide, next, bias, y + r * out, rows - r, o, from, in, out);
            else cross(1, panels + r * in, wide, next, bias, y + r * out, rows - r, o, from, in, out);
        }
    }
}

void linear(const num *x, const void *w, const float *scale, const num *bias, num *y, long rows, long in, long out, int threads) {
#pragma omp parallel num_threads(threads)
    multiply(x, w, scale, bias, y, rows, in, out);
}

typedef struct {
    const void *w;
    const float *scale; // of each row; NULL where w is as everything else
    const num *bias;
} Matrix;

// Everything of a layer that does not change from pass to pass; absent parts are NULL.
typedef struct {
    Matrix q, k, v, o, gate, up, down;
    const num *in_norm, *in_norm_bias, *q_norm, *k_norm, *out_norm, *out_norm_bias;
    long hidden, attention_in, heads, key_heads, head_dim, inner;
    int activation, layer_norm; // activation: 0 silu, 1 relu, 2 gelu
    float eps, qk_eps;
} Layer;

// Everything of a pass that does not change from layer to layer. `cos` is NULL where positions are learned.
typedef struct {
    const float *cos, *sin;                            // of each position, [P, D]
    const int64_t *slots, *positions;                  // [R]
    const int64_t *places;                             // [B]: the cache's row of each sequence; NULL: in order
    const uint8_t *mask;                               // [B or 1, T, S]
    long batch, tokens, seen, mask_batch_stride;       // B, T, S
    long turns, cache_batch, cache_slots;              // P; what the cache has room for
    long cache_batch_stride, cache_head_stride;        // in numbers; a slot is D numbers
    int threads, prompt;                               // prompt: whether the pass reads one, and decides no token
} Pass;

INLINE vec exponential(vec x) { // e^x to 2 units in the last place; 0 far below, so that −inf gives 0
    const vec lowest = splat(-87.0f);
    ivec under = x < lowest;
    x = (vec)(((ivec)lowest & under) | ((ivec)x & ~under));
    vec t = x * 1.44269504f + 12582912.0f, n = t - 12582912.0f; // rounds to the nearest whole number
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f, p = p * r + 8.3334519073e-3f, p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f, p = p * r + 5.0000001201e-1f, p = p * r * r + r + 1.0f;
    ivec power = ((ivec)t - 0x4b400000 + 127) << 23;
    return (vec)((ivec)(p * (vec)power) & ~under);
}

static void norm(const num *x, const num *weight, const num *bias, num *y, long size, int centred, float eps) {
    float mean = 0, square = 0;
    if (centred) {
#pragma omp simd reduction(+ : mean)
        for (long i = 0; i < size; i++) mean += up(x[i]);
        mean /= size;
    }
#pragma omp simd reduction(+ : square)
    for (long i = 0; i < size; i++) square += (up(x[i]) - mean) * (up(x[i]) - mean);
    float scale = 1 / sqrtf(square / size + eps);
    for (long i = 0; i < size; i++) {
        float value = (up(x[i]) - mean) * scale * up(weight[i]);
        y[i] = down(bias ? value + up(bias[i]) : value);
    }
}

// Dimension i turns with dimension i + D/2.
static void rotate(num *x, const float *cos, const float *sin, long dim) {
    for (long i = 0; i < dim / 2; i++) {
        float a = up(x[i]), b = up(x[i + dim / 2]);
        x[i] = down(a * cos[i] - b * sin[i]);
        x[i + dim / 2] = down(b * cos[i + dim / 2] + a * sin[i + dim / 2]);
    }
}

static void place(const Layer *layer, const Pass *pass, num *x, const num *weight, long heads, long row) {
    const long dim = layer->head_dim;
    for (long h = 0; h < heads; h++) {
        num *head = x + (row * heads + h) * dim;
        if (weight) norm(head, weight, NULL, head, dim, 0, layer->qk_eps);
        if (pass->cos) rotate(head, pass->cos + pass->positions[row] * dim, pass->sin + pass->positions[row] * dim, dim);
    }
}

// Query heads that attend together: their sums of four vectors each fill half of the registers at most.
#define TOGETHER (LANES / 4)

// out[g] = Σ weight[g][s]·value[s] / total[g] for `heads` query heads and `parts` vectors of the value, both kept in registers.
INLINE void weigh(const int heads, const int parts, const num *values, const long *slots, long count, long dim, const float *weight, long stride, const float *total, num *out) {
    vec sum[16] = {0};
    for (long s = 0; s < count; s++) {
        vec value[4];
#pragma GCC unroll 4
        for (int i = 0; i < parts; i++) value[i] = load(values + slots[s] * dim + i * LANES);
#pragma GCC unroll 4
        for (int g = 0; g < heads; g++) {
            vec by = splat(weight[g * stride + s]);
#pragma GCC unroll 4
            for (int i = 0; i < parts; i++) sum[4 * g + i] = fused(sum[4 * g + i], by, value[i]);
        }
    }
#pragma GCC unroll 4
    for (int g = 0; g < heads; g++)
#pragma GCC unroll 4
        for (int i = 0; i < parts; i++) store(out + g * dim + i * LANES, sum[4 * g + i] / total[g]);
}

// The attention of `heads` query heads of one token, which share a key head, over the `count` slots it sees: softmax(q·k / √D)·v.
// `score` has room for `heads` × `stride` numbers, `stride` a multiple of LANES from `count` up.
// A key as it is multiplied by queries, and the sum of its products with one from number i on, of `dim`.
#if defined(BF16) && defined(__AVX512BF16__)
typedef const num *Key;
INLINE Key key_at(const num *p, float *room, long dim) { return p; }
INLINE vec with_key(vec a, const num *q, Key key, long i, long dim) {
    if (i + STEP <= dim) return mac(a, fetch(q + i), fetch(key + i));
    const __m256i *half_q = (const __m256i *)(q + i), *half_key = (const __m256i *)(key + i);
    return mac(a, _mm512_zextsi256_si512(_mm256_loadu_si256(half_q)), _mm512_zextsi256_si512(_mm256_loadu_si256(half_key)));
}
#define KEY_STEP STEP
#else
typedef const float *Key;
INLINE Key key_at(const num *p, float *room, long dim) { return floats(p, room, dim); }
INLINE vec with_key(vec a, const num *q, Key key, long i, long dim) { return fused(a, load(q + i), loadf(key + i)); }
#define KEY_STEP LANES
#endif

static void attend(const num *q, const num *keys, const num *values, const long *slots, long count, long dim, int heads, float *near, float *score, long stride, num *out) {
    const vec scale = splat(1 / sqrtf(dim)), lowest = splat(-INFINITY);
    float total[4];
    vec best[4] = {lowest, lowest, lowest, lowest};
    for (long s = 0; s < count; s += LANES) {
        Key key[LANES];
        for (int j = 0; j < LANES; j++) {
            const long this = slots[s + j < count ? s + j : count - 1] * dim, next = slots[s + LANES + j < count ? s + LANES + j : count - 1] * dim;
            for (long i = 0; i < dim; i += LINE / sizeof(num)) __builtin_prefetch(keys + next + i), __builtin_prefetch(values + this + i, 0, 2);
            key[j] = key_at(keys + this, near + j * dim, dim);
        }
        for (int g = 0; g < heads; g++) {
            vec a[LANES] = {0};
            for (long i = 0; i < dim; i += KEY_STEP)
#pragma GCC unroll 16
                for (int j = 0; j < LANES; j++) a[j] = with_key(a[j], q + g * dim, key[j], i, dim);
            vec found = sums(a) * scale;
            ivec above = found > best[g];
            best[g] = (vec)(((ivec)found & above) | ((ivec)best[g] & ~above));
            storef(score + g * stride + s, found);
        }
    }
    for (int g = 0; g < heads; g++) {
        float *of = score + g * stride, most = -INFINITY;
        vec all = {0};
        for (int j = 0; j < LANES; j++) most = best[g][j] > most ? best[g][j] : most;
        for (long s = count; s % LANES; s++) of[s] = -INFINITY;
        for (long s = 0; s < count; s += LANES) {
            vec weight = exponential(loadf(of + s) - most);
            storef(of + s, weight);
            all += weight;
        }
        total[g] = 0;
        for (int j = 0; j < LANES; j++) total[g] += all[j];
    }
    for (long i = 0; i < dim; i += 4 * LANES) {
#define WEIGH(G, P) weigh(G, P, values + i, slots, count, dim, score, stride, total, out + i)
#define PARTS(G) switch ((dim - i) / LANES) { case 1: WEIGH(G, 1); break; case 2: WEIGH(G, 2); break; case 3: WEIGH(G, 3); break; default: WEIGH(G, 4); }
        switch (heads) {
        case 1: PARTS(1) break;
        case 2: PARTS(2) break;
        case 3: PARTS(3) break;
        default: PARTS(4)
        }
    }
}

static long cache_row(const Pass *pass, long sequence) { return pass->places ? pass->places[sequence] : sequence; }

// Writes this pass's keys and values into the cache, then lets every token attend. All threads call it together.
static void attention(const Layer *layer, const Pass *pass, num *q, num *k, const num *v, num *keys, num *values, num *out) {
    const long dim = layer->head_dim, heads = layer->heads, few = layer->key_heads, group = heads / few, T = pass->tokens;
#pragma omp for schedule(static)
    for (long row = 0; row < pass->batch * T; row++) {
        place(layer, pass, q, layer->q_norm, heads, row);
        place(layer, pass, k, layer->k_norm, few, row);
        for (long h = 0; h < few; h++) {
            long to = cache_row(pass, row / T) * pass->cache_batch_stride + h * pass->cache_head_stride + pass->slots[row] * dim;
            memcpy(keys + to, k + (row * few + h) * dim, dim * sizeof(num));
            memcpy(values + to, v + (row * few + h) * dim, dim * sizeof(num));
        }
    }
    long *slots = malloc(pass->seen * sizeof(long));
    const long stride = (pass->seen + LANES - 1) / LANES * LANES;
    float *score = malloc((TOGETHER * stride + LANES * dim) * sizeof(float));
    const long items = pass->batch * few * T, part = items / (8 * pass->threads);
#pragma omp for schedule(dynamic, part > 1 ? part : 1)
    for (long item = 0; item < items; item++) { // a sequence's tokens one behind another, of each head: its keys and values stay near
        const long b = item / (few * T), h = item / T % few, t = item % T;
        const uint8_t *mask = pass->mask + b * pass->mask_batch_stride + t * pass->seen;
        long count = 0, at = cache_row(pass, b) * pass->cache_batch_stride + h * pass->cache_head_stride;
        for (long s = 0; s < pass->seen; s++) slots[count] = s, count += mask[s];
        for (long g = 0; g < group; g += TOGETHER) {
            long head = ((b * T + t) * heads + h * group + g) * dim;
            attend(q + head, keys + at, values + at, slots, count, dim, group - g < TOGETHER ? group - g : TOGETHER, score + TOGETHER * stride, score, stride, out + head);
        }
    }
    free(slots);
    free(score);
}

// act(gate)·up, or act(up) where nothing gates; into `gate`.
static void activate(const Layer *layer, num *gate, const num *wide, long rows) {
    const long inner = layer->inner;
#pragma omp for schedule(static)
    for (long c = 0; c < rows * inner / LANES; c++) {
        num *at = gate + c * LANES;
        vec x = layer->gate.w ? load(at) : load(wide + c * LANES);
        if (layer->activation == 0) x = x / (exponential(-x) + 1.0f);
        if (layer->activation == 1) x = (vec)((ivec)x & (x > 0));
        if (layer->activation == 2) for (int i = 0; i < LANES; i++) x[i] = 0.5f * x[i] * (1 + erff(x[i] * 0.70710678f));
        store(at, layer->gate.w ? x * load(wide + c * LANES) : x);
    }
}

static void add(num *y, const num *x, const num *more, long size) {
#pragma omp for schedule(static)
    for (long c = 0; c < size / LANES; c++) store(y + c * LANES, load(x + c * LANES) + load(more + c * LANES));
}

// Whether a pass stays within the cache that it writes to and reads, and the positions that there are.
static int fits(const Pass *pass) {
    if ((!pass->places && pass->batch != pass->cache_batch) || pass->seen > pass->cache_slots) return 0;
    for (long b = 0; pass->places && b < pass->batch; b++)
        if (pass->places[b] < 0 || pass->places[b] >= pass->cache_batch) return 0;
    for (long row = 0; row < pass->batch * pass->tokens; row++)
        if (pass->slots[row] < 0 || pass->slots[row] >= pass->cache_slots || (pass->cos && (pass->positions[row] < 0 || pass->positions[row] >= pass->turns))) return 0;
    return 1;
}

// By panels of x where there are any.
static void product(const num *x, const float *panels, const Matrix *m, num *y, long rows, long in, long out) {
    if (panels) multiply_panels(panels, m->w, m->scale, m->bias, y, rows, in, out);
    else multiply(x, m->w, m->scale, m->bias, y, rows, in, out);
}

// y = layer(x), which may be x's place. `normed`: what attention reads [R, attention_in], or NULL where it is the norm of x. `room` holds what is in between.
static void layer(const Layer *layer, const Pass *pass, const num *x, const num *normed, num *keys, num *values, num *y, num *room) {
    const long rows = pass->batch * pass->tokens, hidden = layer->hidden, in = layer->attention_in, inner = layer->inner;
    const long wide = layer->heads * layer->head_dim, few = layer->key_heads * layer->head_dim;
    num *small = room, *q = small + rows * hidden, *k = q + rows * wide, *v = k + rows * few, *mixed = v + rows * few;
    num *gate = mixed + rows * wide, *up = gate + rows * inner;
    const long most = in > inner ? in : inner, widest = most > wide ? most : wide;
    float *panels = !tiles && pass->prompt && rows >= SIDE ? kept_room(1, (rows + SIDE) * (widest > hidden ? widest : hidden)) : NULL;
#pragma omp parallel num_threads(pass->threads)
    {
        if (!normed) {
#pragma omp for schedule(static)
            for (long r = 0; r < rows; r++) norm(x + r * hidden, layer->in_norm, layer->in_norm_bias, small + r * hidden, hidden, layer->layer_norm, layer->eps);
        }
        const num *from = normed ? normed : small;
        if (panels) spread(from, panels, rows, in);
        product(from, panels, &layer->q, q, rows, in, wide);
        product(from, panels, &layer->k, k, rows, in, few);
        product(from, panels, &layer->v, v, rows, in, few);
#pragma omp barrier
        attention(layer, pass, q, k, v, keys, values, mixed);
        if (panels) spread(mixed, panels, rows, wide);
        product(mixed, panels, &layer->o, small, rows, wide, hidden);
#pragma omp barrier
        add(y, x, small, rows * hidden);
#pragma omp for schedule(static)
        for (long r = 0; r < rows; r++) norm(y + r * hidden, layer->out_norm, layer->out_norm_bias, small + r * hidden, hidden, layer->layer_norm, layer->eps);
        if (panels) spread(small, panels, rows, hidden);
        if (layer->gate.w) product(small, panels, &layer->gate, gate, rows, hidden, inner);
        product(small, panels, &layer->up, up, rows, hidden, inner);
#pragma omp barrier
        activate(layer, gate, up, rows);
        if (panels) spread(gate, panels, rows, inner);
        product(gate, panels, &layer->down, small, rows, inner, hidden);
#pragma omp barrier
        add(y, y, small, rows * hidden);
    }
}

// y = all[count − 1](… all[0](x)), whose keys and values lie `stride` numbers apart; returns 0, or −1 with nothing written where the pass leaves the cache. `normed` is the first one's. One call, since what a caller
// does between layers finds its code and data driven out of the caches by the weights.
int layers(const Layer *const *all, long count, const Pass *pass, const num *x, const num *normed, num *keys, num *values, long stride, num *y, num *room) {
    if (!fits(pass)) return -1;
    for (long i = 0; i < count; i++) layer(all[i], pass, i ? y : x, i ? NULL : normed, keys + i * stride, values + i * stride, y, room);
    return 0;
}

// Everything of a draft that does not change from pass to pass; absent parts are NULL. Its layers read a token's embedding, or `fc` of that beside
// what the target or the last pass left (EAGLE), or each of the two normed, beside a residual of what was left (EAGLE-3).
typedef struct {
    const num *embed;                                                // [V, C]
    Matrix fc, head;                                                 // [C, 2C], [D, C]
    const num *before;                                               // [V, rank]: what a token adds to the logits behind it is `after` times its row
    Matrix after;                                                    // [D, rank]
    const num *embed_norm, *left_norm, *norm, *norm_bias;            // EAGLE-3's two, and the one before the head
    const int64_t *d2t;                                              // the target's id less the draft's own, [D]
    const Layer *const *layers;
    long count, room, hidden, vocabulary, words, rank;               // room: what a row of a layer needs; V, D
    int layer_norm, normed_residual, leaves_normed;                  // whether the residual is the normed one; whether what is left is
    float eps;
} Draft;

// Where the largest of `size` numbers first stands, that number (NaN where one is), and where `total` is asked for the sum of e^(each − it).
static long first_largest(const num *x, long size, float *largest, float *total) {
    float most = -INFINITY;
    long at = 0, whole = size / LANES * LANES;
    vec best = splat(-INFINITY), sum = {0};
    ivec odd = {0};
    for (long i = 0; i < whole; i += LANES) {
        vec v = load(x + i);
        ivec above = v > best;
        best = (vec)(((ivec)v & above) | ((ivec)best & ~above)), odd |= v != v;
    }
    int broken = 0;
    for (int j = 0; j < LANES; j++) most = best[j] > most ? best[j] : most, broken |= odd[j];
    for (long i = whole; i < size; i++) most = up(x[i]) > most ? up(x[i]) : most, broken |= up(x[i]) != up(x[i]);
    *largest = broken ? NAN : most;
    while (at < size - 1 && up(x[at]) != most) at++;
    if (!total) return at;
    *total = 0;
    for (long i = 0; i < whole; i += LANES) sum += exponential(load(x + i) - most);
    for (int j = 0; j < LANES; j++) *total += sum[j];
    for (long i = whole; i < size; i++) *total += expf(up(x[i]) - most);
    return at;
}

// The same of each of `rows`.
void largest(const num *x, long rows, long size, int64_t *at, float *most, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (rows > 1)
    for (long r = 0; r < rows; r++) at[r] = first_largest(x + r * size, size, most + r, NULL);
}

// The `count` largest of `size` numbers, the largest first, of equal ones the first: where they stand, and they. size ≥ count.
static void largest_of(const num *x, long size, long count, int64_t *at, float *most) {
    for (long start = 0; start < size; start += 8 * LANES) {
        const long stop = start + 8 * LANES < size ? start + 8 * LANES : size;
        int above = start < count;
        if (!above && stop - start == 8 * LANES) {
            vec best = load(x + start);
            for (long i = start + LANES; i < stop; i += LANES) {
                vec v = load(x + i);
                ivec more = v > best;
                best = (vec)(((ivec)v & more) | ((ivec)best & ~more));
            }
            for (int j = 0; j < LANES; j++) above |= best[j] > most[count - 1];
        } else above = 1;
        for (long i = start; above && i < stop; i++) {
            const float v = up(x[i]);
            if (i >= count && !(v > most[count - 1])) continue;
            long place = i < count ? i : count - 1;
            for (; place > 0 && v > most[place - 1]; place--) most[place] = most[place - 1], at[place] = at[place - 1];
            most[place] = v, at[place] = i;
        }
    }
}

// Where the `count` largest of so few numbers stand, the largest first, of equal ones the first.
static void most_of(const float *x, long size, long count, int64_t *at) {
    for (long i = 0; i < size; i++) {
        long place = i < count ? i : count;
        while (place > 0 && x[i] > x[at[place - 1]]) {
            if (place < count) at[place] = at[place - 1];
            place--;
        }
        if (place < count) at[place] = i;
    }
}

// y [R, C] = what a draft's layers make of the tokens of a pass, each beside its row of `before`. x, joined and room hold what is in between.
static void read_tokens(const Draft *draft, const Pass *pass, const int64_t *tokens, const num *before, num *keys, num *values, long stride, num *x, num *joined, num *y, num *room) {
    const long C = draft->hidden, rows = pass->batch * pass->tokens;
    for (long r = 0; r < rows; r++) {
        const num *embedding = draft->embed + tokens[r] * C, *of = before ? before + r * C : NULL;
        num *first = joined + 2 * r * C, *second = first + C;
        if (draft->fc.w) memcpy(first, embedding, C * sizeof(num)), memcpy(second, of, C * sizeof(num));
        else if (draft->left_norm) {
            norm(embedding, draft->embed_norm, NULL, first, C, 0, draft->eps), norm(of, draft->left_norm, NULL, second, C, 0, draft->eps);
            memcpy(x + r * C, draft->normed_residual ? second : of, C * sizeof(num));
        } else memcpy(x + r * C, embedding, C * sizeof(num));
    }
    if (draft->fc.w) linear(joined, draft->fc.w, draft->fc.scale, draft->fc.bias, x, rows, 2 * C, C, pass->threads);
    for (long i = 0; i < draft->count; i++)
        layer(draft->layers[i], pass, i ? y : x, i ? NULL : draft->fc.w ? x : draft->left_norm ? joined : NULL, keys + i * stride, values + i * stride, y, room);
}

// What a row leaves for the next pass, and what the LM head reads of it.
static void leave(const Draft *draft, const num *of, num *final, num *left) {
    const long C = draft->hidden;
    if (draft->norm) norm(of, draft->norm, draft->norm_bias, final, C, draft->layer_norm, draft->eps);
    else memcpy(final, of, C * sizeof(num));
    memcpy(left, draft->leaves_normed ? final : of, C * sizeof(num));
}

static int knows(const Draft *draft, const int64_t *tokens, long count) {
    for (long r = 0; r < count; r++)
        if (tokens[r] < 0 || tokens[r] >= draft->vocabulary) return 0;
    return 1;
}

// A greedy chain: reads T tokens of B sequences, each beside its row of `left` [R, C], and drafts `depth` behind the `last` of each: their ids in the
// target's vocabulary and what `first_largest` gives, [depth, B]; `left` [B, C] is then what the last one read left. A slot is a position, and sees those up to itself.
// Returns 0, or −1 with nothing written where a pass leaves the cache or a token the vocabulary. One call, as for layers.
int chain(const Draft *draft, const Pass *given, const int64_t *tokens, const num *before, const int64_t *last, num *keys, num *values, long stride, long depth, int64_t *ids, float *largest, float *total, num *left) {
    const long B = given->batch, T = given->tokens, C = draft->hidden, D = draft->words, R = B * T;
    long seen = 0;
    if (!knows(draft, tokens, R)) return -1;
    for (long r = 0; r < R; r++) seen = given->slots[r] >= seen ? given->slots[r] + 1 : seen;
    const long most = seen + depth - 1;
    Pass pass = *given;
    pass.seen = seen, pass.positions = pass.slots;
    if (!fits(&pass) || most > pass.cache_slots || (pass.cos && most > pass.turns)) return -1;
    num *x = (num *)kept_room(2, R * (4 * C + draft->room) + B * (C + D) + 2 * B + R * most), *y = x + R * C, *joined = y + R * C, *room = joined + 2 * R * C;
    num *final = room + R * draft->room, *logits = final + B * C;
    int64_t *slots = (int64_t *)(((uintptr_t)(logits + B * D) + 7) / 8 * 8);
    uint8_t *mask = (uint8_t *)(slots + B);
    pass.mask = mask;
    for (long k = 0; k < depth; k++) {
        const long n = B * pass.tokens;
        pass.mask_batch_stride = pass.tokens * pass.seen;
        for (long r = 0; r < n; r++)
            for (long s = 0; s < pass.seen; s++) mask[r * pass.seen + s] = s <= pass.slots[r];
        read_tokens(draft, &pass, tokens, before, keys, values, stride, x, joined, y, room);
        for (long b = 0; b < B; b++) leave(draft, y + (k ? b : b * T + last[b]) * C, final + b * C, left + b * C);
        linear(final, draft->head.w, draft->head.scale, draft->head.bias, logits, B, C, D, pass.threads);
        for (long b = 0; b < B; b++) {
            const long id = first_largest(logits + b * D, D, largest + k * B + b, total + k * B + b);
            ids[k * B + b] = id + (draft->d2t ? draft->d2t[id] : 0);
            slots[b] = k ? slots[b] + 1 : given->slots[b * T + last[b]] + 1;
        }
        tokens = ids + k * B, before = left, pass.tokens = 1, pass.slots = pass.positions = slots, pass.seen = 0;
        for (long b = 0; b < B; b++) pass.seen = slots[b] >= pass.seen ? slots[b] + 1 : pass.seen;
    }
    return 0;
}

// Which nodes of a tree are extended and proposed. Dynamic (EAGLE-2): the `children` most probable of each level, and of all the `proposed` most probable.
// Static: `extended` of each level but the last, behind one another, as places among its words, `counts` of each; `places` in the pool, rising.
typedef struct { long levels, children, proposed; const int64_t *counts, *extended, *places; } Policy;

// A tree: reads T tokens of B sequences as `chain` does, then level by level the `children` most probable words behind each extended node, all into a pool
// of P = children · Σ extended, parents first. Its nodes' slots lie behind the text's, in the order that they are extended in; each sees the text and those above it.
// ids, parents [B, proposed]: parents as places among the proposed, −1 the root. Of equal scores the first is the more probable.
// Returns 0; −1 with nothing written where it leaves the cache or the vocabulary; −2 where a score is NaN.
int tree(const Draft *draft, const Pass *given, const Policy *policy, const int64_t *tokens, const num *before, const int64_t *last, num *keys, num *values, long stride, int64_t *ids, int64_t *parents) {
    const long B = given->batch, T = given->tokens, C = draft->hidden, D = draft->words, L = policy->levels, r = policy->children;
    long longest = 0, used = 0, most = 1, P = r;
    for (long level = 1; level < L; level++) {
        const long k = policy->counts ? policy->counts[level - 1] : r;
        used += k, P += k * r, most = k > most ? k : most;
    }
    for (long row = 0; row < B * T; row++) longest = given->slots[row] >= longest ? given->slots[row] + 1 : longest;
    Pass pass = *given;
    pass.seen = longest, pass.positions = pass.slots;
    if (!knows(draft, tokens, B * T) || !fits(&pass) || longest + used > pass.cache_slots || (pass.cos && longest + L - 1 > pass.turns) || r > D) return -1;
    const long R = B * (T > most ? T : most), Q = B * most;
    num *x = (num *)kept_room(2, R * (4 * C + draft->room) + Q * (3 * C + D)), *y = x + R * C, *joined = y + R * C, *room = joined + 2 * R * C;
    num *final = room + R * draft->room, *left = final + Q * C, *beside = left + Q * C, *logits = beside + Q * C;
    int64_t *whole = (int64_t *)kept_room(3, 2 * (2 * B * P + 3 * Q + 2 * B * used + r) + B * P + 2 * Q + (R * (longest + used) + 3) / 4 + 16);
    int64_t *words = whole, *above = words + B * P, *slots = above + B * P, *positions = slots + Q, *read = positions + Q, *node = read + Q, *ancestor = node + B * used, *found = ancestor + B * used;
    float *score = (float *)(found + r), *so_far = score + B * P, *next = so_far + Q;
    uint8_t *mask = (uint8_t *)(next + Q);
    pass.mask = mask;
    long start = 0, slot = 0, k = 1, state = 0; // of the pool; of the slots; nodes of the level that is read
    const int64_t *extended = policy->extended;
    for (long level = 0; level < L; level++) {
        const long n = B * pass.tokens, Qs = B * k;
        pass.mask_batch_stride = pass.tokens * pass.seen;
        if (!level)
            for (long row = 0; row < n; row++)
                for (long s = 0; s < pass.seen; s++) mask[row * pass.seen + s] = s <= pass.slots[row];
        read_tokens(draft, &pass, level ? read : tokens, level ? (before ? beside : NULL) : before, keys, values, stride, x, joined, y, room);
        for (long q = 0; q < Qs; q++) leave(draft, y + (level ? q : q * T + last[q]) * C, final + q * C, left + q * C);
        linear(final, draft->head.w, draft->head.scale, draft->head.bias, logits, Qs, C, D, pass.threads);
#pragma omp parallel for schedule(static) num_threads(pass.threads) if (Qs > 1)
        for (long q = 0; q < Qs; q++) {
            const long b = q / k, at = b * P + start + q % k * r;
            float best, total;
            first_largest(logits + q * D, D, &best, &total);
            largest_of(logits + q * D, D, r, words + at, score + at);
            for (long j = 0; j < r; j++) {
                score[at + j] = best != best ? NAN : score[at + j] - best - logf(total) + (level ? so_far[q] : 0);
                above[at + j] = level ? node[b * used + slot - k + q % k] : -1;
            }
        }
        for (long i = 0; i < B * k * r; i++) {
            const long at = i / (k * r) * P + start + i % (k * r);
            if (score[at] != score[at]) state = -2;
            words[at] += draft->d2t ? draft->d2t[words[at]] : 0;
        }
        if (state || level == L - 1) break;
        const long more = policy->counts ? policy->counts[level] : r;
        const long seen = longest + slot + more;
        for (long b = 0; b < B; b++) {
            const long base = given->slots[b * T + last[b]] + 1;
            if (!policy->counts) most_of(score + b * P + start, k * r, r, found);
            for (long i = 0; i < more; i++) {
                const long chosen = policy->counts ? extended[i] : found[i], at = b * P + start + chosen, q = b * more + i;
                uint8_t *sees = mask + q * seen;
                node[b * used + slot + i] = start + chosen;
                ancestor[b * used + slot + i] = level ? slot - k + chosen / r : -1;
                read[q] = words[at], next[q] = score[at], slots[q] = base + slot + i, positions[q] = base + level;
                if (before) memcpy(beside + q * C, left + (b * k + chosen / r) * C, C * sizeof(num));
                for (long s = 0; s < seen; s++) sees[s] = s < base;
                for (long u = slot + i; u >= 0; u = ancestor[b * used + u]) sees[base + u] = 1;
            }
        }
        memcpy(so_far, next, B * more * sizeof(float));
        if (extended) extended += more;
        start += k * r, slot += more, k = more;
        pass.tokens = more, pass.seen = seen, pass.slots = slots, pass.positions = positions;
    }
    if (state) return state;
    const long W = policy->proposed;
    for (long b = 0; b < B; b++) {
        int64_t *in = ids + b * W;
        if (policy->places) memcpy(in, policy->places, W * sizeof(int64_t));
        else {
            most_of(score + b * P, P, W, in);
            for (long i = 1; i < W; i++) // in rising order
                for (long j = i; j > 0 && in[j] < in[j - 1]; j--) { const int64_t other = in[j]; in[j] = in[j - 1], in[j - 1] = other; }
        }
        for (long i = 0; i < W; i++) {
            const int64_t parent = above[b * P + in[i]];
            long at = parent < 0 ? -1 : 0;
            while (at >= 0 && in[at] != parent) at++;
            parents[b * W + i] = at;
        }
        for (long i = 0; i < W; i++) in[i] = words[b * P + in[i]];
    }
    return 0;
}

// Keys and values of rows of `hidden` [R, C] as they are, at the slots of a pass, which are their positions.
static void remember(const Layer *layer, const Pass *pass, const num *hidden, num *k, num *v, num *keys, num *values) {
    const long dim = layer->head_dim, few = layer->key_heads, rows = pass->batch * pass->tokens;
    linear(hidden, layer->k.w, layer->k.scale, layer->k.bias, k, rows, layer->attention_in, few * dim, pass->threads);
    linear(hidden, layer->v.w, layer->v.scale, layer->v.bias, v, rows, layer->attention_in, few * dim, pass->threads);
    for (long row = 0; row < rows; row++) {
        place(layer, pass, k, layer->k_norm, few, row);
        for (long h = 0; h < few; h++) {
            const long to = cache_row(pass, row / pass->tokens) * pass->cache_batch_stride + h * pass->cache_head_stride + pass->slots[row] * dim;
            memcpy(keys + to, k + (row * few + h) * dim, dim * sizeof(num));
            memcpy(values + to, v + (row * few + h) * dim, dim * sizeof(num));
        }
    }
}

// A block's chain, greedy: remembers `gained` rows of `context` of each sequence at their slots `known`, then reads the T tokens of its block, which see all before
// and each other, and drafts `places` tokens from row `first` on, as `chain` gives them. Returns 0, or −1 with nothing written where a pass leaves the cache or a token the vocabulary.
int block(const Draft *draft, const Pass *given, const int64_t *tokens, const num *context, const int64_t *known, long gained, long first, long places, num *keys, num *values, long stride, int64_t *ids, float *largest, float *total) {
    const long B = given->batch, T = given->tokens, C = draft->hidden, D = draft->words, R = B * T, G = B * gained, Q = B * places;
    const long few = draft->layers[0]->key_heads * draft->layers[0]->head_dim;
    Pass pass = *given, before = *given;
    pass.seen = 0, pass.positions = pass.slots;
    for (long r = 0; r < R; r++) pass.seen = pass.slots[r] >= pass.seen ? pass.slots[r] + 1 : pass.seen;
    before.tokens = gained, before.slots = before.positions = known, before.seen = pass.seen;
    if (!knows(draft, tokens, R) || !fits(&pass) || !fits(&before) || first + places > T) return -1;
    num *x = (num *)kept_room(2, R * (2 * C + draft->room) + 2 * G * few + Q * (C + D) + B * (D + draft->rank) + (R * pass.seen + 3) / 4), *y = x + R * C, *room = y + R * C;
    num *k = room + R * draft->room, *v = k + G * few, *final = v + G * few, *logits = final + Q * C, *more = logits + Q * D, *row = more + B * D;
    uint8_t *mask = (uint8_t *)(row + B * draft->rank);
    pass.mask = mask, pass.mask_batch_stride = T * pass.seen;
    for (long r = 0; r < R; r++) {
        const long end = pass.slots[r / T * T + T - 1];
        for (long s = 0; s < pass.seen; s++) mask[r * pass.seen + s] = s <= end;
        memcpy(x + r * C, draft->embed + tokens[r] * C, C * sizeof(num));
    }
    for (long i = 0; i < draft->count; i++) {
        if (G) remember(draft->layers[i], &before, context, k, v, keys + i * stride, values + i * stride);
        layer(draft->layers[i], &pass, i ? y : x, NULL, keys + i * stride, values + i * stride, y, room);
    }
    for (long q = 0; q < Q; q++) norm(y + (q / places * T + first + q % places) * C, draft->norm, draft->norm_bias, final + q * C, C, draft->layer_norm, draft->eps);
    linear(final, draft->head.w, draft->head.scale, draft->head.bias, logits, Q, C, D, pass.threads);
    for (long p = 0; p < places; p++) {
        if (draft->before) {
            for (long b = 0; b < B; b++) memcpy(row + b * draft->rank, draft->before + (p ? ids[(p - 1) * B + b] : tokens[b * T]) * draft->rank, draft->rank * sizeof(num));
            linear(row, draft->after.w, draft->after.scale, draft->after.bias, more, B, draft->rank, D, pass.threads);
        }
        for (long b = 0; b < B; b++) {
            num *of = logits + (b * places + p) * D;
            for (long i = 0; draft->before && i < D; i++) of[i] = down(up(of[i]) + up(more[b * D + i]));
            const long id = first_largest(of, D, largest + p * B + b, total + p * B + b);
            ids[p * B + b] = id + (draft->d2t ? draft->d2t[id] : 0);
        }
    }
    return 0;
}
