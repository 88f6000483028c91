// Damaged models: each is refused with a FormatError, or loads because the damage lies in the
// numbers alone. Nothing crashes, hangs, or allocates more than the file is long.
#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>

#include "acn/runtime/engine.h"
#include "acn/runtime/errors.h"
#include "check.h"
#include "models.h"

using namespace acn;
using namespace acn::test;

namespace {

constexpr const char* kKinds[] = {"mixer", "vit", "bert"};

std::string content(const std::string& path) {
  std::ostringstream out;
  out << std::ifstream(path, std::ios::binary).rdbuf();
  return out.str();
}

class Fuzz {
 public:
  explicit Fuzz(const std::string& kind) {
    config_ = config_text(kind, 2);
    write_model(folder_, config_, random_weights(parse_config(config_)));
    weights_ = content(folder_.path("model.safetensors"));
    uint64_t length = 0;
    for (int i = 7; i >= 0; --i) length = length << 8 | static_cast<unsigned char>(weights_[i]);
    header_ = 8 + length;
  }

  // Whether the folder with these two files loads; it must not throw anything else.
  bool loads(const std::string& config, const std::string& weights) const {
    write_text(folder_.path("config.json"), config);
    write_text(folder_.path("model.safetensors"), weights);
    try {
      Engine::from_folder(folder_.path());
      return true;
    } catch (const FormatError&) {
      return false;
    }
  }

  size_t below(size_t end) { return std::uniform_int_distribution<size_t>(0, end - 1)(random_); }

  std::string flipped(std::string bytes, size_t end, size_t flips) {
    for (size_t i = 0; i < flips; ++i) bytes[below(end)] ^= static_cast<char>(1 << below(8));
    return bytes;
  }

  std::string config_, weights_;
  size_t header_ = 0;

 private:
  Folder folder_;
  std::mt19937_64 random_{std::random_device{}()};
};

}  // namespace

TEST(sound) {
  for (const char* kind : kKinds) {
    Fuzz fuzz(kind);
    EXPECT(fuzz.loads(fuzz.config_, fuzz.weights_));
  }
}

TEST(truncated) {
  for (const char* kind : kKinds) {
    Fuzz fuzz(kind);
    for (int i = 0; i < 300; ++i) {
      const size_t end = i % 2 ? fuzz.header_ : fuzz.weights_.size();
      EXPECT(!fuzz.loads(fuzz.config_, fuzz.weights_.substr(0, fuzz.below(end))));
      EXPECT(!fuzz.loads(fuzz.config_.substr(0, fuzz.below(fuzz.config_.size())), fuzz.weights_));
    }
  }
}

TEST(prolonged) {
  for (const char* kind : kKinds) {
    Fuzz fuzz(kind);
    EXPECT(!fuzz.loads(fuzz.config_, fuzz.weights_ + "x"));
    EXPECT(!fuzz.loads(fuzz.config_ + "x", fuzz.weights_));
  }
}

TEST(flipped_bits) {
  for (const char* kind : kKinds) {
    Fuzz fuzz(kind);
    for (int i = 0; i < 1500; ++i) {
      fuzz.loads(fuzz.config_, fuzz.flipped(fuzz.weights_, fuzz.header_, 1 + fuzz.below(4)));
      fuzz.loads(fuzz.flipped(fuzz.config_, fuzz.config_.size(), 1 + fuzz.below(3)), fuzz.weights_);
    }
    std::string numbers = fuzz.weights_;
    numbers[fuzz.header_ + 5] ^= 1;
    EXPECT(fuzz.loads(fuzz.config_, numbers));
  }
}

TEST(digits_replaced) {
  for (const char* kind : kKinds) {
    Fuzz fuzz(kind);
    const char* hostile[] = {"-1", "0", "9223372036854775807", "18446744073709551616", "1e9", "[]",
                             "4294967296", "null"};
    for (int i = 0; i < 1500; ++i) {
      size_t at = 8 + fuzz.below(fuzz.header_ - 8);
      at = fuzz.weights_.find_first_of("0123456789", at);
      if (at >= fuzz.header_) continue;
      const std::string word = hostile[fuzz.below(8)];
      std::string header = fuzz.weights_.substr(8, fuzz.header_ - 8);
      header.replace(at - 8, 1, word);
      std::string file;
      for (int k = 0; k < 8; ++k) file += static_cast<char>(header.size() >> 8 * k);
      fuzz.loads(fuzz.config_, file + header + fuzz.weights_.substr(fuzz.header_));
    }
  }
}

