// What is done row by row between products: norms and rotary positions.

// The factor that brings the root mean square of x to 1.
template <class E>
static inline float inverse_root_mean_square(const E* x, int64_t width, float eps) {
  Vector squares = {};
  for (int64_t at = 0; at < width; at += kLanes) {
    const Vector part = load_upto(x + at, width - at);
    squares += part * part;
  }
  return 1.0f / sqrtf(sum_of(squares) / (float)width + eps);
}

// RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467).
template <class E>
static inline void normalize_row(const E* x, const float* weight, E* out, int64_t width, float eps) {
  const Vector factor = splat(inverse_root_mean_square(x, width, eps));
  for (int64_t at = 0; at < width; at += kLanes) {
    const Vector part = load_upto(x + at, width - at) * factor * load_upto(weight + at, width - at);
    store_upto(out + at, part, width - at);
  }
}

template <class E>
static void normalize(const NormTask& task) {
  for (int64_t row = task.from; row < task.to; ++row) {
    const int64_t at = row * task.width;
    normalize_row((const E*)task.x + at, task.weight, (E*)task.out + at, task.width, task.eps);
  }
}

// Rotates pairs (i, i + width / 2) by the row's angles (Su et al. 2021, arXiv:2104.09864).
static inline void rotate(float* x, const float* cosines, const float* sines, int64_t width) {
  const int64_t half = width / 2;
  for (int64_t at = 0; at < half; at += kLanes) {
    const int64_t count = half - at;
    const Vector left = load_upto(x + at, count);
    const Vector right = load_upto(x + half + at, count);
    const Vector cosine = load_upto(cosines + at, count);
    const Vector sine = load_upto(sines + at, count);
    store_upto(x + at, left * cosine - right * sine, count);
    store_upto(x + half + at, right * cosine + left * sine, count);
  }
}

// One head of a row as f32, normed and rotated.
template <class E>
static inline void read_head(const E* from, const ProjectionTask& task, const float* norm, int64_t row, float* to) {
  for (int64_t at = 0; at < task.width; at += kLanes) {
    store_upto(to + at, load_upto(from + at, task.width - at), task.width - at);
  }
  if (norm != nullptr) normalize_row(to, norm, to, task.width, task.eps);
  if (task.cosines != nullptr) {
    const int64_t at = row * (task.width / 2);
    rotate(to, task.cosines + at, task.sines + at, task.width);
  }
}

template <class E>
static void project(const ProjectionTask& task) {
  const int64_t width = task.width;
  float head[kMaxWidth];
  E rounded[kMaxWidth];
  for (int64_t row = task.from; row < task.to; ++row) {
    const E* from = (const E*)task.projections + row * (task.heads + 2 * task.kv_heads) * width;
    float* queries = task.queries + row * task.heads * width;
    for (int64_t h = 0; h < task.heads; ++h, from += width, queries += width) {
      read_head(from, task, task.query_norm, row, head);
      for (int64_t i = 0; i < width; ++i) queries[i] = head[i] * task.scale;
    }
    const int64_t page = task.slots[row] / task.block_size;
    const int64_t place = task.slots[row] % task.block_size;
    for (int64_t h = 0; h < task.kv_heads; ++h, from += width) {
      read_head(from, task, task.key_norm, row, head);
      for (int64_t at = 0; at < width; at += kLanes) {
        store_upto(rounded + at, load_upto(head + at, width - at), width - at);
      }
      E* keys = (E*)task.keys + (page * task.kv_heads + h) * width * task.block_size + place;
      for (int64_t i = 0; i < width; ++i) keys[i * task.block_size] = rounded[i];
    }
    for (int64_t h = 0; h < task.kv_heads; ++h, from += width) {
      E* values = (E*)task.values + ((page * task.kv_heads + h) * task.block_size + place) * width;
      memcpy(values, from, width * sizeof(E));
    }
  }
}
