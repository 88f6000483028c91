// One product on all threads, for where there are too few samples to give each thread its own.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <vector>

#include "plain_operations.h"

namespace acn {

// The least that ATen's product takes of rows or columns without losing half its speed.
constexpr int64_t kLeastOfProduct = 64;

// How many threads are free to take `least` each of `size`; 1 in a parallel region.
inline int64_t free_threads(int64_t size, int64_t least) {
  if (at::in_parallel_region()) return 1;
  return std::clamp<int64_t>(size / least, 1, at::get_num_threads());
}

// body(slice, begin) for slices of x along `axis`, which begin there, put together; body works on
// a slice as on the whole and keeps its shape. Where not every thread could have `least`, all is
// one slice and the threads stay free for what body does.
template <class Body>
at::Tensor in_pieces(const at::Tensor& x, int64_t axis, int64_t least, const Body& body) {
  const int64_t size = x.size(axis), threads = x.is_cpu() ? free_threads(size, least) : 1;
  if (threads == 1 || threads < at::get_num_threads()) return body(x, 0);
  at::Tensor out = at::empty_like(x);
  at::parallel_for(0, size, least, [&](int64_t begin, int64_t end) {
    const PlainOperations plain;  // of this thread
    out.slice(axis, begin, end).copy_(body(x.slice(axis, begin, end), begin));
  });
  return out;
}

// The sum of body(begin, end) over pieces of [0, size), each of at least `least`, in their order.
template <class Body>
at::Tensor sum_of_pieces(int64_t size, int64_t least, const Body& body) {
  const int64_t threads = free_threads(size, least);
  if (threads == 1) return body(0, size);
  std::vector<at::Tensor> parts(static_cast<size_t>(threads));
  at::parallel_for(0, threads, 1, [&](int64_t from, int64_t to) {
    const PlainOperations plain;  // of this thread
    for (int64_t i = from; i < to; ++i) {
      parts[static_cast<size_t>(i)] = body(i * size / threads, (i + 1) * size / threads);
    }
  });
  for (size_t i = 1; i < parts.size(); ++i) parts[0].add_(parts[i]);
  return parts[0];
}

}  // namespace acn
