// A decoder layer of V3, forward and backward, for whole sequences in fp32, or in bf16 over fp32 weights.
//
// What lies between products (norms, rotations, softmax, SwiGLU, routing, casts of weights) is done on tiles of tokens
// that are still near the core, and weights are laid out, and rounded, once a pass. Products sum in fp32; what is kept or
// multiplied again is of the kind `F` (numbers.h). Results do not depend on the number of threads.
//
// Names: D model, H heads, N no-rope dim, R rope dim, V value dim, C kv latent, Q query latent, F expert width, E experts,
// K experts of a token. All widths are multiples of 16.
#pragma once

#include "attention.h"
#include "layer.h"
#include "router.h"

extern "C" {

struct Shape {
  int64_t tokens;
  int32_t dim, heads, nope, rope, value, latent, query;  // query: 0 without a latent of queries
  int32_t width, expert_width;                           // of the dense feed-forward or shared experts; of one expert
  float eps, scale;
  Router router;  // experts: 0 in a dense layer
  int32_t threads;
};

// Weights, or their gradients: null where there is no such weight, or nobody asks for its gradient.
struct Weights {
  float *attention_norm, *q_a, *q_norm, *q_b, *kv_a, *kv_norm, *kv_b, *o;  // q_b: q_proj without a latent of queries
  float *mlp_norm, *gate, *up, *down, *router, *expert_gate_up, *expert_down;
};

// Documents one after the other, and how each token is rotated.
struct Sequences {
  const int32_t *tokens, *ends;  // tokens of documents in order; where each document's end among them
  int32_t count;
  const float* rotations;  // [rotated, R], complex
  int64_t rotated;         // tokens t and t + rotated have the same
};

// What backward needs of forward, numbers of the kind unless said otherwise.
struct Kept {
  void *latents, *q, *k, *v, *out, *after, *inner;  // [X, Q+C+R], [X, H, N+R] twice, [X, H, V] twice, [X, D], [X, 2F]
  float* lse;               // [X, H]
  void* expert_inner;       // [X * K + E, 2F]
  int64_t* indices;         // [X, K]
  float *weights, *scores;  // [X, K], [X, E]
};

}  // extern "C"

namespace {

// The (token, expert) pairs in rows grouped by expert; each group begins at an even row.
class Rows {
 public:
  Rows(const Shape& s, const int64_t* indices) : begins(s.router.experts + 1, 0), rows(s.tokens * s.router.chosen) {
    const int experts = s.router.experts;
    std::vector<int64_t> counts(experts, 0);
    for (size_t i = 0; i < rows.size(); i++) counts[indices[i]]++;
    for (int e = 0; e < experts; e++) {
      begins[e + 1] = begins[e] + (counts[e] + 1) / 2 * 2;
      for (int64_t row = begins[e]; row < begins[e + 1]; row += TILE) tiles.push_back({e, row, std::min<int64_t>(TILE, begins[e + 1] - row)});
    }
    pairs.assign(begins[experts], -1);
    std::vector<int64_t> next(begins.begin(), begins.end() - 1);
    for (size_t i = 0; i < rows.size(); i++) {
      rows[i] = next[indices[i]]++;
      pairs[rows[i]] = i;
    }
  }

  struct Tile {
    int expert;
    int64_t row, count;
  };
  std::vector<int64_t> begins, rows;  // of each expert; of each pair
  std::vector<int64_t> pairs;         // of each row; -1 where it evens an odd number
  std::vector<Tile> tiles;

  int64_t count() const { return static_cast<int64_t>(pairs.size()); }

  // The rows of a tile of [tokens, width], zeros where there is no token.
  template <typename Number>
  void gather(const Tile& tile, int chosen, const Number* from, int width, Number* to) const {
    for (int64_t i = 0; i < tile.count; i++, to += width) {
      const int64_t pair = pairs[tile.row + i];
      if (pair < 0) {
        std::memset(to, 0, width * sizeof(Number));
      } else {
        std::memcpy(to, from + pair / chosen * width, width * sizeof(Number));
      }
    }
  }
};

template <class F>
class Layer {
 public:
  typedef typename F::Number Number;
  static constexpr int STEP = F::STEP;

