// TorchScript modules: what tch's own binding lacks is preparation for inference, outputs of every
// form in one call, and errors without backtraces. Called from module.rs only.

#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/csrc/jit/runtime/jit_exception.h>
#include <torch/script.h>

#include <cstring>
#include <optional>
#include <string>
#include <vector>

namespace {

struct Module {
  torch::jit::Module module;
  // Looked up once: the lookup by name costs as much as a small operator.
  torch::jit::Method forward;
};

struct Outputs {
  std::vector<at::Tensor> tensors;
  // One a tensor for a dictionary, else none.
  std::vector<std::string> names;
};

// Runs `body`; an exception becomes a text in `error`, to be freed by the caller, and null.
template <class Body>
auto or_error(char** error, Body&& body) noexcept -> decltype(body()) {
  try {
    return body();
  } catch (const torch::jit::JITException& raised) {
    auto name = raised.getPythonClassName().value_or("Error");
    name.erase(0, name.rfind('.') + 1);
    *error = strdup((name + ": " + raised.getOriginalMsg().value_or(raised.what())).c_str());
  } catch (const c10::Error& failure) {
    *error = strdup(failure.what_without_backtrace());
  } catch (const std::exception& failure) {
    *error = strdup(failure.what());
  } catch (...) {
    *error = strdup("unknown C++ exception");
  }
  return nullptr;
}

torch::jit::Module prepared(torch::jit::Module module) {
  for (auto part : module.modules()) {
    // A frozen module has no such attribute, and Module::eval() fails on it.
    if (part.hasattr("training")) part.setattr("training", false);
  }
  try {
    // Without the passes that change results, like folding norms into convolutions.
    return torch::jit::freeze(module, std::nullopt, /*optimize_numerics=*/false);
  } catch (const std::exception&) {
    // Some modules cannot be frozen (interfaces, for one); they run as they are.
    return module;
  }
}

void append(Outputs& outputs, const c10::IValue& value) {
  if (!value.isTensor()) {
    throw std::runtime_error("output " + std::to_string(outputs.tensors.size()) + " is a " +
                             value.tagKind() + ", not a tensor");
  }
  outputs.tensors.push_back(value.toTensor());
}

Outputs flattened(const c10::IValue& value) {
  Outputs outputs;
  if (value.isTensor()) {
    outputs.tensors.push_back(value.toTensor());
  } else if (value.isTuple()) {
    for (const auto& element : value.toTupleRef().elements()) append(outputs, element);
  } else if (value.isList()) {
    for (const auto& element : value.toListRef()) append(outputs, element);
  } else if (value.isGenericDict()) {
    for (const auto& entry : value.toGenericDict()) {
      if (!entry.key().isString()) throw std::runtime_error("an output's name is not a string");
      outputs.names.push_back(entry.key().toStringRef());
      append(outputs, entry.value());
    }
  } else {
    throw std::runtime_error(std::string("forward returns a ") + value.tagKind() +
                             ", not a tensor, nor a tuple, list or dictionary of tensors");
  }
  return outputs;
}

}  // namespace

extern "C" {

// device: -1 for the CPU, else the index of a CUDA device.
Module* tfs_module_load(const char* path, int device, char** error) {
  return or_error(error, [&] {
    const torch::NoGradGuard no_grad;
    const auto target = device < 0 ? c10::Device(c10::kCPU) : c10::Device(c10::kCUDA, device);
    auto module = prepared(torch::jit::load(path, target));
    auto forward = module.get_method("forward");
    return new Module{std::move(module), std::move(forward)};
  });
}

void tfs_module_free(Module* module) { delete module; }

// Whether running it can leave traces in it: freezing removes what is never written.
bool tfs_module_is_stateless(const Module* module) {
  return module->module.attributes(/*recurse=*/true).size() == 0;
}

// Names of forward's arguments separated by ", ", those with a default in brackets; to be freed.
char* tfs_module_arguments(const Module* module, size_t* required, size_t* total) {
  const auto& arguments = module->forward.function().getSchema().arguments();
  std::string names;
  *required = *total = 0;
  for (size_t i = 1; i < arguments.size(); ++i) {  // 0 is self
    const bool optional = arguments[i].default_value().has_value();
    if (i > 1) names += ", ";
    names += optional ? "[" + arguments[i].name() + "]" : arguments[i].name();
    *required += optional ? 0 : 1;
    *total += 1;
  }
  return strdup(names.c_str());
}

Outputs* tfs_module_forward(const Module* module, const at::Tensor* const* inputs, size_t count,
                            char** error) {
  return or_error(error, [&] {
    const torch::jit::GraphOptimizerEnabledGuard unprofiled(false);
    std::vector<c10::IValue> stack;
    stack.reserve(count + 1);  // and self
    for (size_t i = 0; i < count; ++i) stack.emplace_back(*inputs[i]);
    return new Outputs(flattened(module->forward(std::move(stack))));
  });
}

size_t tfs_outputs_count(const Outputs* outputs) { return outputs->tensors.size(); }

at::Tensor* tfs_outputs_take(Outputs* outputs, size_t index) {
  return new at::Tensor(std::move(outputs->tensors[index]));
}

// Null for a positional output; valid as long as `outputs`.
const char* tfs_outputs_name(const Outputs* outputs, size_t index) {
  return index < outputs->names.size() ? outputs->names[index].c_str() : nullptr;
}

void tfs_outputs_free(Outputs* outputs) { delete outputs; }

void tfs_text_free(char* text) { free(text); }

}
