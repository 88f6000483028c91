#include "checksum.h"

#include <array>
#include <fstream>
#include <vector>

#include "acn/runtime/errors.h"

namespace acn {
namespace {

constexpr size_t kBlock = 1 << 20;

std::array<uint32_t, 256> table() {
  std::array<uint32_t, 256> result{};
  for (uint32_t byte = 0; byte < result.size(); ++byte) {
    uint32_t rest = byte;
    for (int bit = 0; bit < 8; ++bit) rest = rest & 1 ? 0xEDB88320U ^ rest >> 1 : rest >> 1;
    result[byte] = rest;
  }
  return result;
}

}  // namespace

uint32_t checksum(const std::string& path, uint32_t before) {
  static const std::array<uint32_t, 256> steps = table();
  std::ifstream file(path, std::ios::binary);
  if (!file) throw FileError(text(path, " cannot be opened"));
  std::vector<char> block(kBlock);
  uint32_t rest = ~before;
  do {
    file.read(block.data(), static_cast<std::streamsize>(kBlock));
    for (std::streamsize i = 0; i < file.gcount(); ++i) {
      rest = steps[(rest ^ static_cast<unsigned char>(block[i])) & 255] ^ rest >> 8;
    }
  } while (file);
  if (!file.eof()) throw FileError(text(path, " cannot be read"));
  return ~rest;
}

}  // namespace acn
