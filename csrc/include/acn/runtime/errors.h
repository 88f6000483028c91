// What the runtime throws. Wrong arguments are std::invalid_argument itself.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace acn {

// A file that is damaged, truncated, or not what its place calls for.
class FormatError : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

// A file that is not there or cannot be read or written.
class FileError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

}  // namespace acn
