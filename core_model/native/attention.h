// Causal attention over one head of one sequence, exact, without the scores of all pairs in memory.
// Source: FlashAttention-2 (Dao 2023), algorithms 1 and 2.
#pragma once

#include <cmath>
#include <vector>

#include "products.h"

namespace {

// A head's part of [tokens, heads, key or value], and the tokens of the sequence in their order.
struct Head {
  const int32_t* tokens;
  int32_t count, heads, head, key, value;
  float scale;

  int64_t at(int i) const { return static_cast<int64_t>(tokens[i]) * heads + head; }
};

template <class F>
class Attention {
 public:
  typedef typename F::Number Number;
  typedef typename F::Step Step;

  // out [tokens, heads, value] and log-sum-exp [tokens, heads] of the sequence's tokens.
  void forward(const Head& s, const Number* q, const Number* k, const Number* v, Number* out, float* lse) {
    queries_.gather(s, q, s.key);
    keys_.gather(s, k, s.key);
    keys_.make_columns();
    values_.gather(s, v, s.value);
    values_.make_steps();
    scores_.resize(QUERIES * KEYS);
    weights_.resize(QUERIES * KEYS);
    sums_.resize(static_cast<size_t>(QUERIES) * s.value);
    for (int query = 0; query < s.count; query += QUERIES) {
      const int rows = std::min(QUERIES, s.count - query);
      float most[QUERIES], total[QUERIES];
      std::fill(most, most + rows, -INFINITY);
      std::fill(total, total + rows, 0.0f);
      std::fill(sums_.begin(), sums_.end(), 0.0f);
      const int end = (query + rows + WHOLE - 1) / WHOLE * WHOLE;
      for (int key = 0; key < end; key += KEYS) {
        const int columns = std::min(KEYS, end - key);
        product<F>(queries_.left(query), keys_.columns(key), rows, columns, s.key / F::STEP, scores_.data(), KEYS);
        for (int row = 0; row < rows; row++) {
          weigh(&scores_[row * KEYS], columns, query + row + 1 - key, s.scale, most[row], total[row], &weights_[row * KEYS],
                &sums_[static_cast<size_t>(row) * s.value], s.value);
        }
        product<F>(Left<F>::rows(weights_.data(), KEYS), values_.right(key), rows, s.value, columns / F::STEP, sums_.data(), s.value, true);
      }
      for (int row = 0; row < rows; row++) {
        const float inverse = 1.0f / total[row];
        const int64_t at = s.at(query + row);
        for (int i = 0; i < s.value; i += LANES)
          store(out + at * s.value + i, load(&sums_[static_cast<size_t>(row) * s.value + i]) * inverse);
        lse[at] = most[row] + std::log(total[row]);
      }
    }
  }

  // Gradients of queries, keys and values; along [tokens, heads]: the sum of dout * out.
  void backward(const Head& s, const Number* q, const Number* k, const Number* v, const Number* dout, const float* lse, const float* along,
                Number* dq, Number* dk, Number* dv) {
    keys_.gather(s, k, s.key);
    keys_.make_columns();
    keys_.make_steps();
    values_.gather(s, v, s.value);
    values_.make_columns();
    queries_.gather(s, q, s.key);
    queries_.make_steps();
    douts_.gather(s, dout, s.value);
    douts_.make_steps();
    scores_.resize(BLOCK * BLOCK);
    dweights_.resize(BLOCK * BLOCK);
    weights_.resize(BLOCK * BLOCK);
    dscores_.resize(BLOCK * BLOCK);
    weight_steps_.resize(F::IS_BF16 ? BLOCK * BLOCK / F::STEP : 0);
    dscore_steps_.resize(F::IS_BF16 ? BLOCK * BLOCK / F::STEP : 0);
    dqueries_.assign(static_cast<size_t>(s.count) * s.key, 0.0f);
    for (int key = 0; key < s.count; key += BLOCK) {
      dkeys_.assign(static_cast<size_t>(BLOCK) * s.key, 0.0f);
      dvalues_.assign(static_cast<size_t>(BLOCK) * s.value, 0.0f);
      for (int query = key; query < s.count; query += BLOCK) backward_block(s, query, key, lse, along);
      for (int i = 0; i < std::min(BLOCK, s.count - key); i++) {
        copy(&dkeys_[static_cast<size_t>(i) * s.key], s.key, dk + s.at(key + i) * s.key);
        copy(&dvalues_[static_cast<size_t>(i) * s.value], s.value, dv + s.at(key + i) * s.value);
      }
    }
    for (int i = 0; i < s.count; i++) copy(&dqueries_[static_cast<size_t>(i) * s.key], s.key, dq + s.at(i) * s.key);
  }