  Layer(const Shape& shape, const Weights& weights, const Sequences& sequences, const void* x, const Kept& kept)
      : s(shape), w(weights), sequences_(sequences), x_(static_cast<const Number*>(x)), kept_(kept) {
    swiglu_.dim = s.dim;
    swiglu_.width = s.width;
    experts_.resize(s.router.experts);
  }

  void forward(Number* y) {
    pack_weights(false);
    Buffer<Number> normed(s.router.experts ? s.tokens * s.dim : 0);
    Buffer<float> shared(s.router.experts ? s.tokens * s.dim : 0);
#pragma omp parallel num_threads(s.threads)
    {
      Scratch scratch(s);
      Attention<F> attention;
#pragma omp for schedule(dynamic)
      for (int64_t tile = 0; tile < tiles(); tile++) project(tile, scratch);
#pragma omp for schedule(dynamic)
      for (int64_t unit = 0; unit < units(); unit++)
        attention.forward(head(unit), kept_.q, kept_.k, kept_.v, kept_.out, kept_.lse);
#pragma omp for schedule(dynamic)
      for (int64_t tile = 0; tile < tiles(); tile++) feed(tile, normed, shared, y, scratch);
    }
    if (s.router.experts) forward_experts(normed, shared, y);
  }

  // dx and the gradients of all weights from dy; dweights [X, K] and dscores [X, E], or null: from the losses directly.
  void backward(const Number* dy, const float* dweights, const float* dscores, const Weights& grads, Number* dx) {
    pack_weights(true);
    Buffer<Number> after(s.tokens * s.dim);
    backward_feed(dy, dweights, dscores, grads, after);
    backward_attention(after, grads, dx);
  }

 private:
  // Kept, by kind.
  struct Arrays {
    explicit Arrays(const Kept& k)
        : latents(at(k.latents)), q(at(k.q)), k(at(k.k)), v(at(k.v)), out(at(k.out)), after(at(k.after)), inner(at(k.inner)),
          expert_inner(at(k.expert_inner)), lse(k.lse), indices(k.indices), weights(k.weights), scores(k.scores) {}
    static Number* at(void* one) { return static_cast<Number*>(one); }
    Number *latents, *q, *k, *v, *out, *after, *inner, *expert_inner;
    float* lse;
    int64_t* indices;
    float *weights, *scores;
  };

  // Of one thread.
  struct Scratch {
    explicit Scratch(const Shape& s)
        : wide(static_cast<int64_t>(TILE) * std::max({s.dim, s.query, s.latent + s.rope, s.heads * std::max(s.nope + s.rope, s.nope + s.value)})),
          state(static_cast<int64_t>(TILE) * s.dim),
          normed(static_cast<int64_t>(TILE) * s.dim),
          narrow(static_cast<int64_t>(TILE) * std::max({s.dim, s.query, s.latent, s.heads * std::max(s.nope + s.rope, s.nope + s.value)})),
          latents(static_cast<int64_t>(TILE) * (s.query + s.latent + s.rope)),
          act(static_cast<int64_t>(TILE) * std::max(s.width, s.expert_width)),
          dinner(static_cast<int64_t>(TILE) * 2 * std::max(s.width, s.expert_width)) {}
    Buffer<float> wide, state;
    Buffer<Number> normed, narrow, latents, act, dinner;
    SwigluScratch swiglu;
    Choice choice;
  };

  int64_t tiles() const { return (s.tokens + TILE - 1) / TILE; }
  int64_t first(int64_t tile) const { return tile * TILE; }
  int rows(int64_t tile) const { return static_cast<int>(std::min<int64_t>(TILE, s.tokens - tile * TILE)); }
  int64_t units() const { return static_cast<int64_t>(sequences_.count) * s.heads; }
  int key() const { return s.nope + s.rope; }
  int down() const { return s.query + s.latent + s.rope; }
  const float* rotation(int64_t token) const { return sequences_.rotations + token % sequences_.rotated * s.rope; }

  Head head(int64_t unit) const {
    const int64_t sequence = unit / s.heads, begin = sequence ? sequences_.ends[sequence - 1] : 0;
    return {sequences_.tokens + begin, static_cast<int32_t>(sequences_.ends[sequence] - begin), s.heads,
            static_cast<int32_t>(unit % s.heads), key(), s.value, s.scale};
  }

