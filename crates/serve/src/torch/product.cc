// Products of rows with weights packed for the CPU kernels. Called from product.rs only.

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "checks.h"
#include "cpu/kernels.h"
#include "guard.h"
#include "scratch.h"
#include "team.h"

namespace {

using namespace trustformers::cpu;
using trustformers::check_out;
using trustformers::check_plain;
using trustformers::element_of;
using trustformers::optional_floats;
using trustformers::scratch_of;
using trustformers::share;
using trustformers::share_rows;

// Rows whose operands are prepared at a time.
constexpr int64_t kMostRows = 480;

// Elements of operands that the cache nearest but one holds beside a panel.
constexpr int64_t kCachedElements = 1 << 18;

// Rows whose operands are worth another thread.
constexpr int64_t kOperandRows = 32;

// Multiplications that are worth another thread.
constexpr int64_t kThreadWork = 1 << 16;

// How weights lie in memory.
struct Layout {
  int64_t outputs, inputs;
  bool quantized, gated;
  int64_t element;  // bytes

  // A gated panel has as many outputs of the first half as of the second.
  int64_t columns() const { return gated ? kPanelOutputs / 2 : kPanelOutputs; }
  int64_t panels() const { return (outputs + columns() - 1) / columns(); }
  int64_t panel_bytes() const {
    return kPanelOutputs * (inputs * element + (quantized ? int64_t(sizeof(float) + sizeof(int32_t)) : 0));
  }
  int64_t bytes() const { return panels() * panel_bytes(); }
  // The row of weights that has place `at` of a panel, or none.
  int64_t row(int64_t panel, int64_t at) const {
    const int64_t output = panel * columns() + at % columns();
    if (output >= outputs) return -1;
    return at < columns() ? output : outputs + output;
  }
};

void check_layout(const Layout& layout) {
  TORCH_CHECK(layout.outputs > 0 && layout.inputs > 0, "a product of nothing");
  TORCH_CHECK(layout.inputs * layout.element % 4 == 0, layout.inputs, " inputs do not fill words of four bytes");
  // The sum of 65,536 products of a byte and 127 is below 2^31.
  TORCH_CHECK(!layout.quantized || layout.inputs <= 65536, layout.inputs, " inputs are too many for int8");
}

// Weights as they are read: matrices one under another, each of rows that may lie in any order in memory.
class Weights {
 public:
  Weights(const at::Tensor* const* parts, size_t count) : parts_(parts, parts + count) {
    TORCH_CHECK(count > 0, "a weight of nothing");
    for (const at::Tensor* part : parts_) {
      TORCH_CHECK(part->device().is_cpu() && part->dim() == 2 && part->size(1) == inputs(),
                  "a weight must be matrices of equally long rows on the CPU");
      element_of(*part);
      rows_ += part->size(0);
    }
  }

  int64_t rows() const { return rows_; }
  int64_t inputs() const { return parts_.front()->size(1); }

  // A row in memory, where it lies there as elements of `element` side by side.
  const char* row_of(Element element, int64_t row) const {
    const at::Tensor& part = part_of(row);
    return element_of(part) == element && part.stride(1) == 1 ? start(part, row) : nullptr;
  }

  // A row as f32.
  void read(int64_t row, float* to) const {
    const at::Tensor& part = part_of(row);
    switch (element_of(part)) {
      case kFloat: return read_as<float>(part, row, to);
      case kBFloat16: return read_as<at::BFloat16>(part, row, to);
      case kHalf: return read_as<at::Half>(part, row, to);
    }
  }

 private:
  // The part that a row is in; `row` becomes its number there.
  const at::Tensor& part_of(int64_t& row) const {
    size_t part = 0;
    while (row >= parts_[part]->size(0)) row -= parts_[part++]->size(0);
    return *parts_[part];
  }

  static const char* start(const at::Tensor& part, int64_t row) {
    return static_cast<const char*>(part.const_data_ptr()) + row * part.stride(0) * part.element_size();
  }

  template <class T>
  void read_as(const at::Tensor& part, int64_t row, float* to) const {
    const auto* from = reinterpret_cast<const T*>(start(part, row));
    const int64_t inputs = part.size(1), stride = part.stride(1);
    for (int64_t i = 0; i < inputs; ++i) to[i] = static_cast<float>(from[i * stride]);
  }

