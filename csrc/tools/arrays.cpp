#include "arrays.h"

#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "acn/runtime/config.h"
#include "acn/runtime/errors.h"
#include "acn/runtime/safetensors.h"
#include "acn/runtime/weights.h"
#include "temporary.h"

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

// The sizes of a Python tuple: (), (5,) or (2, 3), with or without a comma at the end.
std::vector<int64_t> shape_of(const std::string& header) {
  const std::string value = value_of(header, "shape");
  const size_t length = value.find(')');
  if (value[0] != '(' || length == std::string::npos) throw FormatError("the shape is no tuple");
  const char* at = value.data() + 1;
  const char* end = value.data() + length;
  const auto skip_spaces = [&] { at = std::find_if(at, end, [](char c) { return c != ' '; }); };
  std::vector<int64_t> shape;
  for (skip_spaces(); at < end; skip_spaces()) {
    int64_t size = 0;
    const auto [stop, error] = std::from_chars(at, end, size);
    if (error != std::errc() || size < 0) throw FormatError("the shape holds no sizes");
    shape.push_back(size);
    at = stop;
    skip_spaces();
    if (at == end && shape.size() > 1) break;
    if (at == end || *at++ != ',') throw FormatError("the shape has no comma after a size");
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

void check_dtype(const std::string& dtype, const std::vector<at::ScalarType>& accepted) {
  std::string names;
  for (const at::ScalarType type : accepted) {
    if (dtype == name_of(type)) return;
    names += (names.empty() ? "" : " or ") + std::string(name_of(type));
  }
  throw FormatError(text("dtype is ", dtype, "; it takes ", names));
}

at::Tensor read_npy(const std::string& path, const std::vector<at::ScalarType>& accepted) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw FileError(text(path, " cannot be opened"));
  const std::string header = read_npy_header(file);
  const std::string descr = value_of(header, "descr");
  const bool whole = descr.rfind("'<i8'", 0) == 0;
  if ((!whole && descr.rfind("'<f4'", 0) != 0) ||
      value_of(header, "fortran_order").rfind("False", 0) != 0) {
    throw FormatError("it takes float32 ('<f4') or int64 ('<i8') in C order");
  }
  check_dtype(whole ? "I64" : "F32", accepted);
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

at::Tensor read_only_tensor(SafetensorsFile& file, const std::vector<at::ScalarType>& accepted) {
  if (file.entries().size() != 1) {
    throw FormatError(text(file.entries().size(), " tensors; it takes one"));
  }
  const TensorEntry& entry = file.entries().front();
  check_dtype(entry.dtype, accepted);
  return read_tensor(file, entry);
}

// What `read` returns; what it finds wrong with the file is said with its name.
template <class Read>
at::Tensor named(const std::string& path, const Read& read) {
  try {
    return read();
  } catch (const FormatError& error) {
    throw FormatError(text(path, ": ", error.what()));
  } catch (const c10::Error& error) {  // of a shape that no tensor has
    throw FormatError(text(path, ": ", error.what_without_backtrace()));
  }
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

// The folder that results go into, where they are .npy.
void make_folder_of(const std::string& path) {
  if (ends_with(path, ".safetensors")) return;
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) throw FileError(text(path, " cannot be made: ", error.message()));
}

TensorBytes bytes_of(const char* name, const at::Tensor& tensor) {
  return {name, name_of(tensor.scalar_type()), tensor.sizes().vec(), tensor.const_data_ptr(),
          static_cast<int64_t>(tensor.nbytes())};
}

}  // namespace

at::Tensor read_array(const std::string& path, const std::vector<at::ScalarType>& accepted) {
  if (!ends_with(path, ".safetensors")) {
    return named(path, [&] { return read_npy(path, accepted); });
  }
  SafetensorsFile file(path, kHeaderLimit);
  return named(path, [&] { return read_only_tensor(file, accepted); });
}

std::vector<std::string> result_files(const std::string& path) {
  if (ends_with(path, ".safetensors")) return {path};
  return {path + "/logits.npy", path + "/depth.npy"};
}

void check_writable(const std::string& path) {
  make_folder_of(path);
  for (const std::string& file : result_files(path)) const Temporary tried(file);
}

void write_results(const std::string& path, const at::Tensor& logits, const at::Tensor& depth) {
  const std::vector<std::string> files = result_files(path);
  if (files.size() == 1) {
    const Temporary file(path);
    file.fill([&](const std::string& place) {
      write_safetensors(place, {bytes_of("logits", logits), bytes_of("depth", depth)});
    });
    return file.move();
  }
  make_folder_of(path);
  const Temporary first(files[0]), second(files[1]);
  first.fill([&](const std::string& place) {
    write_npy(place, logits.to(at::kFloat).contiguous(), "<f4");
  });
  second.fill([&](const std::string& place) { write_npy(place, depth, "<i8"); });
  first.move();  // now that both are written: what stands there is of one run
  second.move();
}

}  // namespace acn
