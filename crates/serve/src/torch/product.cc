// Products of rows with weights packed for the CPU kernels. Called from product.rs only.

#include <ATen/ops/empty.h>

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

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

// One row of weights at its place in a panel.
void pack_row(const char* from, int64_t bytes, char* to) {
  for (int64_t at = 0; at < bytes; at += 4, to += 4 * kPanelOutputs) std::memcpy(to, from + at, 4);
}

// The same, rounded to int8 with a scale of its own.
template <class T>
void quantize_row(const T* from, int64_t inputs, char* panel, int64_t at) {
  float largest = 0;
  for (int64_t i = 0; i < inputs; ++i) largest = std::max(largest, std::abs(static_cast<float>(from[i])));
  const float scale = largest / 127.0f;
  int32_t sum = 0;
  for (int64_t i = 0; i < inputs; ++i) {
    const float whole = largest > 0 ? std::nearbyint(static_cast<float>(from[i]) / scale) : 0.0f;
    const auto rounded = static_cast<int8_t>(whole);
    sum += rounded;
    panel[i / 4 * 4 * kPanelOutputs + at * 4 + i % 4] = static_cast<char>(rounded);
  }
  char* after = panel + inputs * kPanelOutputs + at * 4;
  std::memcpy(after, &scale, 4);
  std::memcpy(after + kPanelOutputs * 4, &sum, 4);
}

// Asks for large pages before memory is touched: weights are read whole for every token, and wait less for addresses
// then. Only advice.
void prefer_large_pages(void* memory, int64_t bytes) {
  constexpr uintptr_t kPage = 4096;
  const auto start = (reinterpret_cast<uintptr_t>(memory) + kPage - 1) / kPage * kPage;
  const auto end = (reinterpret_cast<uintptr_t>(memory) + bytes) / kPage * kPage;
  if (end > start) madvise(reinterpret_cast<void*>(start), end - start, MADV_HUGEPAGE);
}

at::Tensor pack(const at::Tensor& weight, bool gated, bool quantized) {
  check_plain(weight, "weight");
  TORCH_CHECK(weight.dim() == 2 && (!gated || weight.size(0) % 2 == 0), "a weight must be rows, in halves if gated");
  const auto kind = element_of(weight);
  const int64_t bytes = weight.element_size();
  const Layout layout{weight.size(0) / (gated ? 2 : 1), weight.size(1), quantized, gated, quantized ? 1 : bytes};
  check_layout(layout);
  auto packed = at::empty({layout.panels() * layout.panel_bytes()}, at::TensorOptions().dtype(at::kByte));
  auto* to = static_cast<char*>(packed.mutable_data_ptr());
  prefer_large_pages(to, packed.numel());
  const auto* from = static_cast<const char*>(weight.const_data_ptr());
  share(layout.panels(), layout.panels(), [&](int64_t panel) {
    char* here = to + panel * layout.panel_bytes();
    std::memset(here, 0, layout.panel_bytes());
    for (int64_t at = 0; at < kPanelOutputs; ++at) {
      const int64_t row = layout.row(panel, at);
      if (row < 0) continue;
      const char* weights = from + row * layout.inputs * bytes;
      if (!quantized) {
        pack_row(weights, layout.inputs * bytes, here + at * 4);
      } else if (kind == kFloat) {
        quantize_row(reinterpret_cast<const float*>(weights), layout.inputs, here, at);
      } else if (kind == kBFloat16) {
        quantize_row(reinterpret_cast<const at::BFloat16*>(weights), layout.inputs, here, at);
      } else {
        quantize_row(reinterpret_cast<const at::Half*>(weights), layout.inputs, here, at);
      }
    }
  });
  return packed;
}

void multiply(const at::Tensor& x, const at::Tensor& packed, const at::Tensor* bias, int64_t outputs, bool gated,
              bool quantized, int activation, bool add, at::Tensor& out, int instruction_set) {
  check_plain(x, "x");
  check_plain(packed, "weights");
  TORCH_CHECK(x.dim() == 2, "x must be rows");
  const Layout layout{outputs, x.size(1), quantized, gated, quantized ? 1 : x.element_size()};
  check_layout(layout);
  TORCH_CHECK(packed.numel() == layout.panels() * layout.panel_bytes(), "weights of another shape or type than x");
  const int64_t rows = x.size(0);
  const auto* biases = optional_floats(bias, outputs * (gated ? 2 : 1), "bias");
  const bool wide = out.scalar_type() == at::kFloat;
  check_out(out, {rows, outputs}, wide ? at::kFloat : x.scalar_type());
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
      task.panel = static_cast<const char*>(packed.const_data_ptr()) + panel * layout.panel_bytes();
      task.bias = biases == nullptr ? nullptr : biases + column;
      task.gated_bias = biases == nullptr ? nullptr : biases + outputs + column;
      task.activation = static_cast<Activation>(activation);
      task.gated = gated;
      task.wide = wide;
      task.add = add;
      task.out = static_cast<char*>(out.mutable_data_ptr()) + offset;
      task.stride = outputs;
      task.columns = std::min(layout.columns(), outputs - column);
      kernel(task);
    });
  }
}

}  // namespace

extern "C" {

bool tfs_product_has_matrix_units() { return has_matrix_units(); }

at::Tensor* tfs_product_pack(const at::Tensor* weight, bool gated, bool quantized, char* error, size_t capacity) {
  return trustformers::tensor_or_error(error, capacity, [&] { return pack(*weight, gated, quantized); });
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
