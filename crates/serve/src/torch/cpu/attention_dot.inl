// Attention in bf16 by products of pairs: queries and weights are rounded to bf16 too, sums stay in f32.

// Lines of a product that registers hold sums for, beside four vectors.
constexpr int kDotLines = 6;

// Two vectors of 16-bit elements become pairs (left[i], right[i]): those of the lower halves, and of the upper ones.
static inline __m512i lower_pairs(__m512i left, __m512i right) {
  const __m512i places = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6,
                                          37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  return _mm512_permutex2var_epi16(left, places, right);
}

static inline __m512i upper_pairs(__m512i left, __m512i right) {
  const __m512i places = _mm512_set_epi16(63, 31, 62, 30, 61, 29, 60, 28, 59, 27, 58, 26, 57, 25, 56, 24, 55, 23, 54,
                                          22, 53, 21, 52, 20, 51, 19, 50, 18, 49, 17, 48, 16);
  return _mm512_permutex2var_epi16(left, places, right);
}

// Elements i and i + 1 of 16 keys, in pairs.
static inline __m512i key_pairs(const BFloat16* keys, int64_t i, int64_t stride) {
  const __m256i left = _mm256_loadu_si256((const __m256i*)(keys + i * stride));
  const __m256i right = _mm256_loadu_si256((const __m256i*)(keys + (i + 1) * stride));
  return lower_pairs(_mm512_castsi256_si512(left), _mm512_castsi256_si512(right));
}

// Scores of L lines with T vectors of keys: lines [L, width], keys as pages have them or [width / 2, kPanel] pairs.
template <int L, int T, bool Paired>
static inline void score_pairs(const BFloat16* lines, int64_t width, const BFloat16* const* keys, int64_t stride,
                               float* scores) {
  __m512 sums[L][T];
#pragma GCC unroll 6
  for (int l = 0; l < L; ++l) {
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) sums[l][t] = _mm512_setzero_ps();
  }
  for (int64_t i = 0; i < width; i += 2) {
    __m512i pairs[T];
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) {
      pairs[t] = Paired ? _mm512_loadu_si512(keys[t] + i * kPanel) : key_pairs(keys[t], i, stride);
    }
#pragma GCC unroll 6
    for (int l = 0; l < L; ++l) {
      const __m512i query = splat_word((const char*)(lines + l * width + i));
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) sums[l][t] = _mm512_dpbf16_ps(sums[l][t], (__m512bh)query, (__m512bh)pairs[t]);
    }
  }
#pragma GCC unroll 6
  for (int l = 0; l < L; ++l) {
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) _mm512_storeu_ps(scores + l * kPanel + t * kLanes, sums[l][t]);
  }
}

template <int L, bool Paired>
static inline void score_block(int64_t lines, const BFloat16* from, int64_t width, const BFloat16* const* keys,
                               int64_t stride, int64_t vectors, float* to) {
  if constexpr (L > 1) {
    if (lines < L) return score_block<L - 1, Paired>(lines, from, width, keys, stride, vectors, to);
  }
  switch (vectors) {
    case 1: return score_pairs<L, 1, Paired>(from, width, keys, stride, to);
    case 2: return score_pairs<L, 2, Paired>(from, width, keys, stride, to);
    case 3: return score_pairs<L, 3, Paired>(from, width, keys, stride, to);
    default: return score_pairs<L, 4, Paired>(from, width, keys, stride, to);
  }
}

// Half as many pairs of neighbouring tokens' values as there are tokens, each [32]; what is not there is zero.
struct ValuePairs {
  const BFloat16* rows[kPanel];
  int64_t count;

  inline void read(int64_t pair, int64_t at, __mmask32 some, __m512i* to) const {
    const __m512i left = _mm512_maskz_loadu_epi16(some, rows[2 * pair] + at);
    const bool both = 2 * pair + 1 < count;
    const __m512i right = both ? _mm512_maskz_loadu_epi16(some, rows[2 * pair + 1] + at) : _mm512_setzero_si512();
    to[0] = lower_pairs(left, right);
    to[1] = upper_pairs(left, right);
  }
};

// out [L, stride] += weights [L, kPanel] times values, C times 32 of each row.
template <int L, int C>
static inline void weigh_pairs(const BFloat16* weights, const ValuePairs& values, int64_t at, __mmask32 some,
                               int64_t stride, float* out) {
  __m512 sums[L][2 * C];
#pragma GCC unroll 6
  for (int l = 0; l < L; ++l) {
#pragma GCC unroll 4
    for (int c = 0; c < 2 * C; ++c) sums[l][c] = _mm512_loadu_ps(out + l * stride + at + c * kLanes);
  }
  for (int64_t pair = 0; 2 * pair < values.count; ++pair) {
    __m512i pairs[2 * C];
#pragma GCC unroll 2
    for (int c = 0; c < C; ++c) values.read(pair, at + 32 * c, some, pairs + 2 * c);
#pragma GCC unroll 6
    for (int l = 0; l < L; ++l) {
      const __m512i weight = splat_word((const char*)(weights + l * kPanel + 2 * pair));
#pragma GCC unroll 4
      for (int c = 0; c < 2 * C; ++c) sums[l][c] = _mm512_dpbf16_ps(sums[l][c], (__m512bh)weight, (__m512bh)pairs[c]);
    }
  }
#pragma GCC unroll 6
  for (int l = 0; l < L; ++l) {
#pragma GCC unroll 4
    for (int c = 0; c < 2 * C; ++c) _mm512_storeu_ps(out + l * stride + at + c * kLanes, sums[l][c]);
  }
}

