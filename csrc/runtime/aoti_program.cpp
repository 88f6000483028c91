#include "aoti_program.h"

#include <ATen/Parallel.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <filesystem>

#include "acn/runtime/errors.h"

namespace acn {

using torch::inductor::AOTIModelPackageLoader;

AotiProgram::AotiProgram(const std::string& path) : path_(path) {
  if (!std::filesystem::is_regular_file(path)) throw FileError(text(path, " is missing"));
  try {
    loader_ = std::make_unique<AOTIModelPackageLoader>(
        path, "model", /*run_single_threaded=*/false, static_cast<size_t>(at::get_num_threads()));
  } catch (const std::exception& error) {
    const std::string reason = error.what();
    throw FormatError(text(path, " does not load: ", reason.substr(0, reason.find('\n')).substr(0, 200)));
  }
}

AotiProgram::~AotiProgram() = default;

void AotiProgram::check_label(const std::string& expected) const {
  const auto metadata = loader_->get_metadata();
  const auto found = metadata.find("acn");
  const std::string label = found == metadata.end() ? "" : found->second;
  if (label == expected) return;
  throw FormatError(text(path_, " is for ", label.empty() ? "another use" : label,
                         "; here it takes ", expected));
}

std::vector<at::Tensor> AotiProgram::run(const std::vector<at::Tensor>& inputs, size_t least,
                                         size_t most) const {
  std::vector<at::Tensor> outputs = loader_->run(inputs);
  if (outputs.size() < least || outputs.size() > most) {
    throw FormatError(text(path_, " returns ", outputs.size(), " tensors; it takes ", least,
                           " to ", most));
  }
  for (at::Tensor& output : outputs) output = output.contiguous();
  return outputs;
}

}  // namespace acn
