// Whether a file is the one that was there before.
#pragma once

#include <cstdint>
#include <string>

namespace acn {

// CRC-32 of the file's bytes after those that `before` is of, as zlib counts it: no protection
// against somebody who means it. Throws FileError where the file cannot be read.
uint32_t checksum(const std::string& path, uint32_t before = 0);

}  // namespace acn
