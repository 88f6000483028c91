// A saved model through the program acn_infer: the numbers of the engine, and clear refusals.
#include <ATen/ATen.h>
#include <sys/wait.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "../tools/arrays.h"
#include "acn/runtime/engine.h"
#include "acn/runtime/errors.h"
#include "acn/runtime/safetensors.h"
#include "check.h"
#include "models.h"

using namespace acn;
using namespace acn::test;

namespace {

struct Outcome {
  int status;
  std::string output;
};

Outcome infer(const Folder& folder, const std::string& arguments) {
  const std::string log = folder.path("log");
  const std::string command = std::string(ACN_INFER) + " " + arguments + " > " + log + " 2>&1";
  const int status = std::system(command.c_str());
  std::ostringstream output;
  output << std::ifstream(log).rdbuf();
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, output.str()};
}

void write_images(const std::string& path, const at::Tensor& images) {
  const char* type = name_of(images.scalar_type());
  write_safetensors(path, {{"images", type, images.sizes().vec(), images.const_data_ptr(),
                            static_cast<int64_t>(images.nbytes())}});
}

double seconds(const std::string& command) {
  const auto start = std::chrono::steady_clock::now();
  EXPECT(std::system((command + " > /dev/null").c_str()) == 0);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

struct Setting {
  explicit Setting(const std::string& kind) {
    const std::string config = config_text(kind, 4);
    write_model(folder, config, random_weights(parse_config(config)));
    images = random_input(parse_config(config), 11);
    write_images(folder.path("in.safetensors"), images);
    command = folder.path() + " " + folder.path("in.safetensors");
  }

  Folder folder;
  at::Tensor images;
  std::string command;
};

}  // namespace

TEST(numbers_are_those_of_the_engine) {
  for (const char* kind : {"vit", "vit_first", "mixer", "mixer_closing", "bert"}) {
    const Setting it(kind);
    const std::string out = it.folder.path("out.safetensors");
    const std::string options_given = " --exits 1,2,3 --threshold 1.2 --out " + out;
    const Outcome done = infer(it.folder, it.command + options_given);
    EXPECT(done.status == 0);
    EXPECT(done.output.find("depth 4: ") != std::string::npos);
    RunOptions options;
    options.exits = {1, 2, 3};
    options.threshold = 1.2;
    const Result expected = Engine::from_folder(it.folder.path()).run(it.images, options);
    SafetensorsFile file(out, 1 << 16);
    for (const TensorEntry& entry : file.entries()) {
      const at::Tensor got = read_tensor(file, entry);
      if (entry.name == "depth") EXPECT(got.equal(expected.depth));
      if (entry.name == "logits") EXPECT((got - expected.logits).abs().max().item<double>() < 1e-5);
    }
  }
}

TEST(npy_in_parts_with_a_bench) {
  const Setting it("mixer");
  const std::string out = it.folder.path("out");
  write_results(it.folder.path("images"), it.images, at::zeros({1}, at::kLong));
  const std::string input = it.folder.path("images/logits.npy");
  EXPECT(read_array(input).equal(it.images));
  const std::string options_given = " --batch 4 --threads 1 --depth 2 --bench 3 --out " + out;
  const Outcome done = infer(it.folder, it.folder.path() + " " + input + options_given);
  EXPECT(done.status == 0);
  EXPECT(done.output.find("milliseconds: median") != std::string::npos);
  EXPECT(done.output.find("depth 2: 11 samples") != std::string::npos);
  RunOptions options;
  options.depth = 2;
  const Result expected = Engine::from_folder(it.folder.path()).run(it.images, options);
  const at::Tensor got = read_array(out + "/logits.npy");
  EXPECT((got - expected.logits).abs().max().item<double>() < 1e-5);
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
TEST(starts_in_a_second_beyond_torch) {
  const Setting it("mixer");
  const std::string command = std::string(ACN_INFER) + " " + it.command;
  double loaded = INFINITY, done = INFINITY;  // the least: other work on the machine only adds
  for (int i = 0; i < 9; ++i) {
    loaded = std::min(loaded, seconds(LOAD_TORCH));
    done = std::min(done, seconds(command));
  }
  std::printf("      torch loads in %.3f s, acn_infer is done in %.3f s\n", loaded, done);
  EXPECT(done - loaded < 1);
}
#endif

TEST(refusals) {
  const Setting it("mixer");
  const auto refused = [&](const std::string& arguments, int status, const std::string& message) {
    const Outcome done = infer(it.folder, arguments);
    if (done.status != status || done.output.find(message) == std::string::npos) {
      fail(__FILE__, __LINE__, text(arguments, " gave ", done.status, ": ", done.output));
    }
  };
  refused("", 2, "it takes MODEL and INPUT");
  refused("--help", 0, "--criterion");
  refused(it.command + " --nonsense 3", 2, "--nonsense is unknown");
  refused(it.command + " --depth", 2, "--depth takes a value");
  refused(it.command + " --depth x", 2, "--depth is 'x'");
  refused(it.command + " --exits 1", 2, "go together");
  refused(it.command + " --exits 1,,2 --threshold 1", 2, "--exits is ''");
  refused(it.command + " --exits 1 --threshold -1", 2, "threshold is -1");
  refused(it.command + " --criterion luck", 2, "criterion is 'luck'");
  refused(it.command + " --device moon", 2, "--device is 'moon'; it takes cpu or cuda");
  refused(it.command + " --device meta", 1, "this build of the engine takes cpu");
  refused(it.command + " --exits 4 --threshold 1", 1, "exits holds 4");
  refused(it.command + " --depth 9", 1, "depth is 9");
  refused(it.folder.path("none") + " x.npy", 1, "none/config.json is missing");
  refused(it.folder.path() + " none.npy", 1, "none.npy cannot be opened");
  write_text(it.folder.path("bad.npy"), "no numpy");
  refused(it.folder.path() + " " + it.folder.path("bad.npy"), 1, "no .npy file");
  const std::string small = it.folder.path("small.safetensors");
  write_images(small, at::zeros({2, 3, 4, 4}));
  refused(it.folder.path() + " " + small, 1, "it takes [batch, 3, 10");
}

TEST_MAIN()