  std::vector<const at::Tensor*> parts_;
  int64_t rows_ = 0;
};

// One row of weights at its place in a panel.
void pack_row(const char* from, int64_t bytes, char* to) {
  for (int64_t at = 0; at < bytes; at += 4, to += 4 * kPanelOutputs) std::memcpy(to, from + at, 4);
}

// The same, each weight rounded to T first.
template <class T>
void pack_rounded(const float* from, int64_t inputs, char* to) {
  constexpr int64_t parts = 4 / sizeof(T);
  for (int64_t at = 0; at < inputs; at += parts, to += 4 * kPanelOutputs) {
    T word[parts];
    for (int64_t i = 0; i < parts; ++i) word[i] = static_cast<T>(from[at + i]);
    std::memcpy(to, word, sizeof word);
  }
}

// The same, rounded to int8 with a scale of its own. Of weights that are not all numbers, products are NaN.
void quantize_row(const float* from, int64_t inputs, char* panel, int64_t at) {
  float largest = 0, broken = 0;
  for (int64_t i = 0; i < inputs; ++i) {
    largest = std::max(largest, std::abs(from[i]));
    broken += from[i] - from[i];  // NaN, where a weight is not finite
  }
  const float scale = largest / 127.0f + broken;
  int32_t sum = 0;
  for (int64_t i = 0; i < inputs; ++i) {
    const auto rounded = static_cast<int8_t>(scale > 0 ? std::nearbyint(from[i] / scale) : 0.0f);
    sum += rounded;
    panel[i / 4 * 4 * kPanelOutputs + at * 4 + i % 4] = static_cast<char>(rounded);
  }
  char* after = panel + inputs * kPanelOutputs + at * 4;
  std::memcpy(after, &scale, 4);
  std::memcpy(after + kPanelOutputs * 4, &sum, 4);
}

// How weights of so many rows lie once they are packed.
Layout layout_of(int64_t rows, int64_t inputs, Element element, bool gated, bool quantized) {
  TORCH_CHECK(!gated || rows % 2 == 0, "a gated weight must be of two halves");
  const Layout layout{rows / (gated ? 2 : 1), inputs, quantized, gated, quantized ? 1 : element == kFloat ? 4 : 2};
  check_layout(layout);
  return layout;
}

void pack(const Weights& weights, Element element, bool gated, bool quantized, at::Tensor& packed) {
  const int64_t inputs = weights.inputs();
  const Layout layout = layout_of(weights.rows(), inputs, element, gated, quantized);
  const int64_t bytes = layout.element;
  check_plain(packed, "packed weights");
  TORCH_CHECK(packed.numel() == layout.bytes(), "packed weights of another size");
  auto* to = static_cast<char*>(packed.mutable_data_ptr());
  share(layout.panels(), layout.panels(), [&](int64_t panel) {
    char* here = to + panel * layout.panel_bytes();
    std::memset(here, 0, layout.panel_bytes());
    float* floats = scratch_of<Weights>(inputs);
    for (int64_t at = 0; at < kPanelOutputs; ++at) {
      const int64_t row = layout.row(panel, at);
      if (row < 0) continue;
      const char* plain = quantized ? nullptr : weights.row_of(element, row);
      if (plain != nullptr) {
        pack_row(plain, inputs * bytes, here + at * 4);
        continue;
      }
      weights.read(row, floats);
      if (quantized) {
        quantize_row(floats, inputs, here, at);
      } else if (element == kFloat) {
        pack_rounded<float>(floats, inputs, here + at * 4);
      } else if (element == kBFloat16) {
        pack_rounded<at::BFloat16>(floats, inputs, here + at * 4);
      } else {
        pack_rounded<at::Half>(floats, inputs, here + at * 4);
      }
    }
  });
}

void multiply(const at::Tensor& x, const at::Tensor& packed, const at::Tensor* bias, int64_t outputs, bool gated,
              bool quantized, int activation, bool add, at::Tensor& out, int instruction_set) {
  check_plain(x, "x");
  check_plain(packed, "weights");
  TORCH_CHECK(x.dim() == 2, "x must be rows");
  const Layout layout{outputs, x.size(1), quantized, gated, quantized ? 1 : x.element_size()};
  check_layout(layout);
  TORCH_CHECK(packed.numel() == layout.bytes(), "weights of another shape or type than x");
  const int64_t rows = x.size(0);
  const auto* biases = optional_floats(bias, outputs * (gated ? 2 : 1), "bias");
  const bool wide = out.scalar_type() == at::kFloat;
  check_out(out, {rows, outputs}, wide ? at::kFloat : x.scalar_type());
  // Rows of x are read in turns, and those of out written between.
  TORCH_CHECK(!out.is_alias_of(x), "a product cannot be written over what it is of");
  const auto* weights = static_cast<const char*>(packed.const_data_ptr());
  auto* results = static_cast<char*>(out.mutable_data_ptr());
  const auto element = element_of(x);
  const auto prepare = kernels(instruction_set).prepare[quantized][element];
  const auto kernel = kernels(instruction_set).multiply[quantized][element];
  const int64_t bytes = x.element_size();
  const int64_t result = out.element_size();
  const int64_t operand = operand_stride(layout.inputs);
  struct Operands;
  auto* operands =
      reinterpret_cast<char*>(scratch_of<Operands>(std::min(rows, kMostRows) * operand / int64_t(sizeof(float))));
  const int64_t cached = std::max<int64_t>(12, kCachedElements / layout.inputs / 12 * 12);
  for (int64_t first = 0; first < rows; first += kMostRows) {
    const int64_t count = std::min(kMostRows, rows - first);
    const OperandTask preparation{static_cast<const char*>(x.const_data_ptr()) + first * layout.inputs * bytes,
                                  layout.inputs, operands, 0, 0};
    share_rows(count, kOperandRows, [&](int64_t from, int64_t to) {
      OperandTask part = preparation;
      part.from = from;
      part.to = to;
      prepare(part);
    });
    const int64_t parts = (count + cached - 1) / cached;
    const int64_t tasks = parts * layout.panels();
    const int64_t work = count * layout.inputs * layout.panels() * kPanelOutputs;
    share(tasks, (work + kThreadWork - 1) / kThreadWork, [&](int64_t i) {
      const int64_t row = i / layout.panels() * cached;
      const int64_t panel = i % layout.panels();
      const int64_t column = panel * layout.columns();
      const int64_t offset = ((first + row) * outputs + column) * result;
      ProductTask task;
      task.operands = operands + row * operand;
      task.rows = std::min(cached, count - row);
      task.inputs = layout.inputs;
      task.panel = weights + panel * layout.panel_bytes();
      task.bias = biases == nullptr ? nullptr : biases + column;
      task.gated_bias = biases == nullptr ? nullptr : biases + outputs + column;
      task.activation = static_cast<Activation>(activation);
      task.gated = gated;
      task.wide = wide;
      task.add = add;
      task.out = results + offset;
      task.stride = outputs;
      task.columns = std::min(layout.columns(), outputs - column);
      kernel(task);
    });
  }
}

}  // namespace

