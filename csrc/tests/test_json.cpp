#include "acn/runtime/json.h"

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
