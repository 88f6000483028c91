#include "acn/runtime/safetensors.h"

#include "acn/runtime/errors.h"
#include "check.h"
#include "models.h"

using acn::FormatError;
using acn::parse_safetensors_header;
using acn::SafetensorsFile;
using acn::test::Folder;
using acn::test::write_text;

namespace {

std::string entry(const std::string& name, const std::string& shape, const std::string& offsets,
                  const std::string& dtype = "F32") {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":[" + shape +
         "],\"data_offsets\":[" + offsets + "]}";
}

std::string with_length(uint64_t length, const std::string& rest) {
  std::string file;
  for (int i = 0; i < 8; ++i) file += static_cast<char>(length >> 8 * i);
  return file + rest;
}

}  // namespace

TEST(entries_come_in_the_order_of_their_bytes) {
  const std::string header = "{\"__metadata__\":{\"format\":\"pt\"}," + entry("a", "2,3", "8,32") +
                             "," + entry("b", "2", "0,8") + "," + entry("none", "0", "32,32") + "}";
  const auto entries = parse_safetensors_header(header, 32);
  EXPECT(entries.size() == 3 && entries[0].name == "b" && entries[1].name == "a");
  EXPECT((entries[1].shape == std::vector<int64_t>{2, 3}));
}

TEST(headers_that_are_refused) {
  const auto refuse = [](const std::string& header, const char* message, int64_t size = 24) {
    EXPECT_THROWS(FormatError, message, parse_safetensors_header(header, size));
  };
  refuse("[]", "not an object");
  refuse("{\"a\":1}", "not an object");
  refuse("{" + entry("a", "2,3", "0,20") + "}", "do not go with", 20);
  refuse("{" + entry("a", "2,3", "24,0") + "}", "do not go with");
  refuse("{" + entry("a", "2,3", "-24,0") + "}", "do not go with");
  refuse("{" + entry("a", "-2,-3", "0,24") + "}", "negative");
  refuse("{" + entry("a", "4611686018427387904,2", "0,24") + "}", "too many");
  refuse("{" + entry("a", "4611686018427387904", "0,24") + "}", "do not go with");
  refuse("{" + entry("a", "99999999999999999999", "0,24") + "}", "too large");
  refuse("{" + entry("a", "1.5", "0,24") + "}", "not an integer");
  refuse("{" + entry("a", "6", "0,24", "F33") + "}", "unknown");
  refuse("{" + entry("a", "6", "0") + "}", "two offsets");
  refuse("{" + entry("a", "1,1,1,1,1,1,1,1,6", "0,24") + "}", "two offsets");
  refuse("{" + entry("a", "3", "0,12") + "," + entry("b", "3", "8,20") + "}", "ends at 12", 20);
  refuse("{" + entry("a", "3", "0,12") + "," + entry("b", "3", "16,28") + "}", "ends at 12", 28);
  refuse("{" + entry("a", "3", "0,12") + "}", "the file has 24");
  refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[6]}}", "no data_offsets");
  refuse("{\"__metadata__\":{\"a\":1}}", "not a string", 0);
}

TEST(files_that_are_refused) {
  const Folder folder;
  const std::string path = folder.path("a.safetensors");
  const auto refuse = [&](const std::string& content, const char* message) {
    write_text(path, content);
    EXPECT_THROWS(FormatError, message, SafetensorsFile(path, 1 << 16));
  };
  refuse("", "no header");
  refuse("1234567", "no header");
  refuse(with_length(3, "{}"), "more than the file holds");
  refuse(with_length(uint64_t{1} << 63, "{}"), "more than the file holds");
  refuse(with_length(~uint64_t{0}, "{}"), "more than the file holds");
  refuse(with_length(1 << 17, std::string(1 << 17, ' ')), "more than the file holds");
  refuse(with_length(2, "{}x"), "describes 0 bytes");
  refuse(std::string("\x80\x02}q\x00.", 6) + std::string(100, 'x'), "more than");
  EXPECT_THROWS(acn::FileError, "missing", SafetensorsFile(folder.path("none"), 1));
  EXPECT_THROWS(acn::FileError, "no file", SafetensorsFile(folder.path(), 1));
}

TEST(what_is_written_is_read) {
  const Folder folder;
  const float a[] = {1, 2, 3, 4, 5, 6};
  const int64_t b[] = {7};
  acn::write_safetensors(folder.path("x"), {{"a", "F32", {2, 3}, a, 24}, {"b", "I64", {1}, b, 8}});
  SafetensorsFile file(folder.path("x"), 1 << 16);
  EXPECT(file.entries().size() == 2);
  float read[6];
  file.read(file.entries()[0], read);
  for (int i = 0; i < 6; ++i) EXPECT(read[i] == a[i]);
}

TEST_MAIN()
