// What the CPU kernels take and where they are found. Nothing here knows of tensors.
#pragma once

#include <cstdint>

namespace trustformers::cpu {

// Keys looked at between two corrections of a softmax.
constexpr int64_t kPanel = 64;

// Token slots of a page are read in vectors of at most this many.
constexpr int64_t kPageAlignment = 16;

// The widest head; bounds buffers on the stack.
constexpr int64_t kMaxWidth = 512;

// One KV head of neighbouring query rows of one sequence.
struct AttentionTask {
  const float* queries;  // row r, member g of the group: queries + r * query_stride + g * width
  int64_t query_stride;
  int64_t rows;
  int64_t group;
  int64_t width;
  int64_t first;         // position of the first row
  int64_t window;        // keys a query sees, itself included; 0 for all before it
  const void* keys;      // this head in page b: keys + b * page_stride, [width, block_size]
  const void* values;    // this head in page b: values + b * page_stride, [block_size, width]
  int64_t page_stride;
  int64_t block_size;
  const int32_t* pages;  // of the sequence, in order
  void* out;             // row r, member g: out + r * out_stride + g * width
  int64_t out_stride;
  float* scratch;        // attention_scratch(rows * group, width) floats, aligned to 64 bytes
};

constexpr int64_t padded(int64_t width) { return (width + 31) / 32 * 32; }

// Floats that a task of so many lines (rows times members of a group) works in.
constexpr int64_t attention_scratch(int64_t lines, int64_t width) {
  return padded(lines * width)          // queries
         + lines * kPanel               // scores
         + lines * padded(width)        // weighted sums of values
         + lines * 16                   // sums of weights
         + padded(lines)                // greatest scores
         + kPanel * padded(width) * 2;  // one panel of keys and one of values
}

// Rows [from, to) of a step's projections: queries, keys and values side by side.
struct ProjectionTask {
  const void* projections;  // [rows, (heads + 2 * kv_heads) * width]
  int64_t heads;
  int64_t kv_heads;
  int64_t width;
  const float* cosines;     // [rows, width / 2], null where positions are not rotated in
  const float* sines;
  const float* query_norm;  // [width], null where there is none
  const float* key_norm;
  float eps;
  float scale;              // of queries
  float* queries;           // [rows, heads * width]
  void* keys;               // [blocks, kv_heads, width, block_size]
  void* values;             // [blocks, kv_heads, block_size, width]
  int64_t block_size;
  const int64_t* slots;     // of each row: page * block_size + place in it
  int64_t from;
  int64_t to;
};

// Rows of x, each divided by its root mean square, times the weight.
struct NormTask {
  const void* x;  // [rows, width]
  const float* weight;
  void* out;
  int64_t width;
  float eps;
  int64_t from;
  int64_t to;
};

// Outputs whose weights lie together: a panel is [words, kPanelOutputs] words of four bytes, each with as many
// neighbouring inputs as fit one. After those of int8: scales [kPanelOutputs] in f32, and sums of weights in int32.
constexpr int64_t kPanelOutputs = 32;

// Bytes between rows of operands. No power of two, as rows a power of two apart would share few places in a cache;
// with room for a row's scale.
constexpr int64_t operand_stride(int64_t inputs) { return (inputs * 4 + 63) / 64 * 64 + 64; }

// Rows of x as a product's kernel wants them.
struct OperandTask {
  const void* x;  // [rows, inputs]
  int64_t inputs;
  char* out;      // row r at out + r * operand_stride(inputs)
  int64_t from;
  int64_t to;
};

enum Activation { kNone = 0, kGelu = 1, kGeluTanh = 2, kRelu = 3, kSilu = 4 };

// Some rows times one panel of weights, and what is done to each sum.
struct ProductTask {
  const char* operands;  // of the first row
  int64_t rows;
  int64_t inputs;
  const void* panel;
  const float* bias;     // [columns], null for none; of the other half too, where gated
  const float* gated_bias;
  Activation activation;
  bool gated;            // out = activation(first half of the panel) * second half
  bool add;              // to what out has
  bool wide;             // whether out is of f32, and not of the element type
  void* out;             // [rows, columns], rows `stride` apart
  int64_t stride;
  int64_t columns;
};

enum Element { kFloat = 0, kBFloat16 = 1, kHalf = 2 };

// One of each for an instruction set, by element type.
struct Kernels {
  void (*attend[3])(const AttentionTask&);
  void (*project[3])(const ProjectionTask&);
  void (*normalize[3])(const NormTask&);
  // Weights of the element type, and int8 ones.
  void (*prepare[2][3])(const OperandTask&);
  void (*multiply[2][3])(const ProductTask&);
};

// 0 portable, 1 AVX2, 2 AVX-512, 3 AVX-512 with products of bf16 and of int8: the best that this CPU has.
int best_instruction_set();

// Whether this CPU has matrix units, which these kernels know nothing of.
bool has_matrix_units();

// Those for the instruction set asked for, or for the best this CPU has where that is less.
const Kernels& kernels(int instruction_set);

}  // namespace trustformers::cpu
