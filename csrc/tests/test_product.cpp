// Products and MLPs on panels = loops in double precision, in every instruction set of this
// machine.
#include "acn/product.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "acn/mlp.h"
#include "check.h"

using namespace acn;

namespace {

using Floats = std::vector<float>;
using Doubles = std::vector<double>;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

Floats random(int64_t count) {
  static std::mt19937 generator{std::random_device{}()};
  std::normal_distribution<float> normal;
  Floats values(static_cast<size_t>(count));
  for (float& value : values) value = normal(generator);
  return values;
}

// As threads would share the work out, one piece after the other.
void in_pieces(int64_t count, int64_t grain, const RangeBody& body) {
  const int64_t size = std::max<int64_t>(grain, (count + 2) / 3);
  for (int64_t begin = 0; begin < count; begin += size) body(begin, std::min(count, begin + size));
}

double gelu_of(double z) { return 0.5 * z * (1 + std::erf(z / std::sqrt(2.0))); }

// [rows, columns] of a [rows, depth], `lda` apart, and b [depth, columns], with gaps nowhere.
Doubles product_of(const double* a, int64_t lda, const double* b, int64_t rows, int64_t columns,
                   int64_t depth) {
  Doubles c(static_cast<size_t>(rows * columns), 0.0);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t k = 0; k < depth; ++k) {
      const auto left = a[r * lda + k];
      for (int64_t n = 0; n < columns; ++n) c[r * columns + n] += left * b[k * columns + n];
    }
  }
  return c;
}

Doubles widened(const Floats& values) { return {values.begin(), values.end()}; }

Doubles transposed(const Floats& weight, int64_t rows, int64_t columns) {
  Doubles out(weight.size());
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) out[c * rows + r] = weight[r * columns + c];
  }
  return out;
}

bool close(const Floats& got, const Doubles& truth, int64_t depth) {
  if (got.size() != truth.size()) return false;
  const double allowed = 4e-7 * std::sqrt(static_cast<double>(depth) + 1) * 8;
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::isnan(truth[i]) != std::isnan(got[i])) return false;
    if (std::isnan(truth[i]) || (std::isinf(truth[i]) && truth[i] == got[i])) continue;
    if (!(std::abs(got[i] - truth[i]) <= allowed * (1 + std::abs(truth[i])))) return false;
  }
  return true;
}

struct Linear {
  Linear(int64_t outputs_, int64_t inputs_)
      : outputs(outputs_),
        inputs(inputs_),
        weight(random(outputs * inputs)),
        bias(random(outputs)) {
    const float scale = 1 / std::sqrt(static_cast<float>(inputs) + 1);
    for (float& each : weight) each *= scale;
  }

  Doubles operator()(const double* x, int64_t stride, int64_t rows, bool biased = true) const {
    const Doubles right = transposed(weight, outputs, inputs);
    Doubles out = product_of(x, stride, right.data(), rows, outputs, inputs);
    for (size_t i = 0; biased && i < out.size(); ++i) out[i] += bias[i % outputs];
    return out;
  }

  int64_t outputs, inputs;
  Floats weight, bias;
};

Floats run(const Linear& linear, const Tiles& tiles, const Floats& x, int64_t stride, int64_t rows,
           bool biased, bool gelu) {
  const Panels panels(linear.weight.data(), linear.outputs, linear.inputs, tiles);
  // A canary behind the output: nothing may be written there.
  Floats out(static_cast<size_t>(rows * linear.outputs) + 64, 7.0f);
  Product args;
  args.rows = rows;
  args.x = x.data();
  args.stride = stride;
  args.weight = &panels;
  args.bias = biased ? linear.bias.data() : nullptr;
  args.out = out.data();
  args.gelu = gelu;
  product(args, in_pieces);
  EXPECT(std::all_of(out.end() - 64, out.end(), [](float each) { return each == 7.0f; }));
  out.resize(out.size() - 64);
  return out;
}

}  // namespace

TEST(there_are_tiles_and_the_last_run_everywhere) {
  EXPECT(std::string(tiles_here().back().name) == "baseline");
  for (const Tiles& tiles : tiles_here()) std::printf("      %s\n", tiles.name);
}

TEST(products_of_any_size) {
  for (const Tiles& tiles : tiles_here()) {
    for (const int64_t rows : {0, 1, 2, 5, 13, 14, 15, 29, 64, 131}) {
      for (const int64_t outputs : {1, 7, 8, 31, 32, 33, 70}) {
        for (const int64_t inputs : {1, 3, 64, 255, 256, 257, 600}) {
          const bool biased = (rows + outputs) % 2, gelu = (rows + inputs) % 2;
          const int64_t stride = inputs + rows % 3;
          const Linear linear(outputs, inputs);
          const Floats x = random(rows * stride + inputs);
          Doubles truth = linear(widened(x).data(), stride, rows, biased);
          if (gelu) std::transform(truth.begin(), truth.end(), truth.begin(), gelu_of);
          EXPECT(close(run(linear, tiles, x, stride, rows, biased, gelu), truth, inputs));
        }
      }
    }
  }
}