TEST(hostile_lengths_and_nesting) {
  for (const char* kind : kKinds) {
    Fuzz fuzz(kind);
    for (int bit = 0; bit < 64; ++bit) {
      std::string file = fuzz.weights_;
      file[bit / 8] ^= static_cast<char>(1 << bit % 8);
      EXPECT(!fuzz.loads(fuzz.config_, file));
    }
    const std::string deep(60000, '[');
    EXPECT(!fuzz.loads(deep, fuzz.weights_));
    std::string file;
    for (int i = 0; i < 8; ++i) file += static_cast<char>(deep.size() >> 8 * i);
    EXPECT(!fuzz.loads(fuzz.config_, file + deep));
    EXPECT(!fuzz.loads(std::string(1 << 20, ' '), fuzz.weights_));
  }
}

TEST(foreign_files) {
  Fuzz fuzz("mixer");
  EXPECT(!fuzz.loads(config_text("mixer", 3), fuzz.weights_));
  EXPECT(!fuzz.loads(config_text("mixer", 1), fuzz.weights_));
  EXPECT(!fuzz.loads(config_text("mixer_closing", 2), fuzz.weights_));
  EXPECT(!fuzz.loads(config_text("vit", 2), fuzz.weights_));
  EXPECT(!fuzz.loads(config_text("bert", 2), fuzz.weights_));
  EXPECT(!fuzz.loads(config_text("compiled", 2), fuzz.weights_));
}

// Programs beside the weights, which are looked at where somebody asks for them.
TEST(segments_that_do_not_load) {
  for (const char* kind : kKinds) {
    const Folder folder;
    const std::string config = config_text(kind, 2);
    write_model(folder, config, random_weights(parse_config(config)));
    write_text(folder.path("segment-0-1.pt2.old"), "no program");
    write_text(folder.path("segment-1-2.pt2x"), "no program");
    EXPECT_THROWS(FormatError, "holds no compiled segment",
                  Engine::from_folder(folder.path(), true));
    for (const char* name : {"segment-0-3.pt2", "segment-1-1.pt2", "segment-2-1.pt2"}) {
      write_text(folder.path(name), "no program");
      EXPECT_THROWS(FormatError, "layers that a model of 2 lacks",
                    Engine::from_folder(folder.path(), true));
      std::filesystem::remove(folder.path(name));
    }
    write_text(folder.path("segment-0-2.pt2"), "no program");
    EXPECT_THROWS(FormatError, "segment-0-2.pt2 does not load",
                  Engine::from_folder(folder.path(), true));
    EXPECT(Engine::from_folder(folder.path()).compiled_segments() == 0);
  }
}

// A folder of programs alone, none of which loads: it is refused for that, or for its
// configuration, before a tensor is made; and for what it is where nobody asked for programs.
TEST(folders_of_programs) {
  const Folder folder;
  const std::string sound = config_text("compiled", 2);
  std::mt19937_64 random{std::random_device{}()};
  const auto below = [&](size_t end) {
    return std::uniform_int_distribution<size_t>(0, end - 1)(random);
  };
  write_text(folder.path("config.json"), sound);
  EXPECT_THROWS(FormatError, "programs and no weights", Engine::from_folder(folder.path()));
  EXPECT_THROWS(FileError, "stem.pt2 is missing", Engine::from_folder(folder.path(), true));
  for (const char* name : {"stem", "segment-0-1", "segment-1-2", "head"}) {
    std::string bytes(below(400), '\0');
    for (char& byte : bytes) byte = static_cast<char>(below(256));
    write_text(folder.path(std::string(name) + ".pt2"), bytes);
  }
  EXPECT_THROWS(FormatError, "does not load", Engine::from_folder(folder.path(), true));
  for (int i = 0; i < 500; ++i) {
    std::string config = sound;
    for (size_t flips = 1 + below(3); flips > 0; --flips) {
      config[below(config.size())] ^= static_cast<char>(1 << below(8));
    }
    if (i % 3 == 0) config.resize(below(config.size()));
    write_text(folder.path("config.json"), config);
    bool refused = false;
    try {
      Engine::from_folder(folder.path(), true);
    } catch (const FormatError&) {
      refused = true;
    } catch (const FileError&) {
      refused = true;  // other depths have other files
    }
    EXPECT(refused);
  }
}

TEST_MAIN()
