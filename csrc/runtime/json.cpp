#include "acn/runtime/json.h"

#include <charconv>
#include <locale>
#include <sstream>

#include "acn/runtime/errors.h"

namespace acn {
namespace {

constexpr int kDeepest = 16;
// A value takes many times the memory of a short word: [0,0,0] is no list that a file of ours has.
constexpr size_t kValues = 1024, kBytesOfValue = 4;

// With a point, whatever the process's locale has in its place.
double fraction(const std::string& word) {
  std::istringstream stream(word);
  stream.imbue(std::locale::classic());
  double result = 0;
  stream >> result;
  return result;
}

class Parser {
 public:
  explicit Parser(std::string_view source) : source_(source) {}

  Json document() {
    Json result = value(0);
    skip_space();
    if (at_ != source_.size()) fail("something follows the value");
    return result;
  }

 private:
  [[noreturn]] void fail(const char* problem) const {
    throw FormatError(text("no JSON: ", problem, " at byte ", at_));
  }

  char peek() const { return at_ < source_.size() ? source_[at_] : '\0'; }

  bool take(char expected) {
    if (at_ >= source_.size() || source_[at_] != expected) return false;
    ++at_;
    return true;
  }

  bool take(std::string_view word) {
    if (source_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  void expect(char expected, const char* problem) {
    if (!take(expected)) fail(problem);
  }

  void skip_space() {
    while (at_ < source_.size() && std::string_view(" \t\n\r").find(source_[at_]) < 4) ++at_;
  }

  Json value(int depth) {
    if (depth > kDeepest) fail("nested too deeply");
    if (++values_ > kValues + source_.size() / kBytesOfValue) fail("there are too many values");
    skip_space();
    switch (peek()) {
      case '{': return object(depth);
      case '[': return array(depth);
      case '"': return Json(string());
      default: break;
    }
    if (take(std::string_view("true"))) return Json(true);
    if (take(std::string_view("false"))) return Json(false);
    if (take(std::string_view("null"))) return Json();
    return number();
  }

  Json object(int depth) {
    Json::Object members;
    ++at_;
    skip_space();
    if (take('}')) return Json(std::move(members));
    do {
      skip_space();
      if (peek() != '"') fail("a name is missing");
      std::string name = string();
      skip_space();
      expect(':', "a colon is missing");
      if (!members.emplace(std::move(name), value(depth + 1)).second) fail("a name occurs twice");
      skip_space();
    } while (take(','));
    expect('}', "an object does not end");
    return Json(std::move(members));
  }

  Json array(int depth) {
    Json::Array items;
    ++at_;
    skip_space();
    if (take(']')) return Json(std::move(items));
    do {
      items.push_back(value(depth + 1));
      skip_space();
    } while (take(','));
    expect(']', "an array does not end");
    return Json(std::move(items));
  }

  bool digits() {
    const size_t start = at_;
    while (peek() >= '0' && peek() <= '9') ++at_;
    return at_ > start;
  }

  Json number() {
    const size_t start = at_;
    take('-');
    if (!take('0') && !digits()) fail("a value is missing");
    bool whole = true;
    if (take('.')) {
      whole = false;
      if (!digits()) fail("digits are missing");
    }
    if (take('e') || take('E')) {
      whole = false;
      if (!take('+')) take('-');
      if (!digits()) fail("digits are missing");
    }
    const std::string word(source_.substr(start, at_ - start));
    if (!whole) return Json(fraction(word));
    int64_t result = 0;
    const char* end = word.data() + word.size();
    const std::errc error = std::from_chars(word.data(), end, result).ec;
    if (error != std::errc()) fail("an integer is too large");
    return Json(result);
  }

  std::string string() {
    std::string result;
    ++at_;
    while (!take('"')) {
      if (at_ >= source_.size()) fail("a string does not end");
      const unsigned char c = static_cast<unsigned char>(source_[at_]);
      if (c < 0x20) fail("a control character stands in a string");
      ++at_;
      if (c == '\\') {
        escape(result);
      } else {
        result += static_cast<char>(c);
      }
    }
    return result;
  }

  void escape(std::string& result) {
    static constexpr std::string_view kShort = "\"\\/bfnrt";
    static constexpr std::string_view kMeaning = "\"\\/\b\f\n\r\t";
    if (take('u')) return append_utf8(result, code_point());
    const size_t which = at_ < source_.size() ? kShort.find(source_[at_]) : kShort.npos;
    if (which == kShort.npos) fail("an escape is unknown");
    ++at_;
    result += kMeaning[which];
  }

  uint32_t code_point() {
    const uint32_t first = hex4();
    if (first >= 0xdc00 && first < 0xe000) fail("half a surrogate pair stands alone");
    if (first < 0xd800 || first >= 0xdc00) return first;
    const uint32_t second = take(std::string_view("\\u")) ? hex4() : 0;
    if (second < 0xdc00 || second >= 0xe000) fail("half a surrogate pair stands alone");
    return 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
  }

  uint32_t hex4() {
    uint32_t code = 0;
    if (source_.size() - at_ < 4) fail("an escape is too short");
    const char* start = source_.data() + at_;
    if (std::from_chars(start, start + 4, code, 16).ptr != start + 4) fail("an escape is wrong");
    at_ += 4;
    return code;
  }

  static void append_utf8(std::string& result, uint32_t code) {
    const auto tail = [&](int shift) {
      result += static_cast<char>(0x80 | (code >> shift & 0x3f));
    };
    if (code < 0x80) {
      result += static_cast<char>(code);
    } else if (code < 0x800) {
      result += static_cast<char>(0xc0 | code >> 6);
      tail(0);
    } else if (code < 0x10000) {
      result += static_cast<char>(0xe0 | code >> 12);
      tail(6);
      tail(0);
    } else {
      result += static_cast<char>(0xf0 | code >> 18);
      tail(12);
      tail(6);
      tail(0);
    }
  }

  std::string_view source_;
  size_t at_ = 0;
  size_t values_ = 0;
};

template <class T, class Value>
const T& as(const Value& value, const std::string& what, const char* kind) {
  const T* held = std::get_if<T>(&value);
  if (!held) throw FormatError(text(what, " is not ", kind));
  return *held;
}

}  // namespace

Json Json::parse(std::string_view source) { return Parser(source).document(); }

int64_t Json::integer(const std::string& what) const {
  return as<int64_t>(value_, what, "an integer");
}

double Json::number(const std::string& what) const {
  if (const int64_t* whole = std::get_if<int64_t>(&value_)) return static_cast<double>(*whole);
  return as<double>(value_, what, "a number");
}

bool Json::boolean(const std::string& what) const {
  return as<bool>(value_, what, "true or false");
}

const std::string& Json::string(const std::string& what) const {
  return as<std::string>(value_, what, "a string");
}

const Json::Array& Json::array(const std::string& what) const {
  return as<Array>(value_, what, "an array");
}

const Json::Object& Json::object(const std::string& what) const {
  return as<Object>(value_, what, "an object");
}

}  // namespace acn
