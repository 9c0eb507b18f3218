// One training step of a narrow SESR (32 or 64 features, 3x3 blocks with PReLU, both residuals, one
// colour) on CPUs with AMX: forward and backward of the whole network in bfloat16 with fp32 sums.
//
// A picture is kept as GROUPS planes of 32 channels, pixel by pixel (64 bytes each), with two pixels
// of noughts around it. In such a plane a tap of a kernel is a constant offset, so that a 3x3
// convolution is nine tile products a group, sixteen pixels at a time; what comes out between two
// rows is masked. The identity of the short residual is taken out of the kernels and added in fp32.

#include "space.h"

namespace {

using torch::Tensor;

int scale_of(int outputs) {
  TORCH_CHECK(outputs == 4 || outputs == 9 || outputs == 16, "one colour, x2 to x4");
  return outputs == 4 ? 2 : outputs == 9 ? 3 : 4;
}

// Where output `c` of a pixel lies in the enlarged picture.
size_t enlarged(const Space& s, int scale, int y, int column, int c) {
  return size_t(y * scale + c / scale) * s.width * scale + column * scale + c % scale;
}

const float* data(const Tensor& t) { return t.data_ptr<float>(); }

Tensor forward(Tensor x, Tensor w_first, Tensor b_first, std::vector<Tensor> w, std::vector<Tensor> b,
               std::vector<Tensor> slopes, Tensor w_last, Tensor b_last) {
  const int n = x.size(0), layers = w.size(), outputs = w_last.size(0), scale = scale_of(outputs);
  Space& s = space(x.size(2), x.size(3), layers);
  s.keep(n);
  Tensor result = torch::empty({n, 1, s.height * scale, s.width * scale});
  static bf16 *first = allocate<bf16>(GROUPS * 10 * TILE),
              *middle = allocate<bf16>(size_t(MOST_LAYERS) * GROUPS * GROUPS * KERNEL),
              *last = allocate<bf16>(GROUPS * 25 * TILE);
  for (int g = 0; g < GROUPS; g++)
    for (int c = 0; c < 16; c++) {
      for (int row = 0; row < 10; row++)  // a row of the 5x5 kernel, a half of the channels
        for (int k = 0; k < 32; k++)
          first[(g * 10 + row) * TILE + paired_place(k, c)] =
              k < 5 ? to_bf16(data(w_first)[(g * 32 + row % 2 * 16 + c) * 25 + row / 2 * 5 + k]) : 0;
      for (int tap = 0; tap < 25; tap++)
        for (int k = 0; k < 32; k++)
          last[(g * 25 + tap) * TILE + paired_place(k, c)] =
              c < outputs ? to_bf16(data(w_last)[(c * FEATURES + g * 32 + k) * 25 + tap]) : 0;
    }
  for (int l = 0; l < layers; l++)
    order_kernel(data(w[l]), middle + size_t(l) * GROUPS * GROUPS * KERNEL, false);
  configure_tiles();
  alignas(64) static float sums[1024];
  for (int patch = 0; patch < n; patch++) {
    const float* picture = data(x) + size_t(patch) * s.height * s.width;
    s.load_picture(picture);
    for (int g = 0; g < GROUPS; g++) {
      const Channels bias = load(data(b_first) + g * 32);
      bf16* kept = s.layer(patch, 0, g);
      for (int i = 0; i < s.count; i += 32) {
        CLEAR_SUMS();
        for (int dy = 0; dy < 5; dy++) {
          const bf16* tiles = first + (g * 10 + dy * 2) * TILE;
          _tile_loadd(6, tiles, 64);
          _tile_loadd(7, tiles + TILE, 64);
          for (const bf16* part : {s.picture, s.picture_rest}) {
            // Each row of a tile is a pixel and those after it: a row of the kernel at once.
            const bf16* a = part + s.first + i + (dy - 2) * s.pitch - 2;
            _tile_loadd(4, a, 2);
            _tile_loadd(5, a + 16, 2);
            MULTIPLY_PIXELS();
          }
        }
        STORE_SUMS(sums);
        for (int p = 0; p < 32; p++) {
          const Channels v = load_sums(sums, p) + bias;
          store(kept + size_t(i + p) * 32, v, s.mask[i + p]);
          store(s.one[g] + size_t(s.first + i + p) * 32, v, s.mask[i + p]);
        }
      }
    }
    bf16 **from = s.one, **to = s.other;
    for (int l = 0; l < layers; l++) {
      const bf16* x_groups[GROUPS];
      for (int g = 0; g < GROUPS; g++) x_groups[g] = from[g] + size_t(s.first) * 32;
      for (int g = 0; g < GROUPS; g++) {
        const Channels bias = load(data(b[l]) + g * 32), slope = load(data(slopes[l]) + g * 32);
        const bf16 *x_own = x_groups[g], *entry = s.layer(patch, 0, g);
        bf16 *kept = s.layer(patch, l + 1, g), *y = to[g] + size_t(s.first) * 32;
        const __mmask16* mask = s.mask.data();
        const auto run = [&](auto is_last) {
          convolve(s, x_groups, middle + size_t(l * GROUPS + g) * GROUPS * KERNEL,
                   [&](int p, Channels v) __attribute__((always_inline)) {
                     v = v + bias + load(x_own + size_t(p) * 32);
                     store(kept + size_t(p) * 32, v);
                     v = bend(v, not_positive(v), slope);
                     if (decltype(is_last)::value) v = v + load(entry + size_t(p) * 32);
                     store(y + size_t(p) * 32, v, mask[p]);
                   });
        };
        l == layers - 1 ? run(std::true_type{}) : run(std::false_type{});
      }
      std::swap(from, to);
    }
    float* out = result.data_ptr<float>() + size_t(patch) * s.height * s.width * outputs;
    for (int i = 0; i < s.count; i += 64) {
      CLEAR_SUMS();
      for (int g = 0; g < GROUPS; g++)
        for (int tap = 0; tap < 25; tap++) {
          const bf16* a = from[g] + size_t(s.first + i + (tap / 5 - 2) * s.pitch + tap % 5 - 2) * 32;
          _tile_loadd(6, last + (g * 25 + tap) * TILE, 64);
          _tile_loadd(4, a, 64);
          _tile_dpbf16ps(0, 4, 6);
          _tile_loadd(5, a + TILE, 64);
          _tile_dpbf16ps(1, 5, 6);
          _tile_loadd(4, a + 2 * TILE, 64);
          _tile_dpbf16ps(2, 4, 6);
          _tile_loadd(5, a + 3 * TILE, 64);
          _tile_dpbf16ps(3, 5, 6);
        }
      STORE_SUMS(sums);
      for (int p = 0; p < 64; p++) {
        if (!s.mask[i + p]) continue;
        const int y = (i + p) / s.pitch, column = (i + p) % s.pitch - 2;
        for (int c = 0; c < outputs; c++)
          out[enlarged(s, scale, y, column, c)] =
              sums[p * 16 + c] + data(b_last)[c] + picture[y * s.width + column];
      }
    }
  }
  _tile_release();
  return result;
}

// Gradients, in the order of `forward`'s parameters but layer by layer: first, then each block's
// kernel, bias and slopes, then last. Of the patches that `forward` had last.
std::vector<Tensor> backward(Tensor gradient, Tensor x, std::vector<Tensor> w, std::vector<Tensor> slopes,
                             Tensor w_last) {
  const int n = x.size(0), layers = w.size(), outputs = w_last.size(0), scale = scale_of(outputs);
  Space& s = space(x.size(2), x.size(3), layers);
  static const Interleave mix;
  constexpr size_t kernel_sums = GROUPS * GROUPS * 9 * 1024, last_count = GROUPS * 25 * 512,
                   first_count = GROUPS * 5 * 512;
  static bf16 *middle = allocate<bf16>(size_t(MOST_LAYERS) * GROUPS * GROUPS * KERNEL),
              *last = allocate<bf16>(GROUPS * 30 * TILE);
  static float *middle_sums = allocate<float>(MOST_LAYERS * kernel_sums),
               *last_sums = allocate<float>(last_count), *first_sums = allocate<float>(first_count),
               *bias_sums = allocate<float>((MOST_LAYERS + 1) * FEATURES),
               *slope_sums = allocate<float>((MOST_LAYERS + 1) * FEATURES);
  memset(middle_sums, 0, layers * kernel_sums * 4), memset(last_sums, 0, last_count * 4),
      memset(first_sums, 0, first_count * 4);
  memset(bias_sums, 0, (layers + 1) * FEATURES * 4), memset(slope_sums, 0, (layers + 1) * FEATURES * 4);
  float output_sums[16] = {};
  for (int l = 0; l < layers; l++)
    order_kernel(data(w[l]), middle + size_t(l) * GROUPS * GROUPS * KERNEL, true);
  // Of 16 outputs a pixel two neighbours fill a row: three products for the five taps of a row.
  for (int g = 0; g < GROUPS; g++)
    for (int row = 0; row < 30; row++)  // [dy][two of dx][half]
      for (int k = 0; k < 32; k++)
        for (int c = 0; c < 16; c++) {
          const int dx = row / 2 % 3 * 2 + k / 16, dy = row / 6, output = k % 16;
          last[(g * 30 + row) * TILE + paired_place(k, c)] =
              output < outputs && dx < 5
                  ? to_bf16(data(
                        w_last)[(output * FEATURES + g * 32 + row % 2 * 16 + c) * 25 + 24 - (dy * 5 + dx)])
                  : 0;
        }
  configure_tiles();
  alignas(64) static float sums[1024];
  const Channels none = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  const auto add_to = [](float* total, Channels v) { store(total, load(total) + v); };
  for (int patch = 0; patch < n; patch++) {
    s.load_picture(data(x) + size_t(patch) * s.height * s.width);
    const float* given = data(gradient) + size_t(patch) * s.height * s.width * outputs;
    for (int y = 0; y < s.height; y++)
      for (int column = 0; column < s.width; column++)
        for (int c = 0; c < outputs; c++) {
          const float value = given[enlarged(s, scale, y, column, c)];
          s.outputs[size_t(SLACK + (y + 2) * s.pitch + column + 2) * 16 + c] = to_bf16(value);
          output_sums[c] += value;
        }
    bf16 **here = s.one, **next = s.other;  // gradients of a layer's sums, and of those before it
    for (int g = 0; g < GROUPS; g++) {      // through the last layer and the last PReLU
      const Channels slope = load(data(slopes[layers - 1]) + g * 32);
      const bf16 *kept = s.layer(patch, layers, g), *entry = s.layer(patch, 0, g);
      Channels biases = none, slope_gradient = none;
      for (int i = 0; i < s.count; i += 32) {
        CLEAR_SUMS();
        for (int row = 0; row < 15; row++) {
          const bf16 *a = s.outputs + size_t(s.first + i + (row / 3 - 2) * s.pitch + 2 * (row % 3) - 2) * 16,
                     *tiles = last + (g * 30 + row * 2) * TILE;
          _tile_loadd(4, a, 32);
          _tile_loadd(5, a + 256, 32);
          _tile_loadd(6, tiles, 64);
          _tile_loadd(7, tiles + TILE, 64);
          MULTIPLY_PIXELS();
        }
        STORE_SUMS(sums);
        for (int p = 0; p < 32; p++) {
          const size_t at = size_t(i + p) * 32, plane = at + size_t(s.first) * 32;
          Channels v = masked(load_sums(sums, p), s.mask[i + p]);
          store(s.skipped[g] + at, v);
          const Channels z = load(kept + at);
          const Negative where = not_positive(z);
          slope_gradient = add_products(slope_gradient, where, v, z);
          store(s.input[g] + plane, bend(z, where, slope) + load(entry + at), s.mask[i + p]);
          v = bend(v, where, slope);
          biases = biases + v;
          store(here[g] + plane, v);
        }
      }
      add_to(bias_sums + layers * FEATURES + g * 32, biases),
          add_to(slope_sums + layers * FEATURES + g * 32, slope_gradient);
    }
    // The last kernel: outputs' gradients, pixels along the rows, times pairs of its input.
    for (int start = 0, done = 0; start < s.count; start += 32 * BLOCK) {
      const int end = start + 32 * BLOCK, needed = (end + 4 * s.pitch + 6) / 2;
      s.pair_up(done, needed, s.first - 2 * s.pitch - 2), done = needed;
      for (int i = start; i < end; i += 32) {
        __m512i rows[16];
        for (int k = 0; k < 16; k++) {
          const __m512i two = _mm512_loadu_si512(s.outputs + size_t(s.first + i + 2 * k) * 16);
          rows[k] = mix.low(two, _mm512_shuffle_i64x2(two, two, 0x4e));
        }
        transpose(rows, s.outputs_flipped + size_t(i) * 16);
      }
      for (int g = 0; g < GROUPS; g++)
        for (int tap = 0; tap < 25; tap += 2) {
          const bool two = tap + 1 < 25;
          const auto place = [&](int t) {
            return s.paired(g, 2 * s.pitch + 2 + (t / 5 - 2) * s.pitch + t % 5 - 2);
          };
          const bf16 *a = place(tap), *b = two ? place(tap + 1) : a;
          float *at = last_sums + (g * 25 + tap) * 512, *second = two ? at + 512 : sums;
          WRITTEN();
          _tile_loadd(0, at, 64);
          _tile_loadd(1, at + 256, 64);
          _tile_loadd(2, second, 64);
          _tile_loadd(3, second + 256, 64);
          for (int i = start; i < end; i += 32) {
            _tile_loadd(4, s.outputs_flipped + size_t(i) * 16, 64);
            _tile_loadd(6, a + size_t(i) * 32, 128);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, a + size_t(i) * 32 + 32, 128);
            _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(6, b + size_t(i) * 32, 128);
            _tile_dpbf16ps(2, 4, 6);
            _tile_loadd(7, b + size_t(i) * 32 + 32, 128);
            _tile_dpbf16ps(3, 4, 7);
          }
          _tile_stored(0, at, 64);
          _tile_stored(1, at + 256, 64);
          _tile_stored(2, second, 64);
          _tile_stored(3, second + 256, 64);
        }
    }
    for (int l = layers; l >= 1; l--) {
      const bf16* g_groups[GROUPS];
      for (int g = 0; g < GROUPS; g++) g_groups[g] = here[g] + size_t(s.first) * 32;
      for (int g = 0; g < GROUPS; g++) {  // the input's gradient, through the PReLU before it
        const Channels slope = l > 1 ? load(data(slopes[l - 2]) + g * 32) : none;
        const bf16 *kept = s.layer(patch, l - 1, g), *own = g_groups[g];
        const float* skipped = s.skipped[g];
        bf16 *to = next[g] + size_t(s.first) * 32, *input = s.input[g] + size_t(s.first) * 32;
        const __mmask16* mask = s.mask.data();
        Channels biases = none, slope_gradient = none;
        const auto run = [&](auto is_first) {
          convolve(s, g_groups, middle + size_t((l - 1) * GROUPS + g) * GROUPS * KERNEL,
                   [&](int p, Channels v) __attribute__((always_inline)) {
                     const size_t at = size_t(p) * 32;
                     v = masked(v + load(own + at), mask[p]);
                     const Channels z = load(kept + at);
                     if (decltype(is_first)::value) {
                       store(input + at, z, mask[p]);
                       v = v + load(skipped + at);
                     } else {
                       const Negative where = not_positive(z);
                       slope_gradient = add_products(slope_gradient, where, v, z);
                       store(input + at, bend(z, where, slope), mask[p]);
                       v = bend(v, where, slope);
                     }
                     biases = biases + v;
                     store(to + at, v);
                   });
        };
        l == 1 ? run(std::true_type{}) : run(std::false_type{});
        add_to(bias_sums + (l - 1) * FEATURES + g * 32, biases),
            add_to(slope_sums + (l - 1) * FEATURES + g * 32, slope_gradient);
      }
      const char* ahead =
          reinterpret_cast<const char*>(s.layer(patch, std::max(l - 2, 0), 0));  // what comes next, from far
      const char* ahead_end = ahead + (l > 1 ? size_t(s.count) * FEATURES * 2 : 0);
      for (int start = 0, done = 0; start < s.count; start += 32 * BLOCK) {  // the kernel's gradient
        const int end = start + 32 * BLOCK, needed = (end + 2 * s.pitch + 4) / 2;
        s.pair_up(done, needed, s.first - s.pitch - 2), done = needed;
        for (int to = 0; to < GROUPS; to++) {
          for (int i = start; i < end; i += 32) {
            __m512i low[16], high[16];
            const bf16* g = g_groups[to] + size_t(i) * 32;
            for (int k = 0; k < 16; k++) {
              const __m512i a = _mm512_load_si512(g + 2 * k * 32),
                            b = _mm512_load_si512(g + (2 * k + 1) * 32);
              low[k] = mix.low(a, b), high[k] = mix.high(a, b);
            }
            bf16* flipped = s.flipped + size_t(i - start) * 32;
            transpose(low, flipped), transpose(high, flipped + TILE);
          }
          for (int from = 0; from < GROUPS; from++)
            for (int tap = 0; tap < 9; tap++) {
              float* total =
                  middle_sums + (l - 1) * kernel_sums + size_t((to * GROUPS + from) * 9 + tap) * 1024;
              const bf16* pairs = s.paired(from, s.pitch + 2 + (tap / 3 - 1) * s.pitch + tap % 3 - 1);
              LOAD_SUMS(total);
              for (int i = start; i < end; i += 32) {
                const bf16 *a = s.flipped + size_t(i - start) * 32, *b = pairs + size_t(i) * 32;
                for (int line = 0; line < 4 && ahead < ahead_end; line++, ahead += 64)
                  _mm_prefetch(ahead, _MM_HINT_T1);
                _tile_loadd(4, a, 64);
                _tile_loadd(6, b, 128);
                _tile_dpbf16ps(0, 4, 6);
                _tile_loadd(7, b + 32, 128);
                _tile_dpbf16ps(1, 4, 7);
                _tile_loadd(5, a + TILE, 64);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
              }
              STORE_SUMS(total);
            }
        }
      }
      std::swap(here, next);
    }
    for (int g = 0; g < GROUPS; g++) {  // the first kernel: shifted pictures times pairs of gradients
      for (int i = 0; i < s.count; i += 32)
        for (int k = 0; k < 16; k++) {
          const bf16* pixel = here[g] + size_t(s.first + i + 2 * k) * 32;
          const __m512i a = _mm512_load_si512(pixel), b = _mm512_load_si512(pixel + 32);
          bf16* pair = s.flipped + size_t(i) * 32 + k * 32;
          _mm512_store_si512(pair, mix.low(a, b)), _mm512_store_si512(pair + TILE, mix.high(a, b));
        }
      for (int dy = 0; dy < 5; dy++) {
        float* at = first_sums + (g * 5 + dy) * 512;
        WRITTEN();
        _tile_loadd(0, at, 64);
        _tile_loadd(1, at + 256, 64);
        for (int i = 0; i < s.count; i += 32) {
          const bf16* pairs = s.flipped + size_t(i) * 32;
          _tile_loadd(4, s.picture + s.first + i + (dy - 2) * s.pitch - 2, 2);
          _tile_loadd(6, pairs, 64);
          _tile_dpbf16ps(0, 4, 6);
          _tile_loadd(7, pairs + TILE, 64);
          _tile_dpbf16ps(1, 4, 7);
        }
        _tile_stored(0, at, 64);
        _tile_stored(1, at + 256, 64);
      }
    }
  }
  _tile_release();
  std::vector<Tensor> result;
  const auto vector = [](const float* values, int count) {
    return torch::from_blob(const_cast<float*>(values), {count}).clone();
  };
  Tensor first = torch::empty({FEATURES, 1, 5, 5});
  for (int c = 0; c < FEATURES; c++)
    for (int tap = 0; tap < 25; tap++)
      first.data_ptr<float>()[c * 25 + tap] =
          first_sums[(c / 32 * 5 + tap / 5) * 512 + c % 32 / 16 * 256 + tap % 5 * 16 + c % 16];
  result.push_back(first), result.push_back(vector(bias_sums, FEATURES));
  for (int l = 0; l < layers; l++) {
    Tensor kernel = torch::empty({FEATURES, FEATURES, 3, 3});
    for (int to = 0; to < FEATURES; to++)
      for (int from = 0; from < FEATURES; from++)
        for (int tap = 0; tap < 9; tap++)
          kernel.data_ptr<float>()[(to * FEATURES + from) * 9 + tap] =
              middle_sums[l * kernel_sums + size_t((to / 32 * GROUPS + from / 32) * 9 + tap) * 1024 +
                          to % 32 / 16 * 512 + from % 32 / 16 * 256 + to % 16 * 16 + from % 16];
    result.push_back(kernel), result.push_back(vector(bias_sums + (l + 1) * FEATURES, FEATURES));
    result.push_back(vector(slope_sums + (l + 1) * FEATURES, FEATURES));
  }
  Tensor kernel = torch::empty({outputs, FEATURES, 5, 5});
  for (int c = 0; c < outputs; c++)
    for (int from = 0; from < FEATURES; from++)
      for (int tap = 0; tap < 25; tap++)
        kernel.data_ptr<float>()[(c * FEATURES + from) * 25 + tap] =
            last_sums[(from / 32 * 25 + tap) * 512 + from % 32 / 16 * 256 + c * 16 + from % 16];
  result.push_back(kernel), result.push_back(vector(output_sums, outputs));
  return result;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.def("forward", &forward);
  module.def("backward", &backward);
}