  // Forward multiplies by W^T, backward by W.
  void pack_weights(bool backward) {
    if (s.query) q_a_ = packed_.add(w.q_a, s.query, s.dim, backward);
    q_b_ = packed_.add(w.q_b, s.heads * key(), s.query ? s.query : s.dim, backward);
    kv_a_ = packed_.add(w.kv_a, s.latent + s.rope, s.dim, backward);
    kv_b_ = packed_.add(w.kv_b, s.heads * (s.nope + s.value), s.latent, backward);
    o_ = packed_.add(w.o, s.dim, s.heads * s.value, backward);
    pack_swiglu(swiglu_, w.gate, w.up, w.down, backward);
    for (int e = 0; e < s.router.experts; e++) pack_expert(e, backward);
    packed_.make(s.threads);
  }

  void pack_swiglu(Swiglu& one, const float* gate, const float* up, const float* down, bool backward) {
    if (backward) {
      one.gate_t = packed_.add(gate, one.width, one.dim, true);
      one.up_t = packed_.add(up, one.width, one.dim, true);
      one.down_t = packed_.add(down, one.dim, one.width, true);
    } else {
      one.gate = packed_.add(gate, one.width, one.dim, false);
      one.up = packed_.add(up, one.width, one.dim, false);
      one.down = packed_.add(down, one.dim, one.width, false);
    }
  }

  void pack_expert(int e, bool backward) {
    const int64_t size = static_cast<int64_t>(s.expert_width) * s.dim;
    const float* gate = w.expert_gate_up + 2 * e * size;
    experts_[e].dim = s.dim;
    experts_[e].width = s.expert_width;
    pack_swiglu(experts_[e], gate, gate + size, w.expert_down + e * size, backward);
  }

  void normalise_tile(int64_t tile, const Number* x, const float* weight, Number* out) const {
    for (int row = 0; row < rows(tile); row++)
      normalise(x + (first(tile) + row) * s.dim, weight, s.dim, s.eps, out + static_cast<int64_t>(row) * s.dim);
  }

  // The latent of queries or of keys and values, normed; `at` in kept latents.
  void normalise_latents(int64_t tile, int at, int width, const float* weight, Number* out) const {
    for (int row = 0; row < rows(tile); row++)
      normalise(kept_.latents + (first(tile) + row) * down() + at, weight, width, s.eps, out + static_cast<int64_t>(row) * width);
  }

  // Queries, keys and values.
  void project(int64_t tile, Scratch& t) const {
    const int count = rows(tile);
    normalise_tile(tile, x_, w.attention_norm, t.normed);
    const Number* source = t.normed;
    if (s.query) {
      product<F>(Left<F>::rows(t.normed, s.dim), packed_[q_a_], count, s.query, s.dim / STEP, t.wide, s.query);
      for (int row = 0; row < count; row++) round_row(t.wide + static_cast<int64_t>(row) * s.query, s.query, latents(tile, row));
      normalise_latents(tile, 0, s.query, w.q_norm, t.narrow);
      source = t.narrow;
    }
    const int inner = s.query ? s.query : s.dim, width = s.heads * key();
    product<F>(Left<F>::rows(source, inner), packed_[q_b_], count, width, inner / STEP, t.wide, width);
    for (int row = 0; row < count; row++) {
      float* from = t.wide + static_cast<int64_t>(row) * width;
      for (int h = 0; h < s.heads; h++) rotate(from + h * key() + s.nope, s.rope, rotation(first(tile) + row), false);
      round_row(from, width, kept_.q + (first(tile) + row) * width);
    }
    const int compressed = s.latent + s.rope, expanded = s.nope + s.value;
    product<F>(Left<F>::rows(t.normed, s.dim), packed_[kv_a_], count, compressed, s.dim / STEP, t.wide, compressed);
    for (int row = 0; row < count; row++) {
      float* from = t.wide + static_cast<int64_t>(row) * compressed;
      rotate(from + s.latent, s.rope, rotation(first(tile) + row), false);
      round_row(from, compressed, latents(tile, row) + s.query);
    }
    normalise_latents(tile, s.query, s.latent, w.kv_norm, t.narrow);
    product<F>(Left<F>::rows(t.narrow, s.latent), packed_[kv_b_], count, s.heads * expanded, s.latent / STEP, t.wide, s.heads * expanded);
    for (int row = 0; row < count; row++) {
      for (int h = 0; h < s.heads; h++) {
        const float* from = t.wide + (static_cast<int64_t>(row) * s.heads + h) * expanded;
        const int64_t at = (first(tile) + row) * s.heads + h;
        round_row(from, s.nope, kept_.k + at * key());
        std::memcpy(kept_.k + at * key() + s.nope, latents(tile, row) + s.query + s.latent, s.rope * sizeof(Number));
        round_row(from + s.nope, s.value, kept_.v + at * s.value);
      }
    }
  }

