// Arrays in files: .npy and .safetensors.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

namespace acn {

// The float32 or int64 array of a .npy file, or the one tensor of a .safetensors file. Throws
// FileError, and FormatError where its dtype is none of those `accepted`.
at::Tensor read_array(const std::string& path, const std::vector<at::ScalarType>& accepted);

// The files that results are written into: `path` itself if it ends in .safetensors, else
// logits.npy and depth.npy in a folder of this name.
std::vector<std::string> result_files(const std::string& path);

// Throws FileError where write_results could not write; makes no more than the folder.
void check_writable(const std::string& path);

// Both tensors, of a .npy the logits as float32. Until both are written whole, what stood there
// stands.
void write_results(const std::string& path, const at::Tensor& logits, const at::Tensor& depth);

}  // namespace acn
