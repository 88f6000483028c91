// Reading and writing .safetensors files: a JSON header, then the tensors' bytes without gaps.
#pragma once

#include <cstdint>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

namespace acn {

struct TensorEntry {
  std::string name;
  std::string dtype;  // "F32", "BF16", ...
  std::vector<int64_t> shape;
  int64_t begin = 0;  // bytes, from the end of the header on
  int64_t end = 0;
};

// The entries of a header, in the order of their bytes.
//
// Throws FormatError unless they are well formed, of known dtypes, as long as their shapes say, and
// cover `data_size` bytes without gap or overlap.
std::vector<TensorEntry> parse_safetensors_header(std::string_view header, int64_t data_size);

// An open file whose header is sound. Nothing larger than `header_limit` bytes is allocated before
// that is known.
class SafetensorsFile {
 public:
  // Throws FileError where it cannot be read, FormatError where it is not what it should be.
  SafetensorsFile(const std::string& path, int64_t header_limit);

  const std::string& path() const { return path_; }
  const std::vector<TensorEntry>& entries() const { return entries_; }

  // Copies the bytes of a tensor, entry.end - entry.begin of them, to `to`.
  void read(const TensorEntry& entry, void* to);

 private:
  std::string path_;
  std::ifstream file_;
  int64_t data_begin_ = 0;
  std::vector<TensorEntry> entries_;
};

struct TensorBytes {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;
  const void* data = nullptr;
  int64_t size = 0;  // bytes
};

// Throws FileError where the file cannot be written whole: a part of it may stand there then, in
// place of what stood there before.
void write_safetensors(const std::string& path, const std::vector<TensorBytes>& tensors);

// The whole of a text file of at most `limit` bytes; FileError, FormatError as above.
std::string read_text(const std::string& path, int64_t limit);

}  // namespace acn