  Number* latents(int64_t tile, int row) const { return kept_.latents + (first(tile) + row) * down(); }

  // The states after attention, then y of a dense layer, or what experts need: normed states and shared experts' output.
  void feed(int64_t tile, Number* normed, float* shared, Number* y, Scratch& t) const {
    const int count = rows(tile), width = s.heads * s.value;
    const int64_t at = first(tile) * s.dim;
    product<F>(Left<F>::rows(kept_.out + first(tile) * width, width), packed_[o_], count, s.dim, width / STEP, t.state, s.dim);
    for (int i = 0; i < count * s.dim; i += LANES) store(kept_.after + at + i, load(x_ + at + i) + load(t.state + i));
    Number* h = s.router.experts ? normed + at : static_cast<Number*>(t.normed);
    normalise_tile(tile, kept_.after, w.mlp_norm, h);
    swiglu(swiglu_, packed_, h, count, kept_.inner + first(tile) * 2 * s.width, t.act, t.swiglu);
    float* out = s.router.experts ? shared + at : static_cast<float*>(t.state);
    product<F>(Left<F>::rows(t.act, s.width), packed_[swiglu_.down], count, s.dim, s.width / STEP, out, s.dim);
    if (s.router.experts) {
      route(tile, h, t);
    } else {
      for (int i = 0; i < count * s.dim; i += LANES) store(y + at + i, load(kept_.after + at + i) + load(out + i));
    }
  }

  // In fp32, as the routing bias steps are small.
  void route(int64_t tile, const Number* normed, Scratch& t) const {
    const int experts = s.router.experts, chosen = s.router.chosen;
    for (int row = 0; row < rows(tile); row++) {
      const int64_t token = first(tile) + row;
      float* scores = kept_.scores + token * experts;
      for (int e = 0; e < experts; e++) {
        Vector dot{};
        const float* weight = w.router + static_cast<int64_t>(e) * s.dim;
        for (int i = 0; i < s.dim; i += LANES) dot += load(normed + static_cast<int64_t>(row) * s.dim + i) * load(weight + i);
        scores[e] = sum(dot);
      }
      for (int e = 0; e < experts; e += LANES) {
        const size_t some = std::min(LANES, experts - e) * sizeof(float);
        Vector logits{};
        std::memcpy(&logits, scores + e, some);
        logits = sigmoid(logits);
        std::memcpy(scores + e, &logits, some);
      }
      t.choice.choose(s.router, scores, kept_.indices + token * chosen, kept_.weights + token * chosen);
    }
  }

  void forward_experts(const Number* normed, const float* shared, Number* y) const {
    const Rows rows_of(s, kept_.indices);
    Buffer<Number> outputs(rows_of.count() * s.dim);
    const int chosen = s.router.chosen;
#pragma omp parallel num_threads(s.threads)
    {
      Scratch t(s);
#pragma omp for schedule(dynamic)
      for (size_t i = 0; i < rows_of.tiles.size(); i++) {
        const Rows::Tile& tile = rows_of.tiles[i];
        const int count = static_cast<int>(tile.count);
        rows_of.gather<Number>(tile, chosen, normed, s.dim, t.normed);
        swiglu(experts_[tile.expert], packed_, t.normed, count, kept_.expert_inner + tile.row * 2 * s.expert_width, t.act, t.swiglu);
        product<F>(Left<F>::rows(t.act, s.expert_width), packed_[experts_[tile.expert].down], count, s.dim, s.expert_width / STEP, t.state, s.dim);
        round_row(t.state, count * s.dim, outputs + tile.row * s.dim);
      }
#pragma omp for schedule(static)
      for (int64_t token = 0; token < s.tokens; token++) {
        for (int i = 0; i < s.dim; i += LANES) {
          Vector total = load(shared + token * s.dim + i);
          for (int64_t pair = token * chosen; pair < (token + 1) * chosen; pair++)
            total += load(outputs + rows_of.rows[pair] * s.dim + i) * kept_.weights[pair];
          store(y + token * s.dim + i, load(kept_.after + token * s.dim + i) + total);
        }
      }
    }
  }

