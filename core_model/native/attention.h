// Causal attention over one head of one sequence in bf16, exact, without the scores of all pairs in memory.
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

  int64_t at_key(int i) const { return (static_cast<int64_t>(tokens[i]) * heads + head) * key; }
  int64_t at_value(int i) const { return (static_cast<int64_t>(tokens[i]) * heads + head) * value; }
  int64_t at(int i) const { return static_cast<int64_t>(tokens[i]) * heads + head; }
};

// The first `count` of sixteen.
inline __mmask16 lanes(int count) {
  return count >= LANES ? 0xffff : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1);
}

class Attention {
 public:
  // out [tokens, heads, value] and log-sum-exp [tokens, heads] of the sequence's tokens.
  void forward(const Head& s, const Bf16* q, const Bf16* k, const Bf16* v, Bf16* out, float* lse) {
    columns_ = (s.count + LANES - 1) / LANES * LANES;
    gather_keys(s, q, queries_);
    gather_keys(s, k, gathered_);
    columns_of(gathered_, s.count, s.key, keys_);
    gather_values(s, v, gathered_);
    rows_of(gathered_, s.count, s.value, values_);
    scores_.resize(QUERIES * KEYS);
    exponentials_.resize(QUERIES * KEYS);
    sums_.resize(static_cast<size_t>(QUERIES) * s.value);
    for (int query = 0; query < s.count; query += QUERIES) {
      const int rows = std::min(QUERIES, s.count - query);
      float most[QUERIES], total[QUERIES];
      std::fill(most, most + rows, -INFINITY);
      std::fill(total, total + rows, 0.0f);
      std::fill(sums_.begin(), sums_.end(), 0.0f);
      const int end = (query + rows + LANES - 1) / LANES * LANES;
      for (int key = 0; key < end; key += KEYS) {
        const int columns = std::min(KEYS, end - key);
        product(Left::rows(&queries_[static_cast<size_t>(query) * s.key], s.key), Right::rows(&keys_[key], columns_), rows,
                columns, s.key / 2, scores_.data(), KEYS);
        for (int row = 0; row < rows; row++) {
          weigh(&scores_[row * KEYS], columns, query + row + 1 - key, s.scale, most[row], total[row], &exponentials_[row * KEYS],
                &sums_[static_cast<size_t>(row) * s.value], s.value);
        }
        product(Left::rows(exponentials_.data(), KEYS), Right::rows(&values_[static_cast<size_t>(key / 2) * s.value], s.value), rows,
                s.value, columns / 2, sums_.data(), s.value, true);
      }
      for (int row = 0; row < rows; row++) {
        const float inverse = 1.0f / total[row];
        for (int i = 0; i < s.value; i += LANES)
          store(out + s.at_value(query + row) + i, load(&sums_[static_cast<size_t>(row) * s.value + i]) * inverse);
        lse[s.at(query + row)] = most[row] + std::log(total[row]);
      }
    }
  }

  // Gradients of queries, keys and values; along [tokens, heads]: the sum of dout * out.
  void backward(const Head& s, const Bf16* q, const Bf16* k, const Bf16* v, const Bf16* dout, const float* lse, const float* along,
                Bf16* dq, Bf16* dk, Bf16* dv) {
    columns_ = (s.count + LANES - 1) / LANES * LANES;
    gather_keys(s, k, gathered_);
    columns_of(gathered_, s.count, s.key, keys_);
    rows_of(gathered_, s.count, s.key, key_rows_);
    gather_values(s, v, gathered_);
    columns_of(gathered_, s.count, s.value, values_);
    gather_keys(s, q, queries_);
    rows_of(queries_, s.count, s.key, query_rows_);
    gather_values(s, dout, gathered_);
    rows_of(gathered_, s.count, s.value, dout_rows_);
    scores_.resize(BLOCK * BLOCK);
    dscores_.resize(BLOCK * BLOCK);
    exponentials_.resize(BLOCK * BLOCK);
    weight_pairs_.resize(BLOCK * BLOCK / 2);
    dscore_pairs_.resize(BLOCK * BLOCK / 2);
    dqueries_.assign(static_cast<size_t>(s.count) * s.key, 0.0f);
    for (int key = 0; key < s.count; key += BLOCK) {
      const int columns = std::min<int>(BLOCK, columns_ - key);
      dkeys_.assign(static_cast<size_t>(BLOCK) * s.key, 0.0f);
      dvalues_.assign(static_cast<size_t>(BLOCK) * s.value, 0.0f);
      for (int query = key; query < s.count; query += BLOCK) {
        const int rows = std::min(BLOCK, s.count - query), pairs = (rows + 1) / 2;
        product(Left::rows(&queries_[static_cast<size_t>(query) * s.key], s.key), Right::rows(&keys_[key], columns_), rows,
                columns, s.key / 2, scores_.data(), BLOCK);
        product(Left::rows(&gathered_[static_cast<size_t>(query) * s.value], s.value), Right::rows(&values_[key], columns_), rows,
                columns, s.value / 2, dscores_.data(), BLOCK);
        for (int row = 0; row < rows; row += 2) unweigh(s, query, key, row, rows, columns, lse, along);
        product(Left::columns(weight_pairs_.data(), BLOCK), Right::rows(&dout_rows_[static_cast<size_t>(query / 2) * s.value], s.value),
                columns, s.value, pairs, dvalues_.data(), s.value, true);
        product(Left::columns(dscore_pairs_.data(), BLOCK), Right::rows(&query_rows_[static_cast<size_t>(query / 2) * s.key], s.key),
                columns, s.key, pairs, dkeys_.data(), s.key, true);
        product(Left::rows(exponentials_.data(), BLOCK), Right::rows(&key_rows_[static_cast<size_t>(key / 2) * s.key], s.key), rows,
                s.key, columns / 2, &dqueries_[static_cast<size_t>(query) * s.key], s.key, true);
      }
      for (int i = 0; i < std::min(BLOCK, s.count - key); i++) {
        copy(&dkeys_[static_cast<size_t>(i) * s.key], s.key, dk + s.at_key(key + i));
        copy(&dvalues_[static_cast<size_t>(i) * s.value], s.value, dv + s.at_value(key + i));
      }
    }
    for (int i = 0; i < s.count; i++) copy(&dqueries_[static_cast<size_t>(i) * s.key], s.key, dq + s.at_key(i));
  }

