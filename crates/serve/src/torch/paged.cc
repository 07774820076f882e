// Attention over the pages of a KV cache, and what puts keys and values there, on the CPU. Called from paged.rs only.

#include <algorithm>
#include <cstdint>
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

// Rows of one sequence in a step.
struct Span {
  int64_t row;    // its first row
  int64_t rows;   // how many
  int64_t start;  // position of the first
  int64_t table;  // where its pages begin in the table
};

// Lines of queries that one task takes: more would push its scratch out of the nearest cache.
constexpr int64_t kTaskLines = 48;

// Rows that are worth another thread.
constexpr int64_t kProjectionRows = 8;
constexpr int64_t kNormRows = 16;

// The pages of one layer: keys [blocks, kv_heads, width, block_size], values [blocks, kv_heads, block_size, width].
struct Pages {
  int64_t blocks, kv_heads, width, block_size;

  Pages(const at::Tensor& keys, const at::Tensor& values) {
    check_plain(keys, "keys");
    check_plain(values, "values");
    TORCH_CHECK(keys.dim() == 4 && values.dim() == 4 && keys.scalar_type() == values.scalar_type(),
                "keys and values must be pages of one type");
    blocks = keys.size(0);
    kv_heads = keys.size(1);
    width = keys.size(2);
    block_size = keys.size(3);
    TORCH_CHECK(values.size(0) == blocks && values.size(1) == kv_heads && values.size(2) == block_size &&
                    values.size(3) == width,
                "keys and values must be pages of one shape");
    TORCH_CHECK(block_size > 0 && block_size % kPageAlignment == 0, "pages of ", block_size,
                " tokens, which is no multiple of ", kPageAlignment);
    TORCH_CHECK(width > 0 && width % 2 == 0 && width <= kMaxWidth, "heads of width ", width);
  }

  int64_t stride() const { return kv_heads * width * block_size; }
};

void check_spans(const Span* spans, size_t count, int64_t rows, const int32_t* table, size_t length,
                 const Pages& pages) {
  for (size_t i = 0; i < count; ++i) {
    const Span& span = spans[i];
    TORCH_CHECK(span.rows > 0 && span.row >= 0 && span.row + span.rows <= rows && span.start >= 0,
                "a sequence lies outside the step's rows");
    const int64_t needed = (span.start + span.rows + pages.block_size - 1) / pages.block_size;
    TORCH_CHECK(span.table >= 0 && span.table + needed <= static_cast<int64_t>(length),
                "a sequence has too few pages");
  }
  for (size_t i = 0; i < length; ++i) {
    TORCH_CHECK(table[i] >= 0 && table[i] < pages.blocks, "page ", table[i], " of ", pages.blocks);
  }
}

void attention(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values,
               const Span* spans, size_t count, const int32_t* table, size_t length, int64_t window,
               at::Tensor& out, int instruction_set) {
  const Pages pages(keys, values);
  check_plain(queries, "queries");
  TORCH_CHECK(queries.dim() == 2 && queries.scalar_type() == at::kFloat, "queries must be rows of f32");
  TORCH_CHECK(queries.size(1) % (pages.kv_heads * pages.width) == 0, "queries do not divide into groups");
  check_spans(spans, count, queries.size(0), table, length, pages);
  const int64_t group = queries.size(1) / (pages.kv_heads * pages.width);
  const int64_t most_rows = std::max<int64_t>(1, kTaskLines / group);
  check_out(out, queries.sizes(), keys.scalar_type());

  struct Part {
    const Span* span;
    int64_t offset;
    int64_t head;
  };
  std::vector<Part> parts;
  // Chunks of prompts come last in a step and take longest, so they are begun first.
  for (size_t i = count; i-- > 0;) {
    for (int64_t offset = 0; offset < spans[i].rows; offset += most_rows) {
      for (int64_t head = 0; head < pages.kv_heads; ++head) parts.push_back({&spans[i], offset, head});
    }
  }

  const auto element = element_of(keys);
  const auto attend = kernels(instruction_set).attend[element];
  const int64_t bytes = keys.element_size();
  const auto* q = queries.const_data_ptr<float>();
  const auto* k = static_cast<const char*>(keys.const_data_ptr());
  const auto* v = static_cast<const char*>(values.const_data_ptr());
  auto* o = static_cast<char*>(out.mutable_data_ptr());
  const int64_t floats = attention_scratch(most_rows * group, pages.width);
  const auto tasks = static_cast<int64_t>(parts.size());
  share(tasks, tasks, [&](int64_t i) {
    const auto& [span, offset, head] = parts[i];
    const int64_t row = span->row + offset;
    const int64_t column = head * group * pages.width;
    AttentionTask task;
    task.queries = q + row * queries.size(1) + column;
    task.query_stride = queries.size(1);
    task.rows = std::min(most_rows, span->rows - offset);
    task.group = group;
    task.width = pages.width;
    task.first = span->start + offset;
    task.window = window;
    task.keys = k + head * pages.width * pages.block_size * bytes;
    task.values = v + head * pages.width * pages.block_size * bytes;
    task.page_stride = pages.stride();
    task.block_size = pages.block_size;
    task.pages = table + span->table;
    task.out = o + (row * queries.size(1) + column) * bytes;
    task.out_stride = queries.size(1);
    task.scratch = scratch_of<Span>(floats);
    attend(task);
  });
}