extern "C" {

bool tfs_product_has_matrix_units() { return has_matrix_units(); }

// How many bytes weights take once they are packed. kind: the scalar type that the product is of.
bool tfs_product_bytes(int64_t rows, int64_t inputs, int kind, bool gated, bool quantized, int64_t* bytes,
                       char* error, size_t capacity) {
  return trustformers::done_or_error(error, capacity, [&] {
    *bytes = layout_of(rows, inputs, element_of(static_cast<at::ScalarType>(kind)), gated, quantized).bytes();
  });
}

// packed: as many bytes.
bool tfs_product_pack(const at::Tensor* const* parts, size_t count, int kind, bool gated, bool quantized,
                      at::Tensor* packed, char* error, size_t capacity) {
  return trustformers::done_or_error(error, capacity, [&] {
    pack(Weights(parts, count), element_of(static_cast<at::ScalarType>(kind)), gated, quantized, *packed);
  });
}

// bias: null for none.
bool tfs_product_run(const at::Tensor* x, const at::Tensor* packed, const at::Tensor* bias,
                     int64_t outputs, bool gated, bool quantized, int activation, bool add, at::Tensor* out,
                     int instruction_set, char* error, size_t capacity) {
  return trustformers::done_or_error(error, capacity, [&] {
    multiply(*x, *packed, bias, outputs, gated, quantized, activation, add, *out, instruction_set);
  });
}

}
