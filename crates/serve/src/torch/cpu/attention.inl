// Attention of some query rows over pages, in place: softmax corrected panel by panel (Milakov and Gimelshein 2018,
// arXiv:1805.02867; Dao et al. 2022, arXiv:2205.14135), sums in f32. The queries of a group are lines of one
// matrix, so each key and value is read once for all of them.

// What registers hold: lines of scores, and lines of sums of values.
constexpr int kScoreLines = kLanes == 16 ? 8 : 4;
constexpr int kValueLines = kLanes == 16 ? 4 : 2;
constexpr int kValueVectors = 4;

// Scores of L lines with T vectors of keys: lines [L, width], keys [width, stride].
template <int L, int T, class E>
static inline void score(const float* lines, int64_t width, const E* const* keys, int64_t stride, float* scores) {
  Vector sums[L][T] = {};
  for (int64_t i = 0; i < width; ++i) {
    Vector key[T];
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) key[t] = load(keys[t] + i * stride);
#pragma GCC unroll 8
    for (int l = 0; l < L; ++l) {
      const Vector query = splat(lines[l * width + i]);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) sums[l][t] += query * key[t];
    }
  }
#pragma GCC unroll 8
  for (int l = 0; l < L; ++l) {
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) store(scores + l * kPanel + t * kLanes, sums[l][t]);
  }
}

template <int T, class E>
static inline void score_lines(int64_t lines, const float* queries, int64_t width, const E* const* keys,
                               int64_t stride, float* scores) {
  for (int64_t line = 0; line < lines;) {
    const float* from = queries + line * width;
    float* to = scores + line * kPanel;
    const int64_t left = lines - line;
    const int64_t taken = left < kScoreLines ? left : kScoreLines;
    switch (taken) {
      case 1: score<1, T>(from, width, keys, stride, to); break;
      case 2: score<2, T>(from, width, keys, stride, to); break;
      case 3: score<3, T>(from, width, keys, stride, to); break;
      case 4: score<4, T>(from, width, keys, stride, to); break;
      case 5: score<5, T>(from, width, keys, stride, to); break;
      case 6: score<6, T>(from, width, keys, stride, to); break;
      case 7: score<7, T>(from, width, keys, stride, to); break;
      default: score<8, T>(from, width, keys, stride, to); break;
    }
    line += taken;
  }
}

// out [L, stride] += weights [L, kPanel] times values [count, stride], T vectors of each row.
template <int L, int T>
static inline void weigh(const float* weights, int64_t count, const float* values, int64_t stride, float* out) {
  Vector sums[L][T];
#pragma GCC unroll 8
  for (int l = 0; l < L; ++l) {
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) sums[l][t] = load(out + l * stride + t * kLanes);
  }
  for (int64_t i = 0; i < count; ++i) {
    Vector value[T];
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) value[t] = load(values + i * stride + t * kLanes);
#pragma GCC unroll 8
    for (int l = 0; l < L; ++l) {
      const Vector weight = splat(weights[l * kPanel + i]);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) sums[l][t] += weight * value[t];
    }
  }
#pragma GCC unroll 8
  for (int l = 0; l < L; ++l) {
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) store(out + l * stride + t * kLanes, sums[l][t]);
  }
}

template <int L>
static inline void weigh_row(const float* weights, int64_t count, const float* values, int64_t stride, float* out) {
  int64_t at = 0;
  for (; at + kValueVectors * kLanes <= stride; at += kValueVectors * kLanes) {
    weigh<L, kValueVectors>(weights, count, values + at, stride, out + at);
  }
  for (; at < stride; at += kLanes) weigh<L, 1>(weights, count, values + at, stride, out + at);
}

static inline void weigh_lines(int64_t lines, const float* weights, int64_t count, const float* values,
                               int64_t stride, float* out) {
  for (int64_t line = 0; line < lines;) {
    const int64_t left = lines - line;
    const int64_t taken = left < kValueLines ? left : kValueLines;
    const float* from = weights + line * kPanel;
    float* to = out + line * stride;
    switch (taken) {
      case 1: weigh_row<1>(from, count, values, stride, to); break;
      case 2: weigh_row<2>(from, count, values, stride, to); break;
      case 3: weigh_row<3>(from, count, values, stride, to); break;
      default: weigh_row<4>(from, count, values, stride, to); break;
    }
    line += taken;
  }
}

