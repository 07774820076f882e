// Products of rows with packed weights, sums in f32, and what is done to each sum while it is at hand.

// What a kernel multiplies with weights of type W: here rows of f32, and weights that become f32 in registers.
template <class W>
struct Product {
  // Rows times vectors of sums that registers hold.
  static constexpr int kRows = kLanes == 16 ? 12 : 6;
  static constexpr int kVectors = 2;
  static constexpr int kParts = 4 / sizeof(W);

  template <class E>
  static inline void prepare(const E* x, int64_t inputs, char* out) {
    for (int64_t at = 0; at < inputs; at += kLanes) {
      store_upto((float*)out + at, load_upto(x + at, inputs - at), inputs - at);
    }
  }

  // tile [R, kPanelOutputs] = R rows times a panel.
  template <int R>
  static inline void multiply(const char* operands, int64_t inputs, const void* panel, float* tile) {
    const int64_t stride = operand_stride(inputs) / sizeof(float);
    for (int64_t column = 0; column < kPanelOutputs; column += kVectors * kLanes) {
      const float* x = (const float*)operands;
      const float* weights = (const float*)panel + column;
      Vector sums[R][kVectors] = {};
      for (int64_t word = 0; word < inputs / kParts; ++word, x += kParts, weights += kPanelOutputs) {
        const Bits left = (Bits)load(weights);
        const Bits right = (Bits)load(weights + kLanes);
#pragma GCC unroll 4
        for (int p = 0; p < kParts; ++p) {
          const Vector factors[kVectors] = {part((const W*)nullptr, left, p), part((const W*)nullptr, right, p)};
#pragma GCC unroll 12
          for (int r = 0; r < R; ++r) {
            const Vector value = splat(x[r * stride + p]);
            sums[r][0] += value * factors[0];
            sums[r][1] += value * factors[1];
          }
        }
      }
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) store(tile + r * kPanelOutputs + column + v * kLanes, sums[r][v]);
      }
    }
    scale(R, panel, inputs, tile, (const W*)nullptr);
  }

 private:
  static inline Vector part(const float*, Bits word, int) { return (Vector)word; }
  static inline Vector part(const BFloat16*, Bits word, int p) {
    return (Vector)(p == 0 ? word << 16 : word & 0xffff0000u);
  }
  static inline Vector part(const Half*, Bits word, int p) { return from_half(p == 0 ? word & 0xffffu : word >> 16); }
  static inline Vector part(const Int8*, Bits word, int p) {
    return __builtin_convertvector((Integers)(word << (24 - 8 * p)) >> 24, Vector);
  }

  template <class T>
  static inline void scale(int64_t, const void*, int64_t, float*, const T*) {}
  static inline void scale(int64_t rows, const void* panel, int64_t inputs, float* tile, const Int8*) {
    const float* scales = (const float*)((const char*)panel + inputs * kPanelOutputs);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t at = 0; at < kPanelOutputs; at += kLanes) {
        float* sums = tile + r * kPanelOutputs + at;
        store(sums, load(sums) * load(scales + at));
      }
    }
  }
};

template <class W, class E>
static void prepare(const OperandTask& task) {
  for (int64_t row = task.from; row < task.to; ++row) {
    Product<W>::prepare((const E*)task.x + row * task.inputs, task.inputs,
                        task.out + row * operand_stride(task.inputs));
  }
}

static inline Vector sigmoid(Vector x) { return splat(1.0f) / (splat(1.0f) + power_of_e(-x)); }

static inline Vector activate(Activation activation, Vector x) {
  switch (activation) {
    case kGelu: {
      float lanes[kLanes];
      store(lanes, x);
      for (float& lane : lanes) lane *= 0.5f * (1.0f + erff(lane * 0.70710678118654752f));
      return load(lanes);
    }
    // (1 + tanh(y)) / 2 is the sigmoid of 2 y.
    case kGeluTanh: return x * sigmoid(splat(1.5957691216057308f) * (x + splat(0.044715f) * x * x * x));
    case kRelu: return x < Vector{} ? Vector{} : x;
    case kSilu: return x * sigmoid(x);
    default: return x;
  }
}

// Sums of some rows of a tile become results.
template <class E>
static inline void finish(const ProductTask& task, int64_t row, int64_t rows, const float* tile) {
  for (int64_t r = 0; r < rows; ++r, tile += kPanelOutputs) {
    const int64_t offset = (row + r) * task.stride;
    for (int64_t at = 0; at < task.columns; at += kLanes) {
      const int64_t count = task.columns - at;
      Vector sums = load(tile + at);
      if (task.bias != nullptr) sums += load_upto(task.bias + at, count);
      sums = activate(task.activation, sums);
      if (task.gated) {
        Vector other = load(tile + kPanelOutputs / 2 + at);
        if (task.gated_bias != nullptr) other += load_upto(task.gated_bias + at, count);
        sums *= other;
      }
      E* out = (E*)task.out + offset + at;
      if (task.add) sums += load_upto(out, count);
      store_upto(out, sums, count);
    }
  }
}

template <class W, class E, int R>
static inline void multiply_rows(const ProductTask& task, int64_t row, int64_t rows) {
  if constexpr (R > 0) {
    if (rows < R) return multiply_rows<W, E, R - 1>(task, row, rows);
    alignas(64) float tile[R * kPanelOutputs];
    Product<W>::template multiply<R>(task.operands + row * operand_stride(task.inputs), task.inputs, task.panel, tile);
    if (task.wide) {
      finish<float>(task, row, R, tile);
    } else {
      finish<E>(task, row, R, tile);
    }
  }
}

template <class W, class E>
static void multiply(const ProductTask& task) {
  constexpr int most = Product<W>::kRows;
  for (int64_t row = 0; row < task.rows; row += most) {
    const int64_t left = task.rows - row;
    multiply_rows<W, E, most>(task, row, left < most ? left : most);
  }
}
