// A strict JSON reader for the two small headers that a saved model has.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace acn {

class Json {
 public:
  using Array = std::vector<Json>;
  using Object = std::map<std::string, Json>;

  // The one value in `source`, with nothing but white space around it.
  //
  // Integers must fit int64; other numbers are doubles. Throws FormatError on anything that RFC
  // 8259 does not allow, on a name that occurs twice in an object, on more than 16 levels, and on
  // more values than 1,024 and one for every four bytes.
  static Json parse(std::string_view source);

  Json() = default;
  template <class T>
  explicit Json(T value) : value_(std::move(value)) {}

  bool is_object() const { return std::holds_alternative<Object>(value_); }

  // The value as what it must be; `what` names it in the FormatError thrown where it is not.
  int64_t integer(const std::string& what) const;
  double number(const std::string& what) const;  // an integer too
  bool boolean(const std::string& what) const;
  const std::string& string(const std::string& what) const;
  const Array& array(const std::string& what) const;
  const Object& object(const std::string& what) const;

 private:
  std::variant<std::nullptr_t, bool, int64_t, double, std::string, Array, Object> value_;
};

}  // namespace acn
