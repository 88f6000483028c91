#include "exit_ops.h"

#include <ATen/ops/empty.h>

namespace acn {
namespace {

using at::Tensor;

template <class Change>
LiveRows each(const LiveRows& rows, const Change& change) {
  const auto where_defined = [&](const Tensor& x) { return x.defined() ? change(x) : x; };
  return {{where_defined(rows.state.x), where_defined(rows.state.y),
           where_defined(rows.state.mask)},
          where_defined(rows.sample)};
}

}  // namespace

LiveRows LiveRows::first(int64_t count) const {
  return each(*this, [&](const Tensor& x) { return x.narrow(0, 0, count); });
}

LiveRows LiveRows::empty_like(int64_t count) const {
  return each(*this, [&](const Tensor& x) {
    std::vector<int64_t> shape = x.sizes().vec();
    shape[0] = count;
    return at::empty(shape, x.options());
  });
}

}  // namespace acn
