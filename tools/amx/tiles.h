// Vectors of 32 channels, and AMX's tiles: 16 rows of 64 bytes.

#pragma once

#include <immintrin.h>
#include <sys/syscall.h>
#include <torch/extension.h>
#include <unistd.h>

#include <cstring>

#ifndef GROUPS
#define GROUPS 1
#endif

namespace {

using bf16 = uint16_t;

constexpr int FEATURES = 32 * GROUPS;
constexpr int SLACK = 64;             // positions before and after a plane that tiles may read
constexpr int TILE = 512;             // values of a tile in bf16: 16 rows of 32
constexpr int KERNEL = 9 * 2 * TILE;  // one 3x3 kernel from a group to a group
// Chunks of 32 pixels whose part in the kernels' gradients is summed at a time.
constexpr int BLOCK = GROUPS == 1 ? 6 : 26;
constexpr int MOST_LAYERS = 16;

// -- bfloat16 and vectors --------------------------------------------------------------------------

bf16 to_bf16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

float to_float(bf16 value) {
  const uint32_t bits = uint32_t(value) << 16;
  float result;
  memcpy(&result, &bits, 4);
  return result;
}

// The 32 channels of a pixel, or of a bias, as two vectors of fp32.
struct Channels {
  __m512 low, high;
};

__m512 widen(__m256i half) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16)); }

Channels load(const bf16* pixel) {
  const __m512i both = _mm512_load_si512(pixel);
  return {widen(_mm512_castsi512_si256(both)), widen(_mm512_extracti64x4_epi64(both, 1))};
}

Channels load(const float* values) { return {_mm512_loadu_ps(values), _mm512_loadu_ps(values + 16)}; }

void store(bf16* pixel, Channels v, __mmask16 mask = 0xffff) {
  const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(v.high, v.low);
  _mm512_store_si512(pixel, _mm512_maskz_mov_epi32(mask, both));
}

void store(float* values, Channels v) {
  _mm512_storeu_ps(values, v.low);
  _mm512_storeu_ps(values + 16, v.high);
}

Channels operator+(Channels a, Channels b) {
  return {_mm512_add_ps(a.low, b.low), _mm512_add_ps(a.high, b.high)};
}

Channels masked(Channels v, __mmask16 mask) {
  return {_mm512_maskz_mov_ps(mask, v.low), _mm512_maskz_mov_ps(mask, v.high)};
}

// Of pixel `p` of a chunk's sums: for sixteen pixels the tile of the lower 16 channels, then that of the
// upper.
Channels load_sums(const float* chunk, int p) {
  const float* sums = chunk + (p / 16) * 512 + (p % 16) * 16;
  return {_mm512_load_ps(sums), _mm512_load_ps(sums + 256)};
}

struct Negative {
  __mmask16 low, high;
};

Negative not_positive(Channels v) {
  const __m512 zero = _mm512_setzero_ps();
  return {_mm512_cmp_ps_mask(v.low, zero, _CMP_LE_OQ), _mm512_cmp_ps_mask(v.high, zero, _CMP_LE_OQ)};
}

// Both PReLU itself (of its own input) and its gradient.
Channels bend(Channels v, Negative where, Channels slope) {
  return {_mm512_mask_mul_ps(v.low, where.low, v.low, slope.low),
          _mm512_mask_mul_ps(v.high, where.high, v.high, slope.high)};
}

Channels add_products(Channels sum, Negative where, Channels a, Channels b) {
  return {_mm512_mask3_fmadd_ps(a.low, b.low, sum.low, where.low),
          _mm512_mask3_fmadd_ps(a.high, b.high, sum.high, where.high)};
}

// -- tiles -----------------------------------------------------------------------------------------

struct TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// To the compiler a tile's load reads no memory: what was written before is to be there by now.
#define WRITTEN() asm volatile("" ::: "memory")

void configure_tiles() {
  static const long granted = syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18);
  TORCH_CHECK(granted == 0, "this kernel does not give AMX's tiles");
  alignas(64) TileConfig config;
  for (int tile = 0; tile < 8; tile++) config.row_bytes[tile] = 64, config.rows[tile] = 16;
  asm volatile("" ::"r"(&config) : "memory");
  _tile_loadconfig(&config);
}

// Tiles 0 to 3 are sums, 4 to 7 what is multiplied.
#define CLEAR_SUMS() \
  do {               \
    WRITTEN();       \
    _tile_zero(0);   \
    _tile_zero(1);   \
    _tile_zero(2);   \
    _tile_zero(3);   \
  } while (0)
#define LOAD_SUMS(at)               \
  do {                              \
    WRITTEN();                      \
    _tile_loadd(0, (at), 64);       \
    _tile_loadd(1, (at) + 256, 64); \
    _tile_loadd(2, (at) + 512, 64); \
    _tile_loadd(3, (at) + 768, 64); \
  } while (0)
#define STORE_SUMS(at)               \
  do {                               \
    _tile_stored(0, (at), 64);       \
    _tile_stored(1, (at) + 256, 64); \
    _tile_stored(2, (at) + 512, 64); \
    _tile_stored(3, (at) + 768, 64); \
  } while (0)

// Two tiles of pixels, 4 and 5, by those of two halves of the channels, 6 and 7.
#define MULTIPLY_PIXELS()    \
  do {                       \
    _tile_dpbf16ps(0, 4, 6); \
    _tile_dpbf16ps(1, 4, 7); \
    _tile_dpbf16ps(2, 5, 6); \
    _tile_dpbf16ps(3, 5, 7); \
  } while (0)

// Where row `k`, column `c` of a matrix of 32 rows lies in a tile that is to be a second factor.
int paired_place(int k, int c) { return k / 2 * 32 + c * 2 + k % 2; }

// Two rows of 32 values interleaved, which is how the second factor of a tile product lies.
struct Interleave {
  __m512i lower, upper;
  Interleave() {
    alignas(64) uint16_t low[32], high[32];
    for (int i = 0; i < 16; i++) {
      low[2 * i] = i, low[2 * i + 1] = 32 + i;
      high[2 * i] = 16 + i, high[2 * i + 1] = 48 + i;
    }
    lower = _mm512_load_si512(low), upper = _mm512_load_si512(high);
  }
  __m512i low(__m512i a, __m512i b) const { return _mm512_permutex2var_epi16(a, lower, b); }
  __m512i high(__m512i a, __m512i b) const { return _mm512_permutex2var_epi16(a, upper, b); }
};

// Sixteen rows of sixteen 32-bit values, transposed: a tile at `out`.
void transpose(__m512i* r, bf16* out) {
  __m512i t[16];
  for (int i = 0; i < 8; i++) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]), r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]),
          r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int j = 0; j < 4; j++) {
    const __m512i a = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x88),
                  b = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xdd);
    const __m512i c = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x88),
                  d = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xdd);
    _mm512_store_si512(out + (0 + j) * 32, _mm512_shuffle_i32x4(a, c, 0x88));
    _mm512_store_si512(out + (4 + j) * 32, _mm512_shuffle_i32x4(b, d, 0x88));
    _mm512_store_si512(out + (8 + j) * 32, _mm512_shuffle_i32x4(a, c, 0xdd));
    _mm512_store_si512(out + (12 + j) * 32, _mm512_shuffle_i32x4(b, d, 0xdd));
  }
}

}  // namespace
