// Arrays in files: .npy and .safetensors.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

namespace acn {

// The float32 or int64 array of a .npy file, or the one tensor of a .safetensors file in its own
// dtype. Throws FileError, FormatError.
at::Tensor read_array(const std::string& path);

// Both tensors: into the file `path` if it ends in .safetensors, as logits and depth, else into a
// folder as logits.npy (float32) and depth.npy.
void write_results(const std::string& path, const at::Tensor& logits, const at::Tensor& depth);

}  // namespace acn