  // dafter: the gradient of the states after attention.
  void backward_feed(const Number* dy, const float* dweights, const float* dscores, const Weights& grads, Number* dafter) {
    const int experts = s.router.experts, chosen = s.router.chosen;
    const Rows rows_of(s, kept_.indices);
    const int width = s.width, expert_width = s.expert_width;
    Buffer<Number> normed(s.tokens * s.dim);
    Buffer<float> dnormed(s.tokens * s.dim), shares(rows_of.count()), dlogits(s.tokens * experts);
    const bool opens = grads.gate || grads.up, closes = grads.down, rows_open = grads.expert_gate_up, rows_close = grads.expert_down;
    Summed<F> normed_sum(normed, s.tokens, s.dim, opens), dinner_sum(nullptr, s.tokens, 2 * width, opens);
    Summed<F> dy_sum(dy, s.tokens, s.dim, closes), act_sum(nullptr, s.tokens, width, closes);
    Summed<F> row_normed(nullptr, rows_of.count(), s.dim, rows_open), row_dinner(nullptr, rows_of.count(), 2 * expert_width, rows_open);
    Summed<F> row_dy(nullptr, rows_of.count(), s.dim, rows_close), row_act(nullptr, rows_of.count(), expert_width, rows_close);
    Buffer<Number> row_dnormed(rows_of.count() * s.dim);
    NormGradient norm(tiles(), s.dim);
#pragma omp parallel num_threads(s.threads)
    {
      Scratch t(s);
#pragma omp for schedule(dynamic)
      for (int64_t tile = 0; tile < tiles(); tile++) {
        const int count = rows(tile);
        const int64_t at = first(tile);
        Number *const act = act_sum.place(at, t.act), *const dinner = dinner_sum.place(at, t.dinner);
        normalise_tile(tile, kept_.after, w.mlp_norm, normed + at * s.dim);
        swiglu_backward(swiglu_, packed_, dy + at * s.dim, count, kept_.inner + at * 2 * width, nullptr, dinner, act, nullptr, t.swiglu);
        swiglu_input(swiglu_, packed_, dinner, count, dnormed + at * s.dim, false);
        normed_sum.take(at, count, normed + at * s.dim);
        dy_sum.take(at, count, dy + at * s.dim);
        act_sum.take(at, count, act);
        dinner_sum.take(at, count, dinner);
      }
#pragma omp for schedule(dynamic)
      for (size_t i = 0; i < rows_of.tiles.size(); i++) {
        const Rows::Tile& tile = rows_of.tiles[i];
        const Swiglu& expert = experts_[tile.expert];
        const int count = static_cast<int>(tile.count);
        float factors[TILE];
        for (int row = 0; row < count; row++) {
          const int64_t pair = rows_of.pairs[tile.row + row];
          factors[row] = pair < 0 ? 0.0f : kept_.weights[pair];
        }
        Number *const states = row_normed.place(tile.row, t.normed), *const dout = row_dy.place(tile.row, t.narrow);
        Number *const act = row_act.place(tile.row, t.act), *const dinner = row_dinner.place(tile.row, t.dinner);
        rows_of.gather<Number>(tile, chosen, normed, s.dim, states);
        rows_of.gather<Number>(tile, chosen, dy, s.dim, dout);
        swiglu_backward(expert, packed_, dout, count, kept_.expert_inner + tile.row * 2 * expert_width, factors, dinner, act, shares + tile.row, t.swiglu);
        swiglu_input(expert, packed_, dinner, count, t.state, false);
        round_row(t.state, count * s.dim, row_dnormed + tile.row * s.dim);
        row_normed.take(tile.row, count, states);
        row_dy.take(tile.row, count, dout);
        row_act.take(tile.row, count, act);
        row_dinner.take(tile.row, count, dinner);
      }
#pragma omp for schedule(dynamic)
      for (int64_t tile = 0; tile < tiles(); tile++) {
        for (int64_t token = first(tile); token < first(tile) + rows(tile); token++) {
          float* grad = dnormed + token * s.dim;
          for (int64_t pair = token * chosen; pair < (token + 1) * chosen; pair++) {
            const Number* from = row_dnormed + rows_of.rows[pair] * s.dim;
            for (int i = 0; i < s.dim; i += LANES) store(grad + i, load(grad + i) + load(from + i));
          }
          if (experts) unroute(token, rows_of, shares, dweights, dscores, dlogits + token * experts, grad);
          normalise_backward(kept_.after + token * s.dim, w.mlp_norm, s.dim, s.eps, grad, norm.of(tile));
          for (int i = 0; i < s.dim; i += LANES) store(dafter + token * s.dim + i, load(dy + token * s.dim + i) + load(grad + i));
        }
      }
      if (grads.router) router_gradient(dlogits, normed, grads.router);
    }
    norm.total(grads.mlp_norm);
    WeightGradients<F> products;
    products.add(dinner_sum, 0, width, normed_sum, 0, s.tokens, grads.gate);
    products.add(dinner_sum, width, width, normed_sum, 0, s.tokens, grads.up);
    products.add(dy_sum, 0, s.dim, act_sum, 0, s.tokens, grads.down);
    const int64_t size = static_cast<int64_t>(expert_width) * s.dim;
    for (int e = 0; e < experts; e++) {
      const int64_t begin = rows_of.begins[e], count = rows_of.begins[e + 1] - begin;
      if (rows_open) products.add(row_dinner, 0, 2 * expert_width, row_normed, begin, count, grads.expert_gate_up + 2 * e * size);
      if (rows_close) products.add(row_dy, 0, s.dim, row_act, begin, count, grads.expert_down + e * size);
    }
    products.make(s.threads);
  }