TEST(no_inputs_leave_the_bias) {
  for (const Tiles& tiles : tiles_here()) {
    const Linear linear(5, 0);
    const Floats out = run(linear, tiles, random(3), 0, 2, true, false);
    for (size_t i = 0; i < out.size(); ++i) EXPECT(out[i] == linear.bias[i % 5]);
  }
}

TEST(a_row_is_the_same_bit_for_bit_whatever_is_beside_it) {
  for (const Tiles& tiles : tiles_here()) {
    const Linear linear(70, 300);
    const Floats x = random(100 * 300);
    const Floats together = run(linear, tiles, x, 300, 100, true, true);
    for (const int64_t row : {0, 1, 50, 99}) {
      const Floats one(x.begin() + row * 300, x.begin() + (row + 1) * 300);
      const Floats alone = run(linear, tiles, one, 300, 1, true, true);
      EXPECT(std::memcmp(alone.data(), &together[row * 70], 70 * sizeof(float)) == 0);
    }
  }
}

TEST(what_is_no_number_stays_in_its_row) {
  for (const Tiles& tiles : tiles_here()) {
    const Linear linear(40, 50);
    Floats x = random(9 * 50);
    x[3 * 50 + 7] = kNan;
    x[5 * 50 + 49] = kInf;
    for (const bool gelu : {false, true}) {
      Doubles truth = linear(widened(x).data(), 50, 9);
      if (gelu) std::transform(truth.begin(), truth.end(), truth.begin(), gelu_of);
      EXPECT(close(run(linear, tiles, x, 50, 9, true, gelu), truth, 50));
      EXPECT(std::isnan(truth[3 * 40]) && !std::isnan(truth[2 * 40]));
    }
  }
}

TEST(panels_hold_the_weight) {
  for (const Tiles& tiles : tiles_here()) {
    const Linear linear(37, 11);
    const Panels panels(linear.weight.data(), 37, 11, tiles);
    for (int64_t n = 0; n < 37; ++n) {
      for (int64_t k = 0; k < 11; ++k) EXPECT(panels(n, k) == linear.weight[n * 11 + k]);
    }
  }
}

TEST(a_panel_in_place_has_a_bias_for_each_row) {
  for (const Tiles& tiles : tiles_here()) {
    for (const int64_t columns : {int64_t{1}, tiles.columns - 1, tiles.columns}) {
      const int64_t rows = 17, depth = 270, ldb = tiles.columns + 5, ldc = columns + 3;
      const Floats a = random(rows * depth), b = random(depth * ldb), bias = random(rows);
      Floats c(static_cast<size_t>(rows * ldc), 7.0f);
      Tile whole;
      whole.a = a.data();
      whole.lda = whole.depth = depth;
      whole.b = b.data();
      whole.ldb = ldb;
      whole.c = c.data();
      whole.ldc = ldc;
      whole.row_bias = bias.data();
      multiply_panel(tiles, whole, rows, columns);
      const Doubles truth =
          product_of(widened(a).data(), depth, widened(b).data(), rows, ldb, depth);
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t n = 0; n < ldc; ++n) {
          const float got = c[r * ldc + n];
          const double expected = truth[r * ldb + n] + bias[r];
          EXPECT(n < columns ? std::abs(got - expected) < 1e-4 : got == 7.0f);
        }
      }
      whole.add = true;
      multiply_panel(tiles, whole, rows, columns);
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t n = 0; n < columns; ++n) {
          const double expected = 2 * truth[r * ldb + n] + bias[r];
          EXPECT(std::abs(c[r * ldc + n] - expected) < 2e-4);
        }
      }
    }
  }
}

TEST(what_is_wanted_next_changes_no_sum) {
  for (const Tiles& tiles : tiles_here()) {
    const int64_t rows = tiles.rows + 1, depth = 11;
    const Floats a = random(rows * depth), b = random(2 * depth * tiles.columns);
    Floats c[2];
    for (const bool next : {false, true}) {
      c[next].assign(static_cast<size_t>(rows * tiles.columns), 7.0f);
      Tile whole;
      whole.a = a.data();
      whole.lda = whole.depth = depth;
      whole.b = b.data();
      whole.ldb = whole.ldc = tiles.columns;
      whole.next = next ? whole.b + depth * tiles.columns : nullptr;
      whole.c = c[next].data();
      multiply_panel(tiles, whole, rows, tiles.columns);
    }
    EXPECT(c[0] == c[1] && c[0][0] != 7.0f);
  }
}