// The parts of a task's scratch.
struct Scratch {
  float* queries;   // [lines, width]
  float* scores;    // [lines, kPanel], later weights
  float* out;       // [lines, padded(width)]
  float* sums;      // [lines, 16], of which a vector is used
  float* greatest;  // [lines]
  float* keys;      // [width, kPanel]
  float* values;    // [kPanel, padded(width)]

  Scratch(const AttentionTask& task, int64_t lines) {
    queries = task.scratch;
    scores = queries + padded(lines * task.width);
    out = scores + lines * kPanel;
    sums = out + lines * padded(task.width);
    greatest = sums + lines * 16;
    keys = greatest + padded(lines);
    values = keys + kPanel * padded(task.width);
  }
};

// Scores of keys a line must not see become minus infinity: those after its own position, and those that its
// window has left behind.
static inline void hide(const AttentionTask& task, int64_t lines, int64_t start, int64_t vectors, float* scores) {
  Integers places;
  for (int32_t i = 0; i < kLanes; ++i) places[i] = i;
  for (int64_t line = 0; line < lines; ++line) {
    const int64_t position = task.first + line / task.group;
    const int64_t least = task.window > 0 ? position - task.window + 1 : 0;
    for (int64_t vector = 0; vector < vectors; ++vector) {
      float* at = scores + line * kPanel + vector * kLanes;
      const int64_t base = start + vector * kLanes;
      const Integers hidden = (places > splat((int32_t)(position - base))) | (places < splat((int32_t)(least - base)));
      store(at, hidden ? splat(-INFINITY) : load(at));
    }
  }
}

template <class E>
static inline const E* page(const void* cache, const AttentionTask& task, int64_t position) {
  return (const E*)cache + task.pages[position / task.block_size] * task.page_stride;
}

// Scores of all lines with the keys from `start` on.
template <class E>
static inline void score_panel(const AttentionTask& task, int64_t lines, int64_t start, int64_t vectors,
                               const Scratch& scratch) {
  const E* keys[kPanel / kLanes];
  for (int64_t vector = 0; vector < vectors; ++vector) {
    const int64_t position = start + vector * kLanes;
    keys[vector] = page<E>(task.keys, task, position) + position % task.block_size;
  }
  if (lines <= kScoreLines) {
    int64_t vector = 0;
    for (; vector + 2 <= vectors; vector += 2) {
      score_lines<2>(lines, scratch.queries, task.width, keys + vector, task.block_size,
                     scratch.scores + vector * kLanes);
    }
    if (vector < vectors) {
      score_lines<1>(lines, scratch.queries, task.width, keys + vector, task.block_size,
                     scratch.scores + vector * kLanes);
    }
    return;
  }
  // Many lines: convert each key once.
  for (int64_t vector = 0; vector < vectors; ++vector) {
    for (int64_t i = 0; i < task.width; ++i) {
      store(scratch.keys + i * kPanel + vector * kLanes, load(keys[vector] + i * task.block_size));
    }
  }
  for (int64_t vector = 0; vector < vectors; vector += 2) {
    const float* both[2] = {scratch.keys + vector * kLanes, scratch.keys + (vector + 1) * kLanes};
    if (vector + 2 <= vectors) {
      score_lines<2>(lines, scratch.queries, task.width, both, kPanel, scratch.scores + vector * kLanes);
    } else {
      score_lines<1>(lines, scratch.queries, task.width, both, kPanel, scratch.scores + vector * kLanes);
    }
  }
}

// The values of the `count` tokens from `start` on, as f32.
template <class E>
static inline void read_values(const AttentionTask& task, int64_t start, int64_t count, float* values) {
  const int64_t stride = padded(task.width);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t position = start + i;
    const E* row = page<E>(task.values, task, position) + position % task.block_size * task.width;
    float* to = values + i * stride;
    for (int64_t at = 0; at < task.width; at += kLanes) store(to + at, load_upto(row + at, task.width - at));
  }
}