  // The gradient of a token's logits from those of its weights and scores, and its share in that of the normed state.
  void unroute(int64_t token, const Rows& rows_of, const float* shares, const float* dweights, const float* dscores, float* dlogits,
               float* grad) const {
    const Router& r = s.router;
    const float* scores = kept_.scores + token * r.experts;
    float total = 0, along = 0;
    for (int64_t pair = token * r.chosen; pair < (token + 1) * r.chosen; pair++) {
      total += scores[kept_.indices[pair]];
      along += share(pair, rows_of, shares, dweights) * kept_.weights[pair];
    }
    for (int e = 0; e < r.experts; e++) dlogits[e] = dscores ? dscores[token * r.experts + e] : 0.0f;
    for (int64_t pair = token * r.chosen; pair < (token + 1) * r.chosen; pair++) {
      const float one = share(pair, rows_of, shares, dweights);
      dlogits[kept_.indices[pair]] += r.normalised ? (one * r.scaling - along) / (total + 1e-20f) : one * r.scaling;
    }
    for (int e = 0; e < r.experts; e++) {
      dlogits[e] *= scores[e] * (1.0f - scores[e]);
      if (dlogits[e] == 0.0f) continue;
      const float* weight = w.router + static_cast<int64_t>(e) * s.dim;
      for (int i = 0; i < s.dim; i += LANES) store(grad + i, load(grad + i) + load(weight + i) * dlogits[e]);
    }
  }

  static float share(int64_t pair, const Rows& rows_of, const float* shares, const float* dweights) {
    return shares[rows_of.rows[pair]] + (dweights ? dweights[pair] : 0.0f);
  }

  // [E, D], in fp32; within a parallel region.
  void router_gradient(const float* dlogits, const Number* normed, float* out) const {
    constexpr int SOME = 6;
    const int experts = s.router.experts, columns = (s.dim + PANEL - 1) / PANEL, blocks = (experts + SOME - 1) / SOME;
#pragma omp for schedule(dynamic)
    for (int job = 0; job < columns * blocks; job++) {
      const int begin = job / columns * SOME, column = job % columns * PANEL, vectors = std::min(PANEL, s.dim - column) / LANES;
      Vector sums[SOME][PANEL / LANES] = {};
      for (int64_t token = 0; token < s.tokens; token++) {
        Vector states[PANEL / LANES] = {};
        for (int v = 0; v < vectors; v++) states[v] = load(normed + token * s.dim + column + v * LANES);
        for (int e = 0; e < SOME; e++) {
          const float factor = begin + e < experts ? dlogits[token * experts + begin + e] : 0.0f;
          for (int v = 0; v < PANEL / LANES; v++) sums[e][v] += states[v] * factor;
        }
      }
      for (int e = 0; e < SOME && begin + e < experts; e++)
        for (int v = 0; v < vectors; v++) store(out + static_cast<int64_t>(begin + e) * s.dim + column + v * LANES, sums[e][v]);
    }
  }

