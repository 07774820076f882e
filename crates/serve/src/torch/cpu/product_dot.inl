// Products by instructions that multiply neighbouring elements and add them up: pairs of bf16, and fours of int8.

static inline __m512i splat_word(const char* from) {
  int32_t word;
  memcpy(&word, from, sizeof word);
  return _mm512_set1_epi32(word);
}

// Rows of bf16, as they are.
template <>
struct Product<BFloat16> {
  static constexpr int kRows = 12;

  static inline void prepare(const BFloat16* x, int64_t inputs, char* out) { memcpy(out, x, inputs * sizeof *x); }

  template <int R>
  static inline void multiply(const char* operands, int64_t inputs, const void* panel, float* tile) {
    const int64_t stride = operand_stride(inputs);
    const char* weights = (const char*)panel;
    __m512 sums[R][2];
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) sums[r][0] = sums[r][1] = _mm512_setzero_ps();
    for (int64_t at = 0; at < inputs * 2; at += 4, weights += kPanelOutputs * 4) {
      const auto left = (__m512bh)_mm512_loadu_si512(weights);
      const auto right = (__m512bh)_mm512_loadu_si512(weights + 64);
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
        const auto x = (__m512bh)splat_word(operands + r * stride + at);
        sums[r][0] = _mm512_dpbf16_ps(sums[r][0], x, left);
        sums[r][1] = _mm512_dpbf16_ps(sums[r][1], x, right);
      }
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      _mm512_storeu_ps(tile + r * kPanelOutputs, sums[r][0]);
      _mm512_storeu_ps(tile + r * kPanelOutputs + 16, sums[r][1]);
    }
  }
};

// Adds fours of bytes, those of `x` without a sign, times those of `weights`. GCC 12 copies sums around its own
// intrinsic, more than it computes.
static inline void add_fours(__m512i& sums, __m512i x, __m512i weights) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(x), "v"(weights));
}

// Rows of 16-bit numbers of a scale for each row, their upper bytes and then their lower ones: with that, what is
// lost by rounding x is nothing beside what is lost by rounding weights.
template <>
struct Product<Int8> {
  static constexpr int kRows = 4;

  template <class E>
  static inline void prepare(const E* x, int64_t inputs, char* out) {
    Vector most = {}, broken = {};
    for (int64_t at = 0; at < inputs; at += kLanes) {
      const Vector values = load_upto(x + at, inputs - at);
      most = greater(greater(values, -values), most);
      broken += values - values;  // NaN, where a value is not finite
    }
    const float largest = greatest_of(most);
    const float factor = largest > 0.0f ? 32767.0f / largest : 0.0f;
    for (int64_t at = 0; at < inputs; at += kLanes) {
      const Vector values = load_upto(x + at, inputs - at);
      const __m512i whole = _mm512_cvtps_epi32((__m512)(values * splat(factor)));
      const __m512i shifted = _mm512_add_epi32(whole, _mm512_set1_epi32(32768));
      const __mmask16 some = (__mmask16)(inputs - at >= kLanes ? 0xffff : (1 << (inputs - at)) - 1);
      _mm512_mask_cvtepi32_storeu_epi8(out + at, some, _mm512_srli_epi32(shifted, 8));
      _mm512_mask_cvtepi32_storeu_epi8(out + inputs + at, some, shifted);
    }
    const float scale = largest / 32767.0f + sum_of(broken);
    memcpy(out + 2 * inputs, &scale, sizeof scale);
  }

  template <int R>
  static inline void multiply(const char* operands, int64_t inputs, const void* panel, float* tile) {
    const int64_t stride = operand_stride(inputs);
    const char* weights = (const char*)panel;
    __m512i sums[R][4] = {};  // of upper bytes with both vectors of weights, then of lower ones
    for (int64_t at = 0; at < inputs; at += 4, weights += kPanelOutputs * 4) {
      const __m512i left = _mm512_loadu_si512(weights);
      const __m512i right = _mm512_loadu_si512(weights + 64);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const __m512i high = splat_word(operands + r * stride + at);
        const __m512i low = splat_word(operands + r * stride + inputs + at);
        add_fours(sums[r][0], high, left);
        add_fours(sums[r][1], high, right);
        add_fours(sums[r][2], low, left);
        add_fours(sums[r][3], low, right);
      }
    }
    // `weights` has come to the scales, and sums of weights follow those.
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      float scale;
      memcpy(&scale, operands + r * stride + 2 * inputs, sizeof scale);
      rescale(sums[r][0], sums[r][2], weights, scale, tile + r * kPanelOutputs);
      rescale(sums[r][1], sums[r][3], weights + 64, scale, tile + r * kPanelOutputs + 16);
    }
  }

 private:
  // Sums with upper and with lower bytes become one. Upper bytes were shifted by 128.
  static inline void rescale(__m512i upper, __m512i lower, const char* scales, float scale, float* to) {
    const __m512i shift = _mm512_slli_epi32(_mm512_loadu_si512(scales + kPanelOutputs * 4), 7);
    const Vector high = (Vector)_mm512_cvtepi32_ps(_mm512_sub_epi32(upper, shift));
    const Vector low = (Vector)_mm512_cvtepi32_ps(lower);
    store(to, (high * splat(256.0f) + low) * (load((const float*)scales) * splat(scale)));
  }
};
