#include "arrays.h"

#include <ATen/ops/empty.h>

#include <array>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <vector>

#include "acn/runtime/config.h"
#include "acn/runtime/errors.h"
#include "acn/runtime/safetensors.h"
#include "acn/runtime/weights.h"

namespace acn {
namespace {

constexpr std::array<char, 6> kMagic{'\x93', 'N', 'U', 'M', 'P', 'Y'};
constexpr size_t kLongestHeader = 4096;
constexpr size_t kPreamble = 10;  // magic, version, length
constexpr int64_t kHeaderLimit = 1 << 16;

// What follows `'name': ` in the header, a Python dict as numpy writes it.
std::string value_of(const std::string& header, const std::string& name) {
  const std::string key = "'" + name + "': ";
  const size_t at = header.find(key);
  if (at == std::string::npos) throw FormatError(text("the header has no ", name));
  return header.substr(at + key.size());
}

std::vector<int64_t> shape_of(const std::string& header) {
  const std::string value = value_of(header, "shape");
  const size_t end = value.find(')');
  if (value[0] != '(' || end == std::string::npos) throw FormatError("the shape is no tuple");
  std::vector<int64_t> shape;
  for (const char* at = value.data() + 1; at < value.data() + end;) {
    int64_t size = 0;
    const auto [stop, error] = std::from_chars(at, value.data() + end, size);
    if (error != std::errc() || size < 0) throw FormatError("the shape holds no sizes");
    shape.push_back(size);
    at = stop;
    while (at < value.data() + end && (*at == ',' || *at == ' ')) ++at;
  }
  return shape;
}

std::string read_npy_header(std::ifstream& file) {
  std::array<char, kPreamble> start{};
  if (!file.read(start.data(), kPreamble) ||
      std::memcmp(start.data(), kMagic.data(), kMagic.size()) != 0 || start[6] != 1) {
    throw FormatError("no .npy file of version 1");
  }
  const size_t length = static_cast<unsigned char>(start[8]) |
                        static_cast<size_t>(static_cast<unsigned char>(start[9])) << 8;
  if (length > kLongestHeader) throw FormatError("the header is too long");
  std::string header(length, '\0');
  if (!file.read(header.data(), static_cast<std::streamsize>(length))) {
    throw FormatError("the header is cut off");
  }
  return header;
}

at::Tensor read_npy(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw FileError(text(path, " cannot be opened"));
  const std::string header = read_npy_header(file);
  const std::string descr = value_of(header, "descr");
  const bool whole = descr.rfind("'<i8'", 0) == 0;
  if ((!whole && descr.rfind("'<f4'", 0) != 0) ||
      value_of(header, "fortran_order").rfind("False", 0) != 0) {
    throw FormatError("it takes float32 ('<f4') or int64 ('<i8') in C order");
  }
  const std::vector<int64_t> shape = shape_of(header);
  int64_t bytes = 0;
  const int64_t left =
      static_cast<int64_t>(std::filesystem::file_size(path)) - static_cast<int64_t>(file.tellg());
  const int64_t size = whole ? 8 : 4;
  if (__builtin_mul_overflow(elements_of(shape), size, &bytes) || bytes != left) {
    throw FormatError(text("the file has ", left, " bytes of data, which its shape does not take"));
  }
  at::Tensor array = at::empty(shape, at::TensorOptions(whole ? at::kLong : at::kFloat));
  file.read(static_cast<char*>(array.mutable_data_ptr()), bytes);
  if (!file) throw FormatError("the data is cut off");
  return array;
}

void write_npy(const std::string& path, const at::Tensor& array, const char* type) {
  std::string shape;
  for (const int64_t size : array.sizes()) shape += std::to_string(size) + ",";
  std::string header =
      text("{'descr': '", type, "', 'fortran_order': False, 'shape': (", shape, "), }");
  header.resize((kPreamble + header.size() + 64) / 64 * 64 - kPreamble - 1, ' ');
  header += '\n';
  std::ofstream file(path, std::ios::binary);
  file.write(kMagic.data(), kMagic.size());
  const std::array<char, 4> rest{1, 0, static_cast<char>(header.size()),
                                 static_cast<char>(header.size() >> 8)};
  file.write(rest.data(), rest.size());
  file << header;
  file.write(static_cast<const char*>(array.const_data_ptr()),
             static_cast<std::streamsize>(array.nbytes()));
  file.close();
  if (!file) throw FileError(text(path, " cannot be written"));
}

bool ends_with(const std::string& word, const std::string& end) {
  return word.size() >= end.size() && word.compare(word.size() - end.size(), end.size(), end) == 0;
}

TensorBytes bytes_of(const char* name, const at::Tensor& tensor) {
  return {name, name_of(tensor.scalar_type()), tensor.sizes().vec(), tensor.const_data_ptr(),
          static_cast<int64_t>(tensor.nbytes())};
}

}  // namespace

at::Tensor read_array(const std::string& path) {
  if (!ends_with(path, ".safetensors")) {
    try {
      return read_npy(path);
    } catch (const FormatError& error) {
      throw FormatError(text(path, ": ", error.what()));
    }
  }
  SafetensorsFile file(path, kHeaderLimit);
  if (file.entries().size() != 1) {
    throw FormatError(text(path, ": ", file.entries().size(), " tensors; it takes one"));
  }
  return read_tensor(file, file.entries().front());
}

void write_results(const std::string& path, const at::Tensor& logits, const at::Tensor& depth) {
  if (ends_with(path, ".safetensors")) {
    return write_safetensors(path, {bytes_of("logits", logits), bytes_of("depth", depth)});
  }
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) throw FileError(text(path, " cannot be made: ", error.message()));
  write_npy(path + "/logits.npy", logits.to(at::kFloat).contiguous(), "<f4");
  write_npy(path + "/depth.npy", depth, "<i8");
}

}  // namespace acn
