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

// After what the shell does `before`.
Outcome infer(const Folder& folder, const std::string& arguments, const std::string& before = "") {
  const std::string log = folder.path("log");
  const std::string command =
      before + std::string(ACN_INFER) + " " + arguments + " > " + log + " 2>&1";
  const int status = std::system(command.c_str());
  std::ostringstream output;
  output << std::ifstream(log).rdbuf();
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, output.str()};
}

std::vector<std::string> names_in(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    names.push_back(entry.path().filename());
  }
  std::sort(names.begin(), names.end());
  return names;
}

// A .npy file of this header, be it one that numpy would not write.
void write_npy(const std::string& path, const std::string& header, const std::string& data) {
  std::string start("\x93NUMPY\x01\0\0\0", 10);
  start[8] = static_cast<char>(header.size());
  write_text(path, start + header + data);
}

void write_images(const std::string& path, const at::Tensor& images, const char* type = nullptr) {
  write_safetensors(path, {{"images", type ? type : name_of(images.scalar_type()),
                            images.sizes().vec(), images.const_data_ptr(),
                            static_cast<int64_t>(images.nbytes())}});
}

double seconds(const std::string& command) {
  const auto start = std::chrono::steady_clock::now();
  EXPECT(std::system((command + " > /dev/null").c_str()) == 0);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

struct Setting {
  explicit Setting(const std::string& kind, at::ScalarType type = at::kFloat,
                   int64_t batch = 11) {
    const std::string config = config_text(kind, 4);
    write_model(model, config, random_weights(parse_config(config), type));
    images = random_input(parse_config(config), batch);
    write_images(folder.path("in.safetensors"), images);
    command = on("in.safetensors");
  }

  std::string on(const std::string& input) const {
    return model.path() + " " + folder.path(input);
  }

  // Fails unless the program ends with the status and says `message`.
  void gives(const std::string& arguments, int status, const std::string& message = "") const {
    const Outcome done = infer(folder, arguments);
    if (done.status != status || done.output.find(message) == std::string::npos) {
      fail(__FILE__, __LINE__, text(arguments, " gave ", done.status, ": ", done.output));
    }
  }

  Folder model, folder;
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
    const Result expected = Engine::from_folder(it.model.path()).run(it.images, options);
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
  EXPECT(read_array(input, {at::kFloat}).equal(it.images));
  const std::string options_given = " --batch 4 --threads 1 --depth 2 --bench 3 --out " + out;
  const Outcome done = infer(it.folder, it.on("images/logits.npy") + options_given);
  EXPECT(done.status == 0);
  EXPECT(done.output.find("milliseconds: median") != std::string::npos);
  EXPECT(done.output.find("depth 2: 11 samples") != std::string::npos);
  RunOptions options;
  options.depth = 2;
  const Result expected = Engine::from_folder(it.model.path()).run(it.images, options);
  const at::Tensor got = read_array(out + "/logits.npy", {at::kFloat});
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
  it.gives("", 2, "it takes MODEL and INPUT");
  it.gives("--help", 0, "--criterion");
  it.gives(it.command + " --nonsense 3", 2, "--nonsense is unknown");
  it.gives(it.command + " --depth", 2, "--depth takes a value");
  it.gives(it.command + " --depth x", 2, "--depth is 'x'");
  it.gives(it.command + " --threads 4294967297", 2, "at least 0 and at most 1024");
  it.gives(it.command + " --threads 1025", 2, "--threads is '1025'");
  it.gives(it.command + " --exits 1", 2, "go together");
  it.gives(it.command + " --exits 1,,2 --threshold 1", 2, "--exits is ''");
  it.gives(it.command + " --exits 1 --threshold -1", 2, "threshold is -1");
  it.gives(it.command + " --criterion luck", 2, "criterion is 'luck'");
  it.gives(it.command + " --criterion margin", 2, "--criterion goes with --exits");
  it.gives(it.command + " --device moon", 2, "--device is 'moon'; it takes cpu or cuda");
  it.gives(it.command + " --device meta", 1, "this build of the engine takes cpu");
  it.gives(it.command + " --exits 4 --threshold 1", 1, "exits holds 4");
  it.gives(it.command + " --depth 9", 1, "depth is 9");
  it.gives(it.folder.path("none") + " x.npy", 1, "none/config.json is missing");
  it.gives(it.on("none.npy"), 1, "none.npy cannot be opened");
  write_images(it.folder.path("small.safetensors"), at::zeros({2, 3, 4, 4}));
  it.gives(it.on("small.safetensors"), 1, "it takes [batch, 3, 10");
}

TEST(inputs_are_of_the_dtype_that_the_model_takes) {
  const Setting fp32("mixer"), bf16("mixer", at::kBFloat16), texts("bert");
  const auto refused = [](const Setting& it, const at::Tensor& input, const char* type,
                          const std::string& takes) {
    write_images(it.folder.path("other.safetensors"), input, type);
    it.gives(it.on("other.safetensors"), 1,
             text("other.safetensors: dtype is ", type, "; it takes ", takes, "\n"));
  };
  refused(fp32, fp32.images.to(at::kBFloat16), "BF16", "F32");
  refused(fp32, fp32.images.to(at::kDouble), "F64", "F32");
  refused(fp32, fp32.images.to(at::kByte), "U8", "F32");
  refused(fp32, fp32.images.to(at::kBool), "BOOL", "F32");
  refused(bf16, fp32.images.to(at::kLong), "I64", "F32 or BF16");
  refused(texts, texts.images.to(at::kFloat), "F32", "I64");
  bf16.gives(bf16.command, 0, "depth 4: 11 samples");
  write_images(bf16.folder.path("own.safetensors"), bf16.images.to(at::kBFloat16));
  bf16.gives(bf16.on("own.safetensors"), 0, "depth 4: 11 samples");

  write_results(fp32.folder.path("npy"), fp32.images, at::zeros(fp32.images.sizes(), at::kLong));
  fp32.gives(fp32.on("npy/depth.npy"), 1, "npy/depth.npy: dtype is I64; it takes F32\n");
  texts.gives(texts.model.path() + " " + fp32.folder.path("npy/logits.npy"), 1,
              "npy/logits.npy: dtype is F32; it takes I64\n");
}

TEST(npy_files_that_are_refused) {
  const Folder folder;
  const std::string path = folder.path("bad.npy");
  const auto read = [&](const std::string& shape, size_t bytes) {
    write_npy(path, "{'descr': '<f4', 'fortran_order': False, 'shape': " + shape + ", }\n",
              std::string(bytes, '\0'));
    return read_array(path, {at::kFloat}).sizes().vec();
  };
  EXPECT(read("()", 4).empty());
  EXPECT((read("(2,)", 8) == std::vector<int64_t>{2}));
  EXPECT((read("(2, 3)", 24) == std::vector<int64_t>{2, 3}));
  EXPECT((read("(2,3,)", 24) == std::vector<int64_t>{2, 3}));
  for (const char* shape : {"(1 1 8 8)", "(1, 1 8, 8)", "(64)", "(8., 8.)"}) {
    EXPECT_THROWS(FormatError, "bad.npy: the shape has no comma after a size", read(shape, 256));
  }
  for (const char* shape : {"(,)", "(8,,8)", "(,8, 8)", "(-8, -8)"}) {
    EXPECT_THROWS(FormatError, "bad.npy: the shape holds no sizes", read(shape, 256));
  }
  EXPECT_THROWS(FormatError, "bad.npy: the shape is no tuple", read("8, 8", 256));
  EXPECT_THROWS(FormatError, "bad.npy: the file has 256 bytes of data", read("(8, 9)", 256));
  write_text(path, "no numpy");
  EXPECT_THROWS(FormatError, "bad.npy: no .npy file", read_array(path, {at::kFloat}));

  // Nothing in all, but more than a tensor can count.
  const std::string shape = "(0, 1152921504606846976, 1152921504606846976, 8)";
  EXPECT_THROWS(FormatError, "bad.npy: ", read(shape, 0));
  const Setting it("mixer");
  const std::string input = it.model.path() + " " + path;
  it.gives(input, 1, "bad.npy: ");
  EXPECT(infer(it.folder, input).output.find("Exception raised from") == std::string::npos);
}

#ifndef __SANITIZE_THREAD__  // which keeps files of its own, larger than the limit below
TEST(results_are_whole_or_not_there) {
  const Setting it("mixer", at::kFloat, 400);  // whose logits take 11200 bytes
  const std::string out = it.folder.path("out"), file = it.folder.path("out/all.safetensors");
  const auto run = [&](const std::string& before, const std::string& place) {
    return infer(it.folder, it.command + " --out " + place, before);
  };
  for (const std::string& place : {out, file}) EXPECT(run("", place).status == 0);
  const auto content = [&] {
    std::string all;
    for (const char* name : {"logits.npy", "depth.npy", "all.safetensors"}) {
      std::ostringstream one;
      one << std::ifstream(out + "/" + name, std::ios::binary).rdbuf();
      all += one.str();
    }
    return all;
  };
  const std::vector<std::string> names{"all.safetensors", "depth.npy", "logits.npy"};
  EXPECT(names_in(out) == names);
  const std::string whole = content();
  write_images(it.folder.path("in.safetensors"), it.images + 1);  // for other results
  for (const auto& [place, named] : {std::pair(out, out + "/logits.npy"), std::pair(file, file)}) {
    const Outcome done = run("ulimit -f 8; ", place);
    EXPECT(done.status == 1);
    EXPECT(done.output.find("acn_infer: " + named + " cannot be written") != std::string::npos);
    EXPECT(content() == whole);
    EXPECT(names_in(out) == names);
  }
  EXPECT(run("umask 027; ", file).status == 0);
  EXPECT(content() != whole);
  EXPECT(names_in(out) == names);
  using std::filesystem::perms;
  const perms of_file = std::filesystem::status(file).permissions();
  EXPECT(of_file == (perms::owner_read | perms::owner_write | perms::group_read));
}
#endif

TEST(places_that_are_refused_before_the_run) {
  const Setting it("mixer");
  const auto refused = [&](const std::string& out, int status, const std::string& message) {
    const Outcome done = infer(it.folder, it.command + " --out " + out);
    if (done.status != status || done.output.find("acn_infer: " + message) != 0) {
      fail(__FILE__, __LINE__, text("--out ", out, " gave ", done.status, ": ", done.output));
    }
  };
  refused("''", 2, "--out is ''; it takes a path");
  const std::string input = it.folder.path("in.safetensors");
  std::filesystem::create_directory_symlink(it.folder.path(), it.folder.path("link"));
  std::filesystem::create_directory_symlink(it.model.path(), it.folder.path("model"));
  for (const std::string& out : {input, it.folder.path("link//./in.safetensors")}) {
    refused(out, 2, text("--out is '", out, "'; it takes a place other than INPUT, '", input, "'"));
  }
  for (const std::string& out :
       {it.model.path("model.safetensors"), it.folder.path("model/model.safetensors")}) {
    refused(out, 2, text("--out is '", out, "'; it takes a place other than the weights, '"));
  }
  write_results(it.folder.path("npy"), it.images, at::zeros({1}, at::kLong));
  for (const char* out : {"npy", "npy/logits.npy"}) {
    it.gives(it.on("npy/logits.npy") + " --out " + it.folder.path(out), 2, "other than INPUT");
  }
  it.gives(it.command + " --out " + it.model.path("out.safetensors"), 0);

  std::filesystem::create_directories(it.folder.path("taken.safetensors"));
  std::filesystem::create_directories(it.folder.path("taken/depth.npy"));
  const auto unwritable = [&](const std::string& out, const std::string& name,
                              const std::string& why) {
    refused(it.folder.path(out), 1, it.folder.path(name) + why);
  };
  unwritable("none/a.safetensors", "none/a.safetensors", " cannot be written: No such file");
  unwritable("taken.safetensors", "taken.safetensors", " cannot be written: Is a directory");
  unwritable("taken", "taken/depth.npy", " cannot be written: Is a directory");
  unwritable("in.safetensors/out", "in.safetensors/out", " cannot be made: Not a directory");
  EXPECT(names_in(it.folder.path("taken")) == std::vector<std::string>{"depth.npy"});
}

TEST_MAIN()