 private:
  static constexpr int QUERIES = 48, KEYS = 128;  // forward's blocks
  static constexpr int BLOCK = 64;                // backward's, both ways

  // Scores of a query to exponentials under the largest score so far; keys from `seen` on are not seen.
  static void weigh(const float* scores, int columns, int seen, float scale, float& most, float& total, Bf16* out, float* sums,
                    int value) {
    __m512 high = _mm512_set1_ps(-INFINITY);
    for (int i = 0; i < columns && i < seen; i += LANES)
      high = _mm512_mask_max_ps(high, lanes(seen - i), high, _mm512_loadu_ps(scores + i));
    const float now = std::max(most, _mm512_reduce_max_ps(high) * scale);
    if (most != now && total > 0) {
      const float factor = std::exp(most - now);
      total *= factor;
      for (int i = 0; i < value; i += LANES) store(sums + i, load(sums + i) * factor);
    }
    most = now;
    Vector all{};
    for (int i = 0; i < columns; i += LANES) {
      const __mmask16 there = lanes(seen - i);
      const Vector weight = there ? _mm512_maskz_mov_ps(there, exponential(load(scores + i) * scale - now)) : Vector{};
      all += weight;
      store(out + i, weight);
    }
    total += sum(all);
  }

  // Weights and the scores' gradients of two queries: the latter as rows, both as pairs of rows.
  void unweigh(const Head& s, int query, int key, int row, int rows, int columns, const float* lse, const float* along) {
    const int count = std::min(2, rows - row);
    float log_sums[2] = {}, alongs[2] = {};
    for (int one = 0; one < count; one++) {
      log_sums[one] = lse[s.at(query + row + one)];
      alongs[one] = along[s.at(query + row + one)];
    }
    for (int i = 0; i < columns; i += LANES) {
      __m256i weights[2] = {}, gradients[2] = {};
      for (int one = 0; one < count; one++) {
        const int at = (row + one) * BLOCK + i;
        const __mmask16 seen = lanes(query + row + one + 1 - key - i);
        if (seen) {
          const Vector weight = _mm512_maskz_mov_ps(seen, exponential(load(&scores_[at]) * s.scale - log_sums[one]));
          weights[one] = rounded(weight);
          gradients[one] = rounded(_mm512_maskz_mov_ps(seen, weight * (load(&dscores_[at]) - alongs[one]) * s.scale));
        }
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(&exponentials_[at]), gradients[one]);
      }
      store(&weight_pairs_[row / 2 * BLOCK + i], paired(weights[0], weights[1]));
      store(&dscore_pairs_[row / 2 * BLOCK + i], paired(gradients[0], gradients[1]));
    }
  }

  static void gather_keys(const Head& s, const Bf16* from, std::vector<Bf16>& to) {
    to.resize(static_cast<size_t>(s.count) * s.key);
    for (int i = 0; i < s.count; i++) std::memcpy(&to[static_cast<size_t>(i) * s.key], from + s.at_key(i), s.key * sizeof(Bf16));
  }

  static void gather_values(const Head& s, const Bf16* from, std::vector<Bf16>& to) {
    to.resize(static_cast<size_t>(s.count) * s.value);
    for (int i = 0; i < s.count; i++) std::memcpy(&to[static_cast<size_t>(i) * s.value], from + s.at_value(i), s.value * sizeof(Bf16));
  }

  void columns_of(const std::vector<Bf16>& from, int rows, int width, std::vector<Pair>& to) const {
    to.resize(static_cast<size_t>(columns_) * width / 2);
    pair_columns(from.data(), width, rows, width, to.data(), columns_);
  }

  // With rows of zeros up to a multiple of 16, since products take so many keys.
  void rows_of(const std::vector<Bf16>& from, int rows, int width, std::vector<Pair>& to) const {
    to.resize(static_cast<size_t>(columns_) * width / 2);
    pair_rows(from.data(), width, rows, width, to.data());
    std::fill(to.begin() + static_cast<int64_t>((rows + 1) / 2) * width, to.end(), 0);
  }

  static void copy(const float* from, int width, Bf16* to) {
    for (int i = 0; i < width; i += LANES) store(to + i, load(from + i));
  }

  int64_t columns_ = 0;  // tokens up to a multiple of 16
  std::vector<Bf16> queries_, gathered_, exponentials_;
  std::vector<Pair> keys_, values_, key_rows_, query_rows_, dout_rows_, weight_pairs_, dscore_pairs_;
  std::vector<float> scores_, dscores_, sums_, dqueries_, dkeys_, dvalues_;
};

}  // namespace
