#include "acn/runtime/weights.h"

#include <ATen/ops/empty.h>
#include <c10/core/InferenceMode.h>

#include "acn/runtime/errors.h"

namespace acn {
namespace {

// What a header may take: a name, a dtype, a shape and two offsets fit into this for each tensor.
constexpr int64_t kHeaderBytes = 1 << 16;
constexpr int64_t kHeaderBytesPerTensor = 512;

void check_shape(const std::string& name, at::IntArrayRef shape, at::IntArrayRef expected) {
  if (shape != expected) {
    throw FormatError(text("tensor '", name, "' has shape ", shape, "; the configuration takes ",
                           expected));
  }
}

// `find` gives what is known of a tensor by its name, or null; the rest is the same for all.
template <class Find>
void check_names(const std::vector<TensorShape>& expected, size_t count, const Find& find) {
  for (const TensorShape& tensor : expected) {
    if (!find(tensor)) throw FormatError(text("tensor '", tensor.name, "' is missing"));
  }
  if (count != expected.size()) {
    throw FormatError(text(count, " tensors, and the configuration takes ", expected.size()));
  }
}

void check_entries(const SafetensorsFile& file, const std::vector<TensorShape>& expected) {
  std::map<std::string, const TensorEntry*> by_name;
  for (const TensorEntry& entry : file.entries()) by_name[entry.name] = &entry;
  const std::string dtype = file.entries().empty() ? "" : file.entries().front().dtype;
  check_names(expected, by_name.size(), [&](const TensorShape& tensor) {
    const auto found = by_name.find(tensor.name);
    if (found == by_name.end()) return false;
    const TensorEntry& entry = *found->second;
    check_shape(entry.name, entry.shape, tensor.shape);
    if ((entry.dtype != "F32" && entry.dtype != "BF16") || entry.dtype != dtype) {
      throw FormatError(text("tensor '", entry.name, "' is ", entry.dtype,
                             "; the engine runs all F32 or all BF16"));
    }
    return true;
  });
}

}  // namespace

at::ScalarType scalar_type_of(const std::string& dtype) {
  static const std::map<std::string, at::ScalarType> kTypes{
      {"F32", at::kFloat}, {"F64", at::kDouble}, {"BF16", at::kBFloat16},
      {"F16", at::kHalf},  {"I64", at::kLong},   {"U8", at::kByte}};
  const auto found = kTypes.find(dtype);
  if (found == kTypes.end()) throw FormatError(text("dtype ", dtype, " is not read here"));
  return found->second;
}

const char* name_of(at::ScalarType type) {
  switch (type) {
    case at::kFloat: return "F32";
    case at::kBFloat16: return "BF16";
    case at::kLong: return "I64";
    default: throw std::invalid_argument("a tensor is neither F32, BF16 nor I64");
  }
}

at::Tensor read_tensor(SafetensorsFile& file, const TensorEntry& entry) {
  at::Tensor tensor = at::empty(entry.shape, at::TensorOptions(scalar_type_of(entry.dtype)));
  file.read(entry, tensor.mutable_data_ptr());
  return tensor;
}

Tensors load_weights(const std::string& path, const Config& config) {
  const std::vector<TensorShape> expected = tensors_of(config);
  elements_of(expected);
  const int64_t count = static_cast<int64_t>(expected.size());
  SafetensorsFile file(path, kHeaderBytes + kHeaderBytesPerTensor * count);
  try {
    check_entries(file, expected);
  } catch (const FormatError& error) {
    throw FormatError(text(path, " is not of this model: ", error.what()));
  }
  const c10::InferenceMode off(false);  // whose tensors count no changes, and are not packed
  Tensors tensors;
  for (const TensorEntry& entry : file.entries()) tensors[entry.name] = read_tensor(file, entry);
  return tensors;
}

void check_weights(const Tensors& tensors, const Config& config) {
  const std::vector<TensorShape> expected = tensors_of(config);
  at::ScalarType type = at::kFloat;
  at::Device device = at::kCPU;
  if (!tensors.empty()) {
    type = tensors.begin()->second.scalar_type();
    device = tensors.begin()->second.device();
  }
  check_names(expected, tensors.size(), [&](const TensorShape& shape) {
    const auto found = tensors.find(shape.name);
    if (found == tensors.end()) return false;
    const at::Tensor& tensor = found->second;
    check_shape(shape.name, tensor.sizes(), shape.shape);
    if (tensor.device() != device || tensor.scalar_type() != type ||
        (type != at::kFloat && type != at::kBFloat16)) {
      throw FormatError(text("tensor '", shape.name, "' is ", tensor.scalar_type(), " on ",
                             tensor.device(), "; the engine runs all fp32 or all bf16 on ",
                             device));
    }
    return true;
  });
}

}  // namespace acn