 private:
  static constexpr int QUERIES = 48, KEYS = 128;  // forward's blocks
  static constexpr int BLOCK = 64;                // backward's, both ways
  static constexpr int WHOLE = 16;                // keys that are taken at once

  // [tokens of the sequence up to a multiple of 16, width], zeros after the last token.
  class Rows {
   public:
    void gather(const Head& s, const Number* from, int width) {
      width_ = width;
      count_ = (s.count + WHOLE - 1) / WHOLE * WHOLE;
      rows_.resize(static_cast<size_t>(count_) * width);
      for (int i = 0; i < s.count; i++) std::memcpy(&rows_[static_cast<size_t>(i) * width], from + s.at(i) * width, width * sizeof(Number));
      std::fill(rows_.begin() + static_cast<int64_t>(s.count) * width, rows_.end(), Number{});
    }
    void make_columns() {
      columns_.resize(static_cast<size_t>(count_) * width_ / F::STEP);
      pack_rows<F>(rows_.data(), count_, width_, columns_.data());
    }
    void make_steps() {
      if constexpr (F::IS_BF16) {
        steps_.resize(static_cast<size_t>(count_) * width_ / F::STEP);
        pair_rows(rows_.data(), width_, count_, width_, steps_.data());
      }
    }
    int count() const { return count_; }
    Left<F> left(int row) const { return Left<F>::rows(&rows_[static_cast<size_t>(row) * width_], width_); }
    // What is summed over begins at an even row.
    Right<F> right(int row) const {
      const Step* steps;
      if constexpr (F::IS_BF16) steps = steps_.data(); else steps = rows_.data();
      return Right<F>::rows(steps + static_cast<int64_t>(row / F::STEP) * width_, width_);
    }
    // From a column on; one within a panel serves for the rest of that panel.
    Right<F> columns(int column) const {
      const int panel = column / PANEL * PANEL, width = std::min(PANEL, count_ - panel);
      const Step* at = columns_.data() + static_cast<int64_t>(panel) * width_ / F::STEP;
      return column == panel ? Right<F>::panels(at, count_ - panel) : Right<F>::rows(at + column - panel, width);
    }

   private:
    int width_ = 0, count_ = 0;
    std::vector<Number> rows_;
    std::vector<Step> columns_, steps_;
  };

  // Of a block on the diagonal, half is not seen: it is taken by its corners.
  void backward_block(const Head& s, int query, int key, const float* lse, const float* along) {
    const int columns = std::min(BLOCK, keys_.count() - key), rows = std::min(BLOCK, s.count - query);
    const int part = query == key ? WHOLE : BLOCK;
    for (int begin = 0; begin < columns; begin += part) {
      const int width = std::min(part, columns - begin), skipped = query == key ? begin : 0;
      if (skipped >= rows) break;
      const int64_t at = static_cast<int64_t>(skipped) * BLOCK + begin;
      product<F>(queries_.left(query + skipped), keys_.columns(key + begin), rows - skipped, width, s.key / F::STEP, &scores_[at], BLOCK);
      product<F>(douts_.left(query + skipped), values_.columns(key + begin), rows - skipped, width, s.value / F::STEP, &dweights_[at], BLOCK);
    }
    for (int row = 0; row < rows; row += F::STEP) unweigh(s, query, key, row, rows, columns, lse, along);
    const Step *weights, *dscores;
    if constexpr (F::IS_BF16) {
      weights = weight_steps_.data();
      dscores = dscore_steps_.data();
    } else {
      weights = weights_.data();
      dscores = dscores_.data();
    }
    for (int begin = 0; begin < columns; begin += part) {
      const int width = std::min(part, columns - begin), skipped = query == key ? begin : 0;
      if (skipped >= rows) break;
      const int64_t at = static_cast<int64_t>(skipped) / F::STEP * BLOCK + begin;
      const int steps = (rows - skipped + F::STEP - 1) / F::STEP;
      product<F>(Left<F>::columns(weights + at, BLOCK), douts_.right(query + skipped), width, s.value, steps, &dvalues_[static_cast<size_t>(begin) * s.value], s.value, true);
      product<F>(Left<F>::columns(dscores + at, BLOCK), queries_.right(query + skipped), width, s.key, steps, &dkeys_[static_cast<size_t>(begin) * s.key], s.key, true);
    }
    for (int begin = 0; begin < rows; begin += part) {
      const int seen = query == key ? std::min(columns, begin + part) : columns;
      product<F>(Left<F>::rows(&dscores_[static_cast<size_t>(begin) * BLOCK], BLOCK), keys_.right(key), std::min(part, rows - begin), s.key,
                 seen / F::STEP, &dqueries_[static_cast<size_t>(query + begin) * s.key], s.key, true);
    }
  }