  void backward_attention(const Number* dafter, const Weights& grads, Number* dx) {
    const int width = s.heads * s.value, keys = s.heads * key(), expanded = s.heads * (s.nope + s.value);
    Buffer<Number> dout(s.tokens * width), dq(s.tokens * keys), dk(s.tokens * keys), dv(s.tokens * width);
    Buffer<float> along(s.tokens * s.heads);
    const bool inward = grads.kv_a || (s.query ? grads.q_a : grads.q_b), queries = grads.q_b, expands = grads.kv_b, outward = grads.o;
    Summed<F> normed_sum(nullptr, s.tokens, s.dim, inward), dlatent_sum(nullptr, s.tokens, down(), inward);
    Summed<F> query_sum(nullptr, s.tokens, s.query, queries), dq_sum(dq, s.tokens, keys, queries);
    Summed<F> latent_sum(nullptr, s.tokens, s.latent, expands), dexpanded_sum(nullptr, s.tokens, expanded, expands);
    Summed<F> dafter_sum(dafter, s.tokens, s.dim, outward), out_sum(kept_.out, s.tokens, width, outward);
    NormGradient norm(tiles(), s.dim), q_norm(tiles(), s.query), kv_norm(tiles(), s.latent);
    const bool all = sequences_.ends[sequences_.count - 1] == s.tokens;  // else some tokens are of no document
    if (!all) {
      std::memset(dq, 0, s.tokens * keys * sizeof(Number));
      std::memset(dk, 0, s.tokens * keys * sizeof(Number));
      std::memset(dv, 0, s.tokens * width * sizeof(Number));
    }
#pragma omp parallel num_threads(s.threads)
    {
      Scratch t(s);
      Attention<F> attention;
#pragma omp for schedule(dynamic)
      for (int64_t tile = 0; tile < tiles(); tile++) {
        const int count = rows(tile);
        const int64_t at = first(tile);
        product<F>(Left<F>::rows(dafter + at * s.dim, s.dim), packed_[o_], count, width, s.dim / STEP, t.wide, width);
        round_row(t.wide, count * width, dout + at * width);
        for (int64_t i = 0; i < static_cast<int64_t>(count) * s.heads; i++) {
          const int64_t one = at * s.heads + i;
          Vector dot{};
          for (int v = 0; v < s.value; v += LANES) dot += load(dout + one * s.value + v) * load(kept_.out + one * s.value + v);
          along[one] = sum(dot);
        }
        dafter_sum.take(at, count, dafter + at * s.dim);
        out_sum.take(at, count, kept_.out + at * width);
      }
#pragma omp for schedule(dynamic)
      for (int64_t unit = 0; unit < units(); unit++)
        attention.backward(head(unit), kept_.q, kept_.k, kept_.v, dout, kept_.lse, along, dq, dk, dv);
#pragma omp for schedule(dynamic)
      for (int64_t tile = 0; tile < tiles(); tile++) {
        const int count = rows(tile);
        const int64_t at = first(tile);
        Number* const dlatents = dlatent_sum.place(at, t.latents);
        for (int row = 0; row < count; row++) unrotate(at + row, dq, dk, dlatents + static_cast<int64_t>(row) * down(), t.wide);
        dq_sum.take(at, count, dq + at * keys);
        // Keys and values, back to their latent.
        Number* const dexpanded = dexpanded_sum.place(at, t.narrow);
        for (int row = 0; row < count; row++) {
          for (int h = 0; h < s.heads; h++) {
            const int64_t one = (at + row) * s.heads + h;
            Number* to = dexpanded + (static_cast<int64_t>(row) * s.heads + h) * (s.nope + s.value);
            std::memcpy(to, dk + one * key(), s.nope * sizeof(Number));
            std::memcpy(to + s.nope, dv + one * s.value, s.value * sizeof(Number));
          }
        }
        dexpanded_sum.take(at, count, dexpanded);
        product<F>(Left<F>::rows(dexpanded, expanded), packed_[kv_b_], count, s.latent, expanded / STEP, t.wide, s.latent);
        unnormalise_latents(tile, s.query, s.latent, w.kv_norm, t.wide, kv_norm.of(tile), dlatents);
        Number* const latent = latent_sum.place(at, t.narrow);
        normalise_latents(tile, s.query, s.latent, w.kv_norm, latent);
        latent_sum.take(at, count, latent);
        product<F>(Left<F>::rows(dlatents + s.query, down()), packed_[kv_a_], count, s.dim, (s.latent + s.rope) / STEP, t.state, s.dim);
        // Queries.
        if (s.query) {
          product<F>(Left<F>::rows(dq + at * keys, keys), packed_[q_b_], count, s.query, keys / STEP, t.wide, s.query);
          unnormalise_latents(tile, 0, s.query, w.q_norm, t.wide, q_norm.of(tile), dlatents);
          Number* const query = query_sum.place(at, t.narrow);
          normalise_latents(tile, 0, s.query, w.q_norm, query);
          query_sum.take(at, count, query);
          product<F>(Left<F>::rows(dlatents, down()), packed_[q_a_], count, s.dim, s.query / STEP, t.state, s.dim, true);
        } else {
          product<F>(Left<F>::rows(dq + at * keys, keys), packed_[q_b_], count, s.dim, keys / STEP, t.state, s.dim, true);
        }
        dlatent_sum.take(at, count, dlatents);
        Number* const normed = normed_sum.place(at, t.normed);
        normalise_tile(tile, x_, w.attention_norm, normed);
        normed_sum.take(at, count, normed);
        for (int row = 0; row < count; row++) {
          float* grad = t.state + static_cast<int64_t>(row) * s.dim;
          const int64_t token = (at + row) * s.dim;
          normalise_backward(x_ + token, w.attention_norm, s.dim, s.eps, grad, norm.of(tile));
          for (int i = 0; i < s.dim; i += LANES) store(dx + token + i, load(dafter + token + i) + load(grad + i));
        }
      }
    }
    norm.total(grads.attention_norm);
    kv_norm.total(grads.kv_norm);
    WeightGradients<F> products;
    if (s.query) {
      q_norm.total(grads.q_norm);
      products.add(dlatent_sum, 0, s.query, normed_sum, 0, s.tokens, grads.q_a);
      products.add(dq_sum, 0, keys, query_sum, 0, s.tokens, grads.q_b);
    } else {
      products.add(dq_sum, 0, keys, normed_sum, 0, s.tokens, grads.q_b);
    }
    products.add(dlatent_sum, s.query, s.latent + s.rope, normed_sum, 0, s.tokens, grads.kv_a);
    products.add(dexpanded_sum, 0, expanded, latent_sum, 0, s.tokens, grads.kv_b);
    products.add(dafter_sum, 0, s.dim, out_sum, 0, s.tokens, grads.o);
    products.make(s.threads);
  }

