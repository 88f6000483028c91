// Writing a file whole or not at all.
#pragma once

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <system_error>

#include "acn/runtime/errors.h"

namespace acn {

// A new file beside `target`, which goes away with the object unless it was moved onto it.
class Temporary {
 public:
  // Throws FileError where none can be made, or a folder stands in its place.
  explicit Temporary(const std::string& target) : target_(target) {
    const std::filesystem::path place(target);
    std::error_code none;
    if (std::filesystem::is_directory(place, none)) {
      fail(std::make_error_code(std::errc::is_a_directory));
    }
    const std::string end = place.extension().string();
    path_ = (place.parent_path() / ("." + place.stem().string() + "-XXXXXX" + end)).string();
    const int handle = mkstemps(path_.data(), static_cast<int>(end.size()));
    if (handle == -1) fail({errno, std::generic_category()});
    // mkstemps keeps others from reading it, whatever the umask says.
    const mode_t mask = umask(0);
    umask(mask);
    fchmod(handle, 0666 & ~mask);
    close(handle);
  }
  ~Temporary() {
    std::error_code ignored;
    std::filesystem::remove(path_, ignored);
  }
  Temporary(const Temporary&) = delete;
  Temporary& operator=(const Temporary&) = delete;

  // `write` is called with its path.
  template <class Write>
  void fill(const Write& write) const {
    try {
      write(path_);
    } catch (const FileError&) {  // whose message names a file that nobody asked for
      throw FileError(text(target_, " cannot be written"));
    }
  }

  void move() const {
    std::error_code error;
    std::filesystem::rename(path_, target_, error);
    if (error) fail(error);
  }

 private:
  [[noreturn]] void fail(std::error_code error) const {
    throw FileError(text(target_, " cannot be written: ", error.message()));
  }

  std::string target_;
  std::string path_;
};

}  // namespace acn
