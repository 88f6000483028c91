#include "acn/runtime/json.h"

#include <clocale>
#include <locale>

#include "acn/runtime/errors.h"
#include "check.h"

using acn::FormatError;
using acn::Json;

TEST(values) {
  const Json json = Json::parse(R"( {"a": [1, -2, 9223372036854775807], "b": {"c": true},
                                     "d": "x\u00e4\ud83d\ude00\n\"", "e": 1.5e-3, "f": null} )");
  const Json::Object& object = json.object("it");
  const Json::Array& numbers = object.at("a").array("a");
  EXPECT(numbers.size() == 3);
  EXPECT(numbers[1].integer("a[1]") == -2);
  EXPECT(numbers[2].integer("a[2]") == INT64_MAX);
  EXPECT(object.at("b").object("b").at("c").boolean("c"));
  EXPECT(object.at("d").string("d") == "x\xc3\xa4\xf0\x9f\x98\x80\n\"");
  EXPECT(Json::parse("[]").array("it").empty() && Json::parse("{}").object("it").empty());
}

TEST(wrong_kinds_are_named) {
  const Json json = Json::parse("1.5");
  EXPECT_THROWS(FormatError, "depth is not an integer", json.integer("depth"));
  EXPECT_THROWS(FormatError, "depth is not an object", json.object("depth"));
}

struct Comma : std::numpunct<char> {
  char do_decimal_point() const override { return ','; }
};

TEST(numbers_have_a_point_in_every_locale) {
  const std::string before = std::setlocale(LC_NUMERIC, nullptr);
  std::setlocale(LC_NUMERIC, "de_DE.UTF-8");  // where the system has it
  const std::locale known = std::locale::global(std::locale(std::locale(), new Comma));
  EXPECT(Json::parse("0.5").number("alpha") == 0.5);
  EXPECT(Json::parse("-1.25e-3").number("alpha") == -1.25e-3);
  std::locale::global(known);
  std::setlocale(LC_NUMERIC, before.c_str());
}

TEST(more_values_than_a_file_of_ours_has) {
  std::string zeros = "[0";
  for (int i = 0; i < 10000; ++i) zeros += ",0";
  EXPECT_THROWS(FormatError, "too many values", Json::parse(zeros + "]"));
  std::string sizes = "[1000000";
  for (int i = 0; i < 10000; ++i) sizes += ",1000000";
  EXPECT(Json::parse(sizes + "]").array("it").size() == 10001);
}

TEST(what_is_no_json) {
  for (const char* source :
       {"", " ", "{", "[", "[1,", "[1,]", "{\"a\"}", "{\"a\":}", "{\"a\":1,}", "{a:1}", "nul",
        "01", "-", "1.", ".5", "1e", "+1", "\"", "\"\\x\"", "\"\\u12\"", "\"\\ud800\"",
        "\"\\udc00\"", "\"\n\"", "1 2", "[1]]", "9223372036854775808", "NaN", "Infinity"}) {
    EXPECT_THROWS(FormatError, "no JSON", Json::parse(source));
  }
}

TEST(twice_the_same_name) {
  EXPECT_THROWS(FormatError, "twice", Json::parse(R"({"a": 1, "a": 2})"));
}

TEST(deep_nesting_does_not_recurse) {
  EXPECT_THROWS(FormatError, "too deeply", Json::parse(std::string(1 << 20, '[')));
  std::string objects;
  for (int i = 0; i < 100000; ++i) objects += "{\"a\":";
  EXPECT_THROWS(FormatError, "too deeply", Json::parse(objects));
}

TEST_MAIN()