  // Queries' gradients before their rotation, in place, and that of the key which all heads share, into `latents`.
  void unrotate(int64_t token, Number* dq, const Number* dk, Number* latents, float* scratch) const {
    float* shared = scratch + s.rope;
    std::fill(shared, shared + s.rope, 0.0f);
    for (int h = 0; h < s.heads; h++) {
      const int64_t at = (token * s.heads + h) * key() + s.nope;
      for (int i = 0; i < s.rope; i += LANES) {
        store(scratch + i, load(dq + at + i));
        store(shared + i, load(shared + i) + load(dk + at + i));
      }
      rotate(scratch, s.rope, rotation(token), true);
      round_row(scratch, s.rope, dq + at);
    }
    rotate(shared, s.rope, rotation(token), true);
    round_row(shared, s.rope, latents + s.query + s.latent);
  }

  // Gradients of normed latents to those of the latents, at their place in `to` [rows, Q+C+R].
  void unnormalise_latents(int64_t tile, int at, int width, const float* weight, float* grad, float* dweight, Number* to) const {
    for (int row = 0; row < rows(tile); row++, grad += width) {
      normalise_backward(latents(tile, row) + at, weight, width, s.eps, grad, dweight);
      round_row(grad, width, to + static_cast<int64_t>(row) * down() + at);
    }
  }

  const Shape& s;
  const Weights& w;
  const Sequences& sequences_;
  const Number* x_;
  const Arrays kept_;
  Packed<F> packed_;
  int q_a_ = 0, q_b_ = 0, kv_a_ = 0, kv_b_ = 0, o_ = 0;  // in `packed_`
  Swiglu swiglu_{};  // the dense feed-forward, or the shared experts
  std::vector<Swiglu> experts_;
};

}  // namespace