void project(const at::Tensor& projections, const at::Tensor* cosines, const at::Tensor* sines,
             const at::Tensor* query_norm, const at::Tensor* key_norm, double eps, double scale, at::Tensor& keys,
             at::Tensor& values, const int64_t* slots, size_t rows, at::Tensor& queries, int instruction_set) {
  const Pages pages(keys, values);
  check_plain(projections, "projections");
  TORCH_CHECK(projections.dim() == 2 && projections.scalar_type() == keys.scalar_type(),
              "projections must be rows of the cache's type");
  TORCH_CHECK(projections.size(0) == static_cast<int64_t>(rows), rows, " slots for ", projections.size(0), " rows");
  const int64_t heads = projections.size(1) / pages.width - 2 * pages.kv_heads;
  TORCH_CHECK(heads > 0 && projections.size(1) == (heads + 2 * pages.kv_heads) * pages.width,
              "projections do not divide into heads");
  for (size_t i = 0; i < rows; ++i) {
    TORCH_CHECK(slots[i] >= 0 && slots[i] < pages.blocks * pages.block_size, "slot ", slots[i], " of ",
                pages.blocks * pages.block_size);
  }
  check_out(queries, {projections.size(0), heads * pages.width}, at::kFloat);
  const int64_t angles = projections.size(0) * (pages.width / 2);
  ProjectionTask task;
  task.projections = projections.const_data_ptr();
  task.heads = heads;
  task.kv_heads = pages.kv_heads;
  task.width = pages.width;
  task.cosines = optional_floats(cosines, angles, "cosines");
  task.sines = optional_floats(sines, angles, "sines");
  TORCH_CHECK((task.cosines == nullptr) == (task.sines == nullptr), "cosines without sines");
  task.query_norm = optional_floats(query_norm, pages.width, "the norm of queries");
  task.key_norm = optional_floats(key_norm, pages.width, "the norm of keys");
  task.eps = static_cast<float>(eps);
  task.scale = static_cast<float>(scale);
  task.queries = queries.mutable_data_ptr<float>();
  task.keys = keys.mutable_data_ptr();
  task.values = values.mutable_data_ptr();
  task.block_size = pages.block_size;
  task.slots = slots;
  const auto kernel = kernels(instruction_set).project[element_of(keys)];
  share_rows(projections.size(0), kProjectionRows, [&](int64_t from, int64_t to) {
    ProjectionTask part = task;
    part.from = from;
    part.to = to;
    kernel(part);
  });
}

void normalize(const at::Tensor& x, const at::Tensor& weight, double eps, at::Tensor& out, int instruction_set) {
  check_plain(x, "x");
  TORCH_CHECK(x.dim() == 2, "x must be rows");
  check_out(out, x.sizes(), x.scalar_type());
  NormTask task{x.const_data_ptr(), optional_floats(&weight, x.size(1), "the weight"), out.mutable_data_ptr(),
                x.size(1), static_cast<float>(eps), 0, 0};
  const auto kernel = kernels(instruction_set).normalize[element_of(x)];
  share_rows(x.size(0), kNormRows, [&](int64_t from, int64_t to) {
    NormTask part = task;
    part.from = from;
    part.to = to;
    kernel(part);
  });
}

}  // namespace

extern "C" {

int tfs_cpu_best_instruction_set() { return best_instruction_set(); }

bool tfs_paged_attention(const at::Tensor* queries, const at::Tensor* keys, const at::Tensor* values,
                         const Span* spans, size_t count, const int32_t* table, size_t length, int64_t window,
                         at::Tensor* out, int instruction_set, char* error, size_t capacity) {
  return trustformers::done_or_error(error, capacity, [&] {
    attention(*queries, *keys, *values, spans, count, table, length, window, *out, instruction_set);
  });
}

bool tfs_paged_project(const at::Tensor* projections, const at::Tensor* cosines, const at::Tensor* sines,
                       const at::Tensor* query_norm, const at::Tensor* key_norm, double eps, double scale,
                       at::Tensor* keys, at::Tensor* values, const int64_t* slots, size_t rows, at::Tensor* queries,
                       int instruction_set, char* error, size_t capacity) {
  return trustformers::done_or_error(error, capacity, [&] {
    project(*projections, cosines, sines, query_norm, key_norm, eps, scale, *keys, *values, slots, rows, *queries,
            instruction_set);
  });
}

bool tfs_rows_normalize(const at::Tensor* x, const at::Tensor* weight, double eps, at::Tensor* out,
                        int instruction_set, char* error, size_t capacity) {
  return trustformers::done_or_error(error, capacity,
                                     [&] { normalize(*x, *weight, eps, *out, instruction_set); });
}

}