// How elements of type E meet queries and weights: here as f32.
template <class E>
struct Panels {
  static inline void read_queries(const AttentionTask& task, const Scratch& scratch) {
    const int64_t row = task.group * task.width;
    for (int64_t r = 0; r < task.rows; ++r) {
      memcpy(scratch.queries + r * row, task.queries + r * task.query_stride, row * sizeof(float));
    }
    // What pads a row of values is added in.
    memset(scratch.values, 0, kPanel * padded(task.width) * sizeof(float));
  }

  static inline Vector exponential(Vector x) { return power_of_e(x); }

  static inline void score(const AttentionTask& task, int64_t lines, int64_t start, int64_t vectors,
                           const Scratch& scratch) {
    score_panel<E>(task, lines, start, vectors, scratch);
  }

  static inline void weigh(const AttentionTask& task, int64_t lines, int64_t start, int64_t count,
                           const Scratch& scratch) {
    read_values<E>(task, start, count, scratch.values);
    weigh_lines(lines, scratch.scores, count, scratch.values, padded(task.width), scratch.out);
  }
};

// Scores become weights relative to the greatest score so far, and what was summed before is brought in line.
template <class E>
static inline void weights_of(int64_t lines, int64_t vectors, int64_t stride, const Scratch& scratch) {
  for (int64_t line = 0; line < lines; ++line) {
    float* scores = scratch.scores + line * kPanel;
    Vector most = load(scores);
    for (int64_t vector = 1; vector < vectors; ++vector) most = greater(load(scores + vector * kLanes), most);
    const float before = scratch.greatest[line];
    const float here = greatest_of(most);
    const float greatest = before > here ? before : here;
    if (greatest == -INFINITY) {  // nothing of this panel is seen, nor was anything before
      for (int64_t vector = 0; vector < vectors; ++vector) store(scores + vector * kLanes, Vector{});
      continue;
    }
    const float correction = before == greatest ? 1.0f : expf(before - greatest);
    float* sums = scratch.sums + line * 16;
    Vector sum = load(sums) * splat(correction);
    for (int64_t vector = 0; vector < vectors; ++vector) {
      const Vector weight = Panels<E>::exponential(load(scores + vector * kLanes) - splat(greatest));
      store(scores + vector * kLanes, weight);
      sum += weight;
    }
    store(sums, sum);
    if (correction != 1.0f) {
      float* out = scratch.out + line * stride;
      for (int64_t at = 0; at < stride; at += kLanes) store(out + at, load(out + at) * splat(correction));
    }
    scratch.greatest[line] = greatest;
  }
}

template <class E>
static void attend(const AttentionTask& task) {
  const int64_t lines = task.rows * task.group;
  const int64_t stride = padded(task.width);
  const Scratch scratch(task, lines);
  Panels<E>::read_queries(task, scratch);
  memset(scratch.out, 0, lines * stride * sizeof(float));
  memset(scratch.sums, 0, lines * 16 * sizeof(float));
  for (int64_t line = 0; line < lines; ++line) scratch.greatest[line] = -INFINITY;
  const int64_t end = task.first + task.rows;
  const int64_t oldest = task.window > 0 ? task.first - task.window + 1 : 0;
  for (int64_t start = (oldest > 0 ? oldest : 0) / kPanel * kPanel; start < end; start += kPanel) {
    const int64_t count = end - start < kPanel ? end - start : kPanel;
    const int64_t vectors = (count + kLanes - 1) / kLanes;
    Panels<E>::score(task, lines, start, vectors, scratch);
    const bool all_see_its_end = start + vectors * kLanes - 1 <= task.first;
    const bool all_see_its_start = task.window == 0 || start > end - 1 - task.window;
    if (!all_see_its_end || !all_see_its_start) hide(task, lines, start, vectors, scratch.scores);
    weights_of<E>(lines, vectors, stride, scratch);
    Panels<E>::weigh(task, lines, start, count, scratch);
  }
  for (int64_t line = 0; line < lines; ++line) {
    const Vector share = splat(1.0f / sum_of(load(scratch.sums + line * 16)));
    E* to = (E*)task.out + line / task.group * task.out_stride + line % task.group * task.width;
    for (int64_t at = 0; at < task.width; at += kLanes) {
      store_upto(to + at, load(scratch.out + line * stride + at) * share, task.width - at);
    }
  }
}
