#include "regroup.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstring>
#include <numeric>

namespace acn {
namespace {

// Copies rows of a sample-major tensor behind each other; runs of neighbours go in one piece.
class Packer {
 public:
  Packer(const at::Tensor& like, int64_t samples) {
    if (!like.defined()) return;
    std::vector<int64_t> shape = like.sizes().vec();
    shape[0] = samples;
    packed_ = at::empty(shape, like.options());
    at_ = static_cast<char*>(packed_.mutable_data_ptr());
  }

  void add(const at::Tensor& from, const int64_t* rows, int64_t count) {
    if (!packed_.defined() || from.size(0) == 0) return;
    const size_t bytes = from.nbytes() / static_cast<size_t>(from.size(0));
    const char* source = static_cast<const char*>(from.const_data_ptr());
    for (int64_t i = 0; i < count;) {
      int64_t run = 1;
      while (i + run < count && rows[i + run] == rows[i] + run) ++run;
      std::memcpy(at_, source + static_cast<size_t>(rows[i]) * bytes,
                  static_cast<size_t>(run) * bytes);
      at_ += static_cast<size_t>(run) * bytes;
      i += run;
    }
  }

  at::Tensor take() { return std::move(packed_); }

 private:
  at::Tensor packed_;
  char* at_ = nullptr;
};

}  // namespace

Gathered Group::gather() const {
  const Survivors& first = *pieces_.front().from;
  const int64_t count = static_cast<int64_t>(samples_.size());
  if (!moves_) return {first.state, first.rows};
  std::vector<int64_t> rows(samples_.size());
  std::iota(rows.begin(), rows.end(), 0);
  if (pieces_.size() == 1 && first.state.x.size(0) == count) return {first.state, rows};
  Packer x(first.state.x, count);
  Packer y(first.state.y, count);
  Packer mask(first.state.mask, count);
  for (const Piece& piece : pieces_) {
    const int64_t* from = piece.from->rows.data() + piece.begin;
    x.add(piece.from->state.x, from, piece.end - piece.begin);
    y.add(piece.from->state.y, from, piece.end - piece.begin);
    mask.add(piece.from->state.mask, from, piece.end - piece.begin);
  }
  return {{x.take(), y.take(), mask.take()}, std::move(rows)};
}

State first_samples(const State& state, int64_t count) {
  std::vector<int64_t> rows(static_cast<size_t>(count));
  std::iota(rows.begin(), rows.end(), 0);
  const auto copy = [&](const at::Tensor& from) {
    Packer packer(from, count);
    packer.add(from, rows.data(), count);
    return packer.take();
  };
  return {copy(state.x), copy(state.y), copy(state.mask)};
}

std::vector<Group> unmoved(std::vector<Survivors> survivors) {
  std::vector<Group> groups;
  for (Survivors& each : survivors) {
    if (each.rows.empty()) continue;
    const auto from = std::make_shared<const Survivors>(std::move(each));
    Group& group = groups.emplace_back();
    group.pieces_.push_back({from, 0, static_cast<int64_t>(from->rows.size())});
    group.samples_ = from->samples;
    group.moves_ = false;
  }
  return groups;
}

std::vector<Group> packed(std::vector<Survivors> survivors, int64_t size) {
  std::vector<Group> groups;
  int64_t room = 0;
  for (Survivors& each : survivors) {
    const auto from = std::make_shared<const Survivors>(std::move(each));
    const int64_t count = static_cast<int64_t>(from->rows.size());
    for (int64_t begin = 0; begin < count;) {
      if (room == 0) {
        groups.emplace_back();
        room = size;
      }
      const int64_t taken = std::min(room, count - begin);
      Group& group = groups.back();
      group.pieces_.push_back({from, begin, begin + taken});
      group.samples_.insert(group.samples_.end(), from->samples.begin() + begin,
                            from->samples.begin() + begin + taken);
      begin += taken;
      room -= taken;
    }
  }
  return groups;
}

}  // namespace acn