template <int L>
static inline void weigh_block(int64_t lines, const BFloat16* weights, const ValuePairs& values, int64_t width,
                               float* out) {
  if constexpr (L > 1) {
    if (lines < L) return weigh_block<L - 1>(lines, weights, values, width, out);
  }
  const int64_t stride = padded(width);
  int64_t at = 0;
  for (; at + 64 <= width; at += 64) weigh_pairs<L, 2>(weights, values, at, 0xffffffff, stride, out);
  for (; at < width; at += 32) {
    const __mmask32 some = width - at >= 32 ? 0xffffffff : (1u << (width - at)) - 1;
    weigh_pairs<L, 1>(weights, values, at, some, stride, out);
  }
}

template <>
struct Panels<BFloat16> {
  static inline void read_queries(const AttentionTask& task, const Scratch& scratch) {
    const int64_t row = task.group * task.width;
    auto* to = (BFloat16*)scratch.queries;
    for (int64_t r = 0; r < task.rows; ++r, to += row) {
      const float* from = task.queries + r * task.query_stride;
      for (int64_t at = 0; at < row; at += kLanes) store_upto(to + at, load_upto(from + at, row - at), row - at);
    }
  }

  // e^x for x up to 0, to about 1e-4 of itself: finer than a weight in bf16 is. Zero below -104.
  static inline Vector exponential(Vector x) {
    const __m512 above = _mm512_max_ps(_mm512_set1_ps(-120.0f), (__m512)x);
    const __m512 scale = _mm512_set1_ps(1.44269504f);
    const __m512 whole = _mm512_roundscale_ps(_mm512_mul_ps(above, scale), 0);
    const Vector part = (Vector)_mm512_fmsub_ps(above, scale, whole);
    Vector power = splat(0.05550411f);
    power = power * part + splat(0.2402265f);
    power = power * part + splat(0.69314718f);
    power = power * part + splat(1.0f);
    return (Vector)_mm512_scalef_ps((__m512)power, whole);
  }

  static inline void score(const AttentionTask& task, int64_t lines, int64_t start, int64_t vectors,
                           const Scratch& scratch) {
    const BFloat16* keys[kPanel / kLanes];
    for (int64_t vector = 0; vector < vectors; ++vector) {
      const int64_t position = start + vector * kLanes;
      keys[vector] = page<BFloat16>(task.keys, task, position) + position % task.block_size;
    }
    const auto* queries = (const BFloat16*)scratch.queries;
    if (lines <= kDotLines) {
      return score_block<kDotLines, false>(lines, queries, task.width, keys, task.block_size, vectors,
                                           scratch.scores);
    }
    // Many lines: pair the keys once.
    auto* paired = (BFloat16*)scratch.keys;
    for (int64_t vector = 0; vector < vectors; ++vector) {
      for (int64_t i = 0; i < task.width; i += 2) {
        _mm512_storeu_si512(paired + i * kPanel + vector * 2 * kLanes, key_pairs(keys[vector], i, task.block_size));
      }
      keys[vector] = paired + vector * 2 * kLanes;
    }
    for (int64_t line = 0; line < lines; line += kDotLines) {
      const int64_t left = lines - line;
      score_block<kDotLines, true>(left < kDotLines ? left : kDotLines, queries + line * task.width, task.width, keys,
                                   0, vectors, scratch.scores + line * kPanel);
    }
  }

  static inline void weigh(const AttentionTask& task, int64_t lines, int64_t start, int64_t count,
                           const Scratch& scratch) {
    ValuePairs values;
    values.count = count;
    for (int64_t i = 0; i < count; ++i) {
      values.rows[i] =
          page<BFloat16>(task.values, task, start + i) + (start + i) % task.block_size * task.width;
    }
    for (int64_t line = 0; line < lines; line += kDotLines) {
      const int64_t left = lines - line;
      const int64_t taken = left < kDotLines ? left : kDotLines;
      BFloat16 weights[kDotLines * kPanel];
      for (int64_t at = 0; at < taken * kPanel; at += 2 * kLanes) {
        const float* from = scratch.scores + line * kPanel + at;
        const auto rounded = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + kLanes), _mm512_loadu_ps(from));
        _mm512_storeu_si512(weights + at, (__m512i)rounded);
      }
      weigh_block<kDotLines>(taken, weights, values, task.width, scratch.out + line * padded(task.width));
    }
  }
};
