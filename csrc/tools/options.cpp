#include "options.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <limits>
#include <map>
#include <utility>
#include <vector>

#include "acn/runtime/errors.h"
#include "arrays.h"

namespace acn {

const char* const kUsage = R"(acn_infer MODEL INPUT [options]

MODEL   a folder that acn-kernels export or save_pretrained wrote
INPUT   images [N, channels, size, size]: .npy of float32, or .safetensors with one such tensor
        or one in the model's dtype; of a BERT [N, 2, T] int64, words and mask, or [N, 3, T]
        with token types; of a model that was compiled as a whole, what it takes

  --out PATH         PATH.safetensors, or a folder for logits.npy and depth.npy
  --exits 4,8,12     depths at which samples may leave
  --threshold X      an exit's certainty, see --criterion
  --criterion NAME   entropy (below X nats; the default), probability or margin (above X)
  --depth K          at most K layers
  --batch N          samples a call (all)
  --micro-batch N    samples that go through the layers together (as the cache holds)
  --device NAME      cpu, or cuda where acn_infer was built with it (cpu)
  --threads N        threads (torch's default)
  --aot              run what export --aot compiled: programs, so trust their source
  --bench N          repeat N times and print times in milliseconds

Exit status: 0 done; 1 a file or its content is wrong, or the model does not take what the options
say; 2 the command line is wrong.
)";

namespace {

constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
constexpr int64_t kMostThreads = 1024;  // OpenMP ends the program where it cannot start as many

int64_t whole(const std::string& name, const std::string& word, int64_t most = kMost) {
  int64_t value = 0;
  const char* end = word.data() + word.size();
  const auto [stop, error] = std::from_chars(word.data(), end, value);
  if (error != std::errc() || stop != end || word.empty() || value < 0 || value > most) {
    throw UsageError(text(name, " is '", word, "'; it takes a whole number, at least 0",
                          most == kMost ? "" : text(" and at most ", most)));
  }
  return value;
}

double number(const std::string& name, const std::string& word) {
  char* end = nullptr;
  const double value = std::strtod(word.c_str(), &end);  // which takes the smallest numbers, too
  if (word.empty() || end != word.c_str() + word.size()) {
    throw UsageError(text(name, " is '", word, "'; it takes a number"));
  }
  return value;
}

std::vector<int64_t> list(const std::string& name, const std::string& words) {
  std::vector<int64_t> values;
  for (size_t at = 0; at <= words.size();) {
    const size_t comma = std::min(words.find(',', at), words.size());
    values.push_back(whole(name, words.substr(at, comma - at)));
    at = comma + 1;
  }
  return values;
}

std::filesystem::path canonical(const std::string& path) {
  return std::filesystem::weakly_canonical(std::filesystem::current_path() / path);
}

// Results replace neither what they are made of nor what they are made by.
void check_elsewhere(const std::string& out, const std::string& model, const std::string& input) {
  const std::pair<const char*, std::string> needed[] = {
      {"INPUT, '", input}, {"the weights, '", model + "/model.safetensors"}};
  std::vector<std::string> places = result_files(out);
  places.push_back(out);
  for (const std::string& place : places) {
    for (const auto& [what, file] : needed) {
      if (canonical(place) != canonical(file)) continue;
      throw UsageError(text("--out is '", out, "'; it takes a place other than ", what, file, "'"));
    }
  }
}

at::Device device(const std::string& name, const std::string& word) {
  try {
    return at::Device(word);
  } catch (const c10::Error&) {
    throw UsageError(text(name, " is '", word, "'; it takes cpu or cuda"));
  }
}

}  // namespace

Arguments parse_arguments(int argc, const char* const* argv) {
  Arguments arguments;
  bool criterion = false, threshold = false;
  using Take = std::function<void(const std::string& name, const std::string& value)>;
  const auto into = [](int64_t& place, int64_t most = kMost) -> Take {
    return [&place, most](const auto& name, const auto& value) {
      place = whole(name, value, most);
    };
  };
  const std::map<std::string, Take> options{
      {"--out", [&](const auto& name, const auto& value) {
         if (value.empty()) throw UsageError(text(name, " is ''; it takes a path"));
         arguments.out = value;
       }},
      {"--device", [&](const auto& name, const auto& value) {
         arguments.device = device(name, value);
       }},
      {"--exits", [&](const auto& name, const auto& value) {
         arguments.run.exits = list(name, value);
       }},
      {"--threshold", [&](const auto& name, const auto& value) {
         arguments.run.threshold = number(name, value);
         threshold = true;
       }},
      {"--criterion", [&](const auto&, const auto& value) {
         arguments.run.criterion = criterion_of(value);
         criterion = true;
       }},
      {"--depth", into(arguments.run.depth)},
      {"--batch", into(arguments.batch)},
      {"--micro-batch", into(arguments.run.micro_batch)},
      {"--threads", into(arguments.threads, kMostThreads)},
      {"--bench", into(arguments.bench)},
  };
  std::vector<std::string> places;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--help" || word == "-h") {
      arguments.help = true;
      return arguments;
    }
    if (word == "--aot") {
      arguments.aot = true;
      continue;
    }
    const auto option = options.find(word);
    if (option != options.end()) {
      if (i + 1 == argc) throw UsageError(text(word, " takes a value"));
      option->second(word, argv[++i]);
    } else if (word.size() > 1 && word[0] == '-') {
      throw UsageError(text(word, " is unknown; acn_infer --help lists what there is"));
    } else {
      places.push_back(word);
    }
  }
  if (places.size() != 2) throw UsageError("it takes MODEL and INPUT; see acn_infer --help");
  if (arguments.run.exits.empty() == threshold) {
    throw UsageError("--exits and --threshold go together");
  }
  if (criterion && !threshold) {
    throw UsageError("--criterion goes with --exits and --threshold");
  }
  check_threshold(arguments.run.criterion, arguments.run.threshold);
  arguments.model = places[0];
  arguments.input = places[1];
  if (!arguments.out.empty()) check_elsewhere(arguments.out, arguments.model, arguments.input);
  return arguments;
}

}  // namespace acn
