// Where a patch's planes lie, and 3x3 convolutions of them.

#pragma once

#include <sys/mman.h>

#include <vector>

#include "tiles.h"

namespace {

// -- memory ----------------------------------------------------------------------------------------

// Noughts, aligned, never given back. Each begins elsewhere in its page, or planes would share cache sets.
template <class T>
T* allocate(size_t count) {
  static size_t shift = 0;
  constexpr size_t page = 2 << 20;
  shift = (shift + 1088) % 4096 / 64 * 64;
  const size_t bytes = (count * sizeof(T) + 4096 + page - 1) / page * page;
  char* memory = static_cast<char*>(aligned_alloc(page, bytes));
  TORCH_CHECK(memory != nullptr, "out of memory");
  madvise(memory, bytes, MADV_HUGEPAGE);
  memset(memory, 0, bytes);
  return reinterpret_cast<T*>(memory + shift);
}

// One patch's planes and their geometry: `pitch` positions a row, `count` positions from the first
// pixel's row on (whole chunks), `first` where those begin.
struct Space {
  int height, width, pitch, count, first, layers;
  std::vector<__mmask16> mask;
  bf16 *one[GROUPS], *other[GROUPS], *input[GROUPS], *even[GROUPS], *odd[GROUPS];
  float* skipped[GROUPS];  // gradient that the long residual carries
  bf16 *picture, *picture_rest, *flipped, *outputs, *outputs_flipped;
  bf16* kept = nullptr;  // of each patch the first layer's output and each layer's before its PReLU
  int64_t patches = 0;

  Space(int height, int width, int layers)
      : height(height), width(width), pitch(width + 4), first(SLACK + 2 * pitch), layers(layers) {
    constexpr int whole = 32 * BLOCK;
    count = (height * pitch + whole - 1) / whole * whole;
    for (int i = 0; i < count; i++) {
      const int column = i % pitch;
      mask.push_back(i < height * pitch && column >= 2 && column < width + 2 ? 0xffff : 0);
    }
    const size_t plane = count + 4 * pitch + 2 * SLACK;
    for (int g = 0; g < GROUPS; g++) {
      one[g] = allocate<bf16>(plane * 32), other[g] = allocate<bf16>(plane * 32),
      input[g] = allocate<bf16>(plane * 32);
      even[g] = allocate<bf16>(plane * 32), odd[g] = allocate<bf16>(plane * 32);
      skipped[g] = allocate<float>(size_t(count) * 32);
    }
    picture = allocate<bf16>(plane), picture_rest = allocate<bf16>(plane);
    flipped = allocate<bf16>(size_t(count) * 32);
    outputs = allocate<bf16>(plane * 16), outputs_flipped = allocate<bf16>(size_t(count) * 16);
  }

  size_t values() const { return size_t(layers + 1) * count * FEATURES; }

  void keep(int64_t n) {
    if (n > patches) kept = allocate<bf16>(n * values()), patches = n;
  }

  bf16* layer(int64_t patch, int number, int group) const {
    return kept + patch * values() + size_t(number * GROUPS + group) * count * 32;
  }

  // The picture in two bf16, which together hold its 8 bits and more.
  void load_picture(const float* x) {
    for (int y = 0; y < height; y++)
      for (int column = 0; column < width; column++) {
        const float value = x[y * width + column];
        const int at = SLACK + (y + 2) * pitch + column + 2;
        picture[at] = to_bf16(value), picture_rest[at] = to_bf16(value - to_float(picture[at]));
      }
  }

  // Pairs of neighbouring pixels of `input`, interleaved, `from` being the first pixel of pair 0:
  // `even` has (0, 1), (2, 3), ..., `odd` (1, 2), (3, 4), ...
  void pair_up(int begin, int end, int from) {
    static const Interleave mix;
    for (int g = 0; g < GROUPS; g++) {
      const auto* x = reinterpret_cast<const __m512i*>(input[g] + size_t(from) * 32);
      __m512i a = x[2 * begin];
      for (int k = begin; k < end; k++) {
        const __m512i b = x[2 * k + 1], c = x[2 * k + 2];
        bf16 *e = even[g] + size_t(k) * 64, *o = odd[g] + size_t(k) * 64;
        _mm512_store_si512(e, mix.low(a, b)), _mm512_store_si512(e + 32, mix.high(a, b));
        _mm512_store_si512(o, mix.low(b, c)), _mm512_store_si512(o + 32, mix.high(b, c));
        a = c;
      }
    }
  }

  // Where the pairs that begin at pixel `at` (of those of `pair_up`) lie; rows are 128 bytes apart.
  const bf16* paired(int group, int at) const {
    return at % 2 == 0 ? even[group] + size_t(at / 2) * 64 : odd[group] + size_t((at - 1) / 2) * 64;
  }
};

Space& space(int height, int width, int layers) {
  static Space* current = nullptr;
  TORCH_CHECK(width % 2 == 0, "patches of an even width");
  TORCH_CHECK(layers <= MOST_LAYERS, "at most 16 blocks");
  if (!current || current->height != height || current->width != width || current->layers != layers)
    current = new Space(height, width, layers);
  return *current;
}

// -- convolutions ----------------------------------------------------------------------------------

// Kernels [out][in][9] as tiles [to group][from group][tap][half of 16], the identity taken out;
// turned and with in and out changed over for gradients.
void order_kernel(const float* w, bf16* tiles, bool for_gradients) {
  for (int to = 0; to < GROUPS; to++)
    for (int from = 0; from < GROUPS; from++, tiles += KERNEL)
      for (int tap = 0; tap < 9; tap++)
        for (int half = 0; half < 2; half++)
          for (int k = 0; k < 32; k++)
            for (int c = 0; c < 16; c++) {
              const int target = to * 32 + half * 16 + c, source = from * 32 + k;
              float value = for_gradients ? w[(source * FEATURES + target) * 9 + 8 - tap]
                                          : w[(target * FEATURES + source) * 9 + tap];
              if (tap == 4 && target == source) value -= 1;
              tiles[(tap * 2 + half) * TILE + paired_place(k, c)] = to_bf16(value);
            }
}

// 3x3 from all groups to one: `finish(pixel, sums)` gets each pixel with its 32 sums, those of one
// chunk while the next is multiplied.
template <class Finish>
inline __attribute__((always_inline)) void convolve(const Space& s, const bf16* const* x, const bf16* tiles,
                                                    Finish finish) {
  alignas(64) static float sums[2][1024];
  for (int i = 0, turn = 0; i <= s.count; i += 32, turn ^= 1) {
    const float* before = sums[turn ^ 1];
    if (i == s.count) {
      for (int p = 0; p < 32; p++) finish(i - 32 + p, load_sums(before, p));
      break;
    }
    CLEAR_SUMS();
    for (int g = 0; g < GROUPS; g++) {
#pragma GCC unroll 9
      for (int tap = 0; tap < 9; tap++) {
        const bf16* a = x[g] + (ptrdiff_t(i) + (tap / 3 - 1) * s.pitch + tap % 3 - 1) * 32;
        const bf16* b = tiles + g * KERNEL + tap * 2 * TILE;
        _tile_loadd(4, a, 64);
        _tile_loadd(6, b, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, a + TILE, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_loadd(7, b + TILE, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
        if (i && g == 0 && tap < 8) {
#pragma GCC unroll 4
          for (int p = 4 * tap; p < 4 * tap + 4; p++) finish(i - 32 + p, load_sums(before, p));
        }
      }
    }
    STORE_SUMS(sums[turn]);
  }
}

}  // namespace
