// The tensors of a model by name: from a saved folder, or those of a live model.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>
#include <vector>

#include "acn/runtime/config.h"
#include "acn/runtime/safetensors.h"

namespace acn {

using Tensors = std::map<std::string, at::Tensor>;

// The weights of `config` in a safetensors file, all fp32 or all bf16.
//
// Every name, dtype and shape is checked before the first tensor is allocated. Throws FileError,
// FormatError.
Tensors load_weights(const std::string& path, const Config& config);

// Throws std::invalid_argument unless `tensors` are those of `config`, in one dtype, on one device.
void check_weights(const Tensors& tensors, const Config& config);

at::ScalarType scalar_type_of(const std::string& dtype);  // FormatError where there is none
const char* name_of(at::ScalarType type);                 // as safetensors has it

at::Tensor read_tensor(SafetensorsFile& file, const TensorEntry& entry);

}  // namespace acn
