#include "acn/runtime/safetensors.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <utility>

#include "acn/runtime/config.h"
#include "acn/runtime/errors.h"
#include "acn/runtime/json.h"

namespace acn {
namespace {

constexpr int64_t kLengthBytes = 8;
constexpr size_t kMostDimensions = 8;

int64_t bytes_of(const std::string& dtype) {
  static const std::array<std::pair<const char*, int64_t>, 13> kSizes{
      {{"BOOL", 1}, {"U8", 1}, {"I8", 1}, {"I16", 2}, {"U16", 2}, {"F16", 2}, {"BF16", 2},
       {"I32", 4}, {"U32", 4}, {"F32", 4}, {"I64", 8}, {"U64", 8}, {"F64", 8}}};
  for (const auto& [name, size] : kSizes) {
    if (dtype == name) return size;
  }
  throw FormatError(text("dtype '", dtype.substr(0, 20), "' is unknown"));
}

const Json& member(const Json::Object& object, const std::string& name, const std::string& of) {
  const auto found = object.find(name);
  if (found == object.end()) throw FormatError(text(of, " has no ", name));
  return found->second;
}

TensorEntry parse_entry(const std::string& name, const Json& value) {
  const std::string what = "tensor '" + name.substr(0, 80) + "'";
  const Json::Object& object = value.object(what);
  TensorEntry entry;
  entry.name = name;
  entry.dtype = member(object, "dtype", what).string("dtype of " + what);
  for (const Json& size : member(object, "shape", what).array("shape of " + what)) {
    entry.shape.push_back(size.integer("shape of " + what));
  }
  const Json::Array& offsets = member(object, "data_offsets", what).array("offsets of " + what);
  if (object.size() != 3 || offsets.size() != 2 || entry.shape.size() > kMostDimensions) {
    throw FormatError(text(what, " is not described by a dtype, a shape and two offsets"));
  }
  entry.begin = offsets[0].integer("offsets of " + what);
  entry.end = offsets[1].integer("offsets of " + what);
  int64_t size = 0;
  if (entry.begin < 0 || entry.end < entry.begin ||
      __builtin_mul_overflow(elements_of(entry.shape), bytes_of(entry.dtype), &size) ||
      size != entry.end - entry.begin) {
    throw FormatError(text(what, " has offsets ", entry.begin, ", ", entry.end,
                           " that do not go with its shape and dtype"));
  }
  return entry;
}

void check_metadata(const Json& value) {
  for (const auto& [name, item] : value.object("__metadata__")) {
    item.string("an item of __metadata__");
  }
}

int64_t little_endian(const std::array<unsigned char, kLengthBytes>& bytes) {
  uint64_t value = 0;
  for (int i = kLengthBytes - 1; i >= 0; --i) value = value << 8 | bytes[i];
  return static_cast<int64_t>(value);
}

int64_t size_of_file(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) {
    throw FileError(text(path, " is missing, or no file"));
  }
  const auto size = std::filesystem::file_size(path, error);
  if (error) throw FileError(text(path, " cannot be read: ", error.message()));
  return static_cast<int64_t>(size);
}

// "name":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}; the names are the program's own.
std::string described(const TensorBytes& tensor, int64_t begin) {
  std::string shape;
  for (const int64_t size : tensor.shape) shape += (shape.empty() ? "" : ",") + text(size);
  return text("\"", tensor.name, "\":{\"dtype\":\"", tensor.dtype, "\",\"shape\":[", shape,
              "],\"data_offsets\":[", begin, ",", begin + tensor.size, "]}");
}

}  // namespace

std::vector<TensorEntry> parse_safetensors_header(std::string_view header, int64_t data_size) {
  const Json document = Json::parse(header);
  std::vector<TensorEntry> entries;
  for (const auto& [name, value] : document.object("the header")) {
    if (name == "__metadata__") {
      check_metadata(value);
    } else {
      entries.push_back(parse_entry(name, value));
    }
  }
  std::sort(entries.begin(), entries.end(), [](const TensorEntry& a, const TensorEntry& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  int64_t covered = 0;
  for (const TensorEntry& entry : entries) {
    if (entry.begin != covered) {
      throw FormatError(text("tensor '", entry.name.substr(0, 80), "' begins at byte ",
                             entry.begin, ", the one before it ends at ", covered));
    }
    covered = entry.end;
  }
  if (covered != data_size) {
    throw FormatError(text("the header describes ", covered, " bytes, the file has ", data_size));
  }
  return entries;
}

SafetensorsFile::SafetensorsFile(const std::string& path, int64_t header_limit) : path_(path) {
  const int64_t size = size_of_file(path);
  file_.open(path, std::ios::binary);
  if (!file_) throw FileError(text(path, " cannot be opened"));
  std::array<unsigned char, kLengthBytes> length_bytes{};
  if (!file_.read(reinterpret_cast<char*>(length_bytes.data()), kLengthBytes)) {
    throw FormatError(text(path, ": a file of ", size, " bytes has no header"));
  }
  const int64_t length = little_endian(length_bytes);
  if (length < 0 || length > size - kLengthBytes || length > header_limit) {
    throw FormatError(text(path, ": a header of ", static_cast<uint64_t>(length),
                           " bytes is more than the file holds or this model needs"));
  }
  std::string header(static_cast<size_t>(length), '\0');
  if (!file_.read(header.data(), length)) throw FormatError(text(path, ": the header is cut off"));
  data_begin_ = kLengthBytes + length;
  try {
    entries_ = parse_safetensors_header(header, size - data_begin_);
  } catch (const FormatError& error) {
    throw FormatError(text(path, ": ", error.what()));
  }
}

void SafetensorsFile::read(const TensorEntry& entry, void* to) {
  file_.seekg(data_begin_ + entry.begin);
  if (!file_.read(static_cast<char*>(to), entry.end - entry.begin)) {
    throw FormatError(text(path_, ": tensor '", entry.name, "' is cut off"));
  }
}

void write_safetensors(const std::string& path, const std::vector<TensorBytes>& tensors) {
  std::string header = "{";
  int64_t at = 0;
  for (const TensorBytes& tensor : tensors) {
    header += (header.size() > 1 ? "," : "") + described(tensor, at);
    at += tensor.size;
  }
  header += "}";
  header.resize((header.size() + kLengthBytes - 1) / kLengthBytes * kLengthBytes, ' ');
  std::ofstream file(path, std::ios::binary);
  std::array<char, kLengthBytes> length{};
  for (int i = 0; i < kLengthBytes; ++i) length[i] = static_cast<char>(header.size() >> 8 * i);
  file.write(length.data(), kLengthBytes);
  file << header;
  for (const TensorBytes& tensor : tensors) {
    file.write(static_cast<const char*>(tensor.data), tensor.size);
  }
  file.close();
  if (!file) throw FileError(text(path, " cannot be written"));
}

std::string read_text(const std::string& path, int64_t limit) {
  const int64_t size = size_of_file(path);
  if (size > limit) throw FormatError(text(path, ": ", size, " bytes are too many"));
  std::string content(static_cast<size_t>(size), '\0');
  std::ifstream file(path, std::ios::binary);
  if (!file.read(content.data(), size)) throw FileError(text(path, " cannot be read"));
  return content;
}

}  // namespace acn