  // Scores of a query to exponentials under the largest score so far; keys from `seen` on are not seen.
  static void weigh(const float* scores, int columns, int seen, float scale, float& most, float& total, Number* out, float* sums, int value) {
    Vector high = repeated(-INFINITY);
    int i = 0;
    for (; i + LANES <= std::min(columns, seen); i += LANES) high = larger(load(scores + i), high);
    float now = largest(high);
    for (; i < std::min(columns, seen); i++) now = std::max(now, scores[i]);
    now = std::max(most, now * scale);
    if (most != now && total > 0) {
      const float factor = std::exp(most - now);
      total *= factor;
      for (int j = 0; j < value; j += LANES) store(sums + j, load(sums + j) * factor);
    }
    most = now;
    Vector all{};
    for (i = 0; i < columns; i += LANES) {
      const Vector weight = i < seen ? first(exponential(load(scores + i) * scale - now), seen - i) : Vector{};
      all += weight;
      store(out + i, weight);
    }
    total += sum(all);
  }

  // Weights and the scores' gradients of a step of queries, as rows and as steps.
  void unweigh(const Head& s, int query, int key, int row, int rows, int columns, const float* lse, const float* along) {
    const int count = std::min(F::STEP, rows - row);
    float log_sums[F::STEP] = {}, alongs[F::STEP] = {};
    for (int one = 0; one < count; one++) {
      log_sums[one] = lse[s.at(query + row + one)];
      alongs[one] = along[s.at(query + row + one)];
    }
    for (int i = 0; i < columns; i += LANES) {
      Vector weights[F::STEP] = {}, gradients[F::STEP] = {};
      for (int one = 0; one < count; one++) {
        const int at = (row + one) * BLOCK + i, seen = query + row + one + 1 - key - i;
        if (seen > 0) {
          weights[one] = first(exponential(load(&scores_[at]) * s.scale - log_sums[one]), seen);
          gradients[one] = first(weights[one] * (load(&dweights_[at]) - alongs[one]) * s.scale, seen);
        }
      }
      for (int one = 0; one < F::STEP; one++) store(&dscores_[(row + one) * BLOCK + i], gradients[one]);
      if constexpr (F::IS_BF16) {
        store(&weight_steps_[row / 2 * BLOCK + i], paired(rounded(weights[0]), rounded(weights[1])));
        store(&dscore_steps_[row / 2 * BLOCK + i], paired(rounded(gradients[0]), rounded(gradients[1])));
      } else {
        store(&weights_[row * BLOCK + i], weights[0]);
      }
    }
  }

  static void copy(const float* from, int width, Number* to) {
    for (int i = 0; i < width; i += LANES) store(to + i, load(from + i));
  }

  Rows queries_, keys_, values_, douts_;
  std::vector<Number> weights_, dscores_;
  std::vector<Step> weight_steps_, dscore_steps_;
  std::vector<float> scores_, dweights_, sums_, dqueries_, dkeys_, dvalues_;
};

}  // namespace
