// The tile of a product for one instruction set; included once for each, inside a namespace, with
// ACN_TILE_TARGET (the attribute), ACN_TILE_LANES (floats in a vector) and ACN_TILE_ROWS defined.
// A function that only is inlined into one of a wider instruction set would not do: its vectors
// would have been cut in pieces before.

typedef float Vector __attribute__((vector_size(4 * ACN_TILE_LANES)));
typedef float Anywhere __attribute__((vector_size(4 * ACN_TILE_LANES), aligned(4), may_alias));

constexpr int64_t kLanes = ACN_TILE_LANES;
constexpr int kIntoL2 = 2;  // as __builtin_prefetch counts

// Outer products of a column of A and two vectors of B, added to sums in registers. kNext: the
// lines of t.next are asked for meanwhile.
template <bool kNext, int kRows>
ACN_TILE_TARGET inline __attribute__((always_inline)) void add_products(
    const Tile& t, Vector (&sum)[kRows][2]) {
  constexpr int kGroup = 3;  // rows that one pointer reaches: x86 addresses p, p + s and p + 2 s
  constexpr int kGroups = (kRows + kGroup - 1) / kGroup;
  const int64_t lda = t.lda, ldb = t.ldb;
  const float* a[kGroups];
#pragma GCC unroll 16
  for (int g = 0; g < kGroups; ++g) a[g] = t.a + g * kGroup * lda;
  const float* b = t.b;
  const float* next = t.next;
  for (int64_t k = t.depth; k > 0; --k) {
    const Vector b0 = *reinterpret_cast<const Anywhere*>(b);
    const Vector b1 = *reinterpret_cast<const Anywhere*>(b + kLanes);
    if constexpr (kNext) {
      __builtin_prefetch(next, 0, kIntoL2);
      __builtin_prefetch(next + kLanes, 0, kIntoL2);
      next += ldb;
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const float factor = a[r / kGroup][r % kGroup * lda];
      sum[r][0] += factor * b0;
      sum[r][1] += factor * b1;
    }
    b += ldb;
#pragma GCC unroll 16
    for (int g = 0; g < kGroups; ++g) ++a[g];
  }
}

template <int kRows>
ACN_TILE_TARGET void tile(const Tile& t) {
  const int64_t ldc = t.ldc;
  float* const c = t.c;
  Vector sum[kRows][2];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      if (t.add) {
        sum[r][j] = *reinterpret_cast<const Anywhere*>(c + r * ldc + j * kLanes);
      } else if (t.column_bias) {
        sum[r][j] = *reinterpret_cast<const Anywhere*>(t.column_bias + j * kLanes);
      } else {
        sum[r][j] = Vector{} + (t.row_bias ? t.row_bias[r] : 0.0f);
      }
    }
  }
  if (t.next) {
    add_products<true>(t, sum);
  } else {
    add_products<false>(t, sum);
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      *reinterpret_cast<Anywhere*>(c + r * ldc + j * kLanes) = sum[r][j];
    }
  }
  if (!t.gelu) return;
  for (int r = 0; r < kRows; ++r) {
    float* const row = c + r * ldc;
#pragma omp simd
    for (int64_t i = 0; i < 2 * kLanes; ++i) row[i] = gelu(row[i]);
  }
}

template <int... kRows>
constexpr std::array<void (*)(const Tile&), sizeof...(kRows)> table(
    std::integer_sequence<int, kRows...>) {
  return {tile<kRows + 1>...};
}

constexpr auto kTable = table(std::make_integer_sequence<int, ACN_TILE_ROWS>());

inline Tiles tiles(const char* name) { return {name, ACN_TILE_ROWS, 2 * kLanes, kTable.data()}; }

#undef ACN_TILE_TARGET
#undef ACN_TILE_LANES
#undef ACN_TILE_ROWS
