// A program that AOTInductor compiled ahead of time: a package file.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>
#include <vector>

namespace torch::inductor {
class AOTIModelPackageLoader;
}

namespace acn {

// Many threads may run one program at once. It is code: load it only from where you trust.
class AotiProgram {
 public:
  // Throws FileError where there is no such file, FormatError where it does not load.
  explicit AotiProgram(const std::string& path);
  ~AotiProgram();

  // Tensors without gaps. Throws FormatError unless there are `least` to `most` of them.
  std::vector<at::Tensor> run(const std::vector<at::Tensor>& inputs, size_t least,
                              size_t most) const;

  const std::string& path() const { return path_; }

  // Throws FormatError where acn_kernels.inference.programs wrote it for another use.
  void check_label(const std::string& expected) const;

 private:
  std::string path_;
  // Its runners are taken from a pool under a lock of its own.
  std::unique_ptr<torch::inductor::AOTIModelPackageLoader> loader_;
};

}  // namespace acn