TEST(channel_mlps) {
  for (const Tiles& tiles : tiles_here()) {
    for (const int64_t rows : {1, 20, 150}) {
      const Linear fc1(130, 45), fc2(19, 130);
      const Panels weight1(fc1.weight.data(), 130, 45, tiles);
      const Panels weight2(fc2.weight.data(), 19, 130, tiles);
      const Floats x = random(rows * 45), gain = random(45), shift = random(45);
      for (const Norm norm : {Norm::none, Norm::layer}) {
        Floats out(static_cast<size_t>(rows * 19));
        ChannelMlp args;
        args.rows = rows;
        args.x = x.data();
        args.norm = norm;
        args.affine = {gain.data(), shift.data()};
        args.eps = 1e-5f;
        args.fc1 = &weight1;
        args.bias1 = fc1.bias.data();
        args.fc2 = &weight2;
        args.bias2 = fc2.bias.data();
        args.out = out.data();
        channel_mlp(args, in_pieces);
        Doubles h = widened(x);
        for (int64_t r = 0; norm == Norm::layer && r < rows; ++r) {
          double mean = 0, variance = 0;
          for (int64_t i = 0; i < 45; ++i) mean += h[r * 45 + i] / 45;
          for (int64_t i = 0; i < 45; ++i) variance += std::pow(h[r * 45 + i] - mean, 2) / 45;
          for (int64_t i = 0; i < 45; ++i) {
            const double normed = (h[r * 45 + i] - mean) / std::sqrt(variance + 1e-5);
            h[r * 45 + i] = normed * gain[i] + shift[i];
          }
        }
        Doubles hidden = fc1(h.data(), 45, rows);
        std::transform(hidden.begin(), hidden.end(), hidden.begin(), gelu_of);
        EXPECT(close(out, fc2(hidden.data(), 130, rows), 130));
      }
    }
  }
}

TEST(a_channel_mlp_in_place) {
  for (const Tiles& tiles : tiles_here()) {
    const Linear fc1(130, 45), fc2(45, 130);
    const Panels weight1(fc1.weight.data(), 130, 45, tiles);
    const Panels weight2(fc2.weight.data(), 45, 130, tiles);
    for (const Norm norm : {Norm::none, Norm::layer}) {
      Floats x = random(700 * 45), out(x.size());
      ChannelMlp args;
      args.rows = 700;
      args.x = x.data();
      args.norm = norm;
      args.fc1 = &weight1;
      args.fc2 = &weight2;
      args.out = out.data();
      channel_mlp(args, in_pieces);
      args.out = x.data();
      channel_mlp(args, in_pieces);
      EXPECT(x == out);
    }
  }
}

TEST(token_mlps) {
  for (const Tiles& tiles : tiles_here()) {
    for (const int64_t width : {5, 32, 50, 64}) {
      const int64_t samples = 3, tokens = 25, hidden = 31;
      const Linear fc1(hidden, tokens), fc2(tokens, hidden);
      const Floats x = random(samples * tokens * width);
      Floats out(x.size());
      TokenMlp args;
      args.samples = samples;
      args.tokens = tokens;
      args.hidden = hidden;
      args.width = width;
      args.x = x.data();
      args.weight1 = fc1.weight.data();
      args.bias1 = fc1.bias.data();
      args.weight2 = fc2.weight.data();
      args.bias2 = fc2.bias.data();
      args.out = out.data();
      token_mlp(args, tiles, in_pieces);
      Floats in_place = x;
      args.x = args.out = in_place.data();
      token_mlp(args, tiles, in_pieces);
      EXPECT(in_place == out);
      for (int64_t b = 0; b < samples; ++b) {
        const auto begin = x.begin() + b * tokens * width;
        const Doubles columns = transposed({begin, begin + tokens * width}, tokens, width);
        Doubles mixed = fc1(columns.data(), tokens, width);
        std::transform(mixed.begin(), mixed.end(), mixed.begin(), gelu_of);
        const Doubles truth = fc2(mixed.data(), hidden, width);  // [width, tokens]
        for (int64_t t = 0; t < tokens; ++t) {
          for (int64_t d = 0; d < width; ++d) {
            const float got = out[(b * tokens + t) * width + d];
            EXPECT(std::abs(got - truth[d * tokens + t]) < 1e-4);
          }
        }
      }
    }
  }
}

TEST_MAIN()
