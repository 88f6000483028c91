#include "acn/runtime/config.h"

#include "acn/runtime/errors.h"
#include "check.h"
#include "models.h"

using acn::Config;
using acn::FormatError;
using acn::parse_config;
using acn::text;
using acn::test::config_text;

namespace {

std::string changed(std::string source, const std::string& from, const std::string& to) {
  return source.replace(source.find(from), from.size(), to);
}

}  // namespace

TEST(every_family) {
  const Config vit = parse_config(config_text("vit_first", 3));
  EXPECT(vit.family == acn::Family::vit && vit.heads == 3 && vit.class_token);
  EXPECT(vit.tokens() == 26 && vit.depth == 3);
  EXPECT(acn::tensors_of(vit).size() == 7 + 3 * 12);
  const Config mixer = parse_config(config_text("mixer_closing", 2));
  EXPECT(mixer.family == acn::Family::mixer && mixer.closing && mixer.tokens() == 25);
  EXPECT(acn::tensors_of(mixer).size() == 6 + 2 * 16);
  const Config bert = parse_config(config_text("bert", 2));
  EXPECT(bert.family == acn::Family::bert && bert.heads == 3 && bert.vocabulary == 50);
  EXPECT(bert.tokens() == 12 && bert.token_kinds == 2 && bert.mlp_width == 40);
  EXPECT(acn::tensors_of(bert).size() == 9 + 2 * 12);
}

TEST(programs_alone) {
  const std::string source = config_text("compiled", 3);
  const Config config = parse_config(source);
  EXPECT(config.family == acn::Family::compiled && config.width == 24 && config.tokens() == 25);
  EXPECT(config.stops == std::vector<int64_t>({1, 3}) && config.input.size() == 3);
  EXPECT(acn::tensors_of(config).empty());
  const auto refuse = [&](const char* from, const char* to, const char* message) {
    EXPECT_THROWS(FormatError, message, parse_config(changed(source, from, to)));
  };
  refuse("[1, 3]", "[1, 2]", "rising depths, the last one 3");
  refuse("[1, 3]", "[3, 3]", "rising depths");
  refuse("[1, 3]", "[]", "rising depths");
  refuse("[1, 3]", "[0, 3]", "stops holds 0");
  refuse("[1, 3]", "[1, 4]", "stops holds 4");
  refuse("[25, 24]", "[]", "state is empty");
  refuse("[25, 24]", "[25, 0]", "state holds 0");
  refuse("[25, 24]", "[16777216, 16777216, 16777216]", "too many");
  refuse("[3, 10, 10]", "[3, -1]", "input holds -1");
  refuse("[3, 10, 10]", "10", "input is not an array");
  refuse("\"F32\", \"dtype\"", "\"F64\", \"dtype\"", "input_dtype is 'F64'");
  refuse("\"depth\": 3", "\"depth\": 0", "depth is 0");
  refuse("\"classes\"", "\"heads\": 2, \"classes\"", "unknown field heads");
}

TEST(alpha_is_what_the_wiring_says_unless_it_is_there) {
  const std::string vit = config_text("vit", 2);
  EXPECT(parse_config(vit).alpha == 1 && parse_config(config_text("vit", 2, 0)).alpha == 0);
  EXPECT(parse_config(changed(vit, "\"acn\"", "\"dg_only\"")).alpha == 1);
  EXPECT(parse_config(config_text("mixer", 2, 0.25)).alpha == 0.25);
  EXPECT(parse_config(changed(vit, "\"depth\"", "\"alpha\": 0, \"depth\"")).alpha == 0);
}

TEST(what_is_refused) {
  const std::string vit = config_text("vit", 2), mixer = config_text("mixer", 2);
  EXPECT_THROWS(FormatError, "no JSON", parse_config("{"));
  EXPECT_THROWS(FormatError, "not an object", parse_config("[]"));
  EXPECT_THROWS(FormatError, "family is 'gpt'", parse_config(changed(vit, "\"vit\"", "\"gpt\"")));
  EXPECT_THROWS(FormatError, "no vocabulary", parse_config(changed(vit, "\"vit\"", "\"bert\"")));
  EXPECT_THROWS(FormatError, "vocabulary is 0",
               parse_config(changed(config_text("bert", 2), "50", "0")));
  EXPECT_THROWS(FormatError, "wiring is 'hybrid'",
               parse_config(changed(vit, "\"acn\"", "\"hybrid\"")));
  for (const char* alpha : {"-0.1", "1.5", "1e400"}) {
    const std::string fields = text("\"alpha\": ", alpha, ", \"depth\"");
    EXPECT_THROWS(FormatError, "", parse_config(changed(vit, "\"depth\"", fields)));
  }
  EXPECT_THROWS(FormatError, "alpha is not a number",
               parse_config(changed(vit, "\"depth\"", "\"alpha\": [1, 1], \"depth\"")));
  EXPECT_THROWS(FormatError, "no heads", parse_config(changed(vit, "\"heads\": 3,", "")));
  EXPECT_THROWS(FormatError, "unknown field extra",
               parse_config(changed(vit, "\"heads\"", "\"extra\": 1, \"heads\"")));
  EXPECT_THROWS(FormatError, "unknown field heads",
               parse_config(changed(mixer, "\"depth\"", "\"heads\": 3, \"depth\"")));
  EXPECT_THROWS(FormatError, "heads is 5",
                parse_config(changed(vit, "\"heads\": 3", "\"heads\": 5")));
  EXPECT_THROWS(FormatError, "patch_size is 3",
               parse_config(changed(vit, "\"patch_size\": 2", "\"patch_size\": 3")));
  EXPECT_THROWS(FormatError, "depth is -1",
               parse_config(changed(vit, "\"depth\": 2", "\"depth\": -1")));
  EXPECT_THROWS(FormatError, "depth is 1000000000",
               parse_config(changed(vit, "\"depth\": 2", "\"depth\": 1000000000")));
  const std::string wide = changed(vit, "\"image_size\": 10", "\"image_size\": 32768");
  EXPECT_THROWS(FormatError, "268435456 patches of width 24 are too many", parse_config(wide));
  EXPECT_THROWS(FormatError, "width is 0",
               parse_config(changed(vit, "\"width\": 24", "\"width\": 0")));
  EXPECT_THROWS(FormatError, "closing is not true or false",
               parse_config(changed(mixer, "false", "0")));
  EXPECT_THROWS(FormatError, "width is not an integer",
               parse_config(changed(vit, "\"width\": 24", "\"width\": 24.0")));
}

TEST(products_do_not_overflow) {
  Config huge = parse_config(config_text("vit", 2));
  huge.width = int64_t{1} << 24;
  huge.mlp_width = int64_t{1} << 24;
  huge.depth = 1024;
  EXPECT(acn::elements_of(acn::tensors_of(huge)) > 0);
  EXPECT_THROWS(FormatError, "too many", acn::elements_of({1 << 30, 1 << 30, 1 << 30}));
  EXPECT_THROWS(FormatError, "negative", acn::elements_of({2, -1}));
}

TEST_MAIN()
