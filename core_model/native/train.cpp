// A decoder layer of V3, forward and backward, for whole sequences in bf16 over fp32 weights, on processors with
// AVX-512 BF16.
//
// What lies between products (norms, rotations, softmax, SwiGLU, routing, casts of weights) is done on tiles of tokens
// that are still near the core, and weights are rounded once a pass. Products sum in fp32; what is kept or multiplied
// again is bf16. Results do not depend on the number of threads.
//
// Names: D model, H heads, N no-rope dim, R rope dim, V value dim, C kv latent, Q query latent, F expert width, E experts,
// K experts of a token. All widths are multiples of 16.
#include "attention.h"
#include "layer.h"
#include "loss.h"
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

// Weights, or their gradients.
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

// What backward needs of forward, bf16 unless said otherwise.
struct Kept {
  Bf16 *latents, *q, *k, *v, *out, *after, *inner, *expert_inner;  // [X, Q+C+R], [X, H, N+R] twice, [X, H, V] twice,
                                                                   // [X, D], [X, 2F], [X * K + E, 2F]
  float* lse;              // [X, H]
  int64_t* indices;        // [X, K]
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
  void gather(const Tile& tile, int chosen, const Bf16* from, int width, Bf16* to) const {
    for (int64_t i = 0; i < tile.count; i++, to += width) {
      const int64_t pair = pairs[tile.row + i];
      if (pair < 0) {
        std::memset(to, 0, width * sizeof(Bf16));
      } else {
        std::memcpy(to, from + pair / chosen * width, width * sizeof(Bf16));
      }
    }
  }
};

class Layer {
 public:
  Layer(const Shape& shape, const Weights& weights, const Sequences& sequences, const Bf16* x, const Kept& kept)
      : s(shape), w(weights), sequences_(sequences), x_(x), kept_(kept) {
    swiglu_.dim = s.dim;
    swiglu_.width = s.width;
    experts_.resize(s.router.experts);
  }

  void forward(Bf16* y) {
    pack_weights(false);
    Buffer<Bf16> normed(s.router.experts ? s.tokens * s.dim : 0);
    Buffer<float> shared(s.router.experts ? s.tokens * s.dim : 0);
#pragma omp parallel num_threads(s.threads)
    {
      Scratch scratch(s);
      Attention attention;
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
  void backward(const Bf16* dy, const float* dweights, const float* dscores, const Weights& grads, Bf16* dx) {
    pack_weights(true);
    Buffer<Bf16> after(s.tokens * s.dim);
    backward_feed(dy, dweights, dscores, grads, after);
    backward_attention(after, grads, dx);
  }

 private:
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
    Buffer<Bf16> normed, narrow, latents, act, dinner;
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

  void normalise_tile(int64_t tile, const Bf16* x, const float* weight, Bf16* out) const {
    for (int row = 0; row < rows(tile); row++)
      normalise(x + (first(tile) + row) * s.dim, weight, s.dim, s.eps, out + static_cast<int64_t>(row) * s.dim);
  }

  // The latent of queries or of keys and values, normed; `at` in kept latents.
  void normalise_latents(int64_t tile, int at, int width, const float* weight, Bf16* out) const {
    for (int row = 0; row < rows(tile); row++)
      normalise(kept_.latents + (first(tile) + row) * down() + at, weight, width, s.eps, out + static_cast<int64_t>(row) * width);
  }

  // Queries, keys and values.
  void project(int64_t tile, Scratch& t) const {
    const int count = rows(tile);
    normalise_tile(tile, x_, w.attention_norm, t.normed);
    const Bf16* source = t.normed;
    if (s.query) {
      product(Left::rows(t.normed, s.dim), packed_[q_a_], count, s.query, s.dim / 2, t.wide, s.query);
      for (int row = 0; row < count; row++) round_row(t.wide + static_cast<int64_t>(row) * s.query, s.query, latents(tile, row));
      normalise_latents(tile, 0, s.query, w.q_norm, t.narrow);
      source = t.narrow;
    }
    const int inner = s.query ? s.query : s.dim, width = s.heads * key();
    product(Left::rows(source, inner), packed_[q_b_], count, width, inner / 2, t.wide, width);
    for (int row = 0; row < count; row++) {
      float* from = t.wide + static_cast<int64_t>(row) * width;
      for (int h = 0; h < s.heads; h++) rotate(from + h * key() + s.nope, s.rope, rotation(first(tile) + row), false);
      round_row(from, width, kept_.q + (first(tile) + row) * width);
    }
    const int compressed = s.latent + s.rope, expanded = s.nope + s.value;
    product(Left::rows(t.normed, s.dim), packed_[kv_a_], count, compressed, s.dim / 2, t.wide, compressed);
    for (int row = 0; row < count; row++) {
      float* from = t.wide + static_cast<int64_t>(row) * compressed;
      rotate(from + s.latent, s.rope, rotation(first(tile) + row), false);
      round_row(from, compressed, latents(tile, row) + s.query);
    }
    normalise_latents(tile, s.query, s.latent, w.kv_norm, t.narrow);
    product(Left::rows(t.narrow, s.latent), packed_[kv_b_], count, s.heads * expanded, s.latent / 2, t.wide, s.heads * expanded);
    for (int row = 0; row < count; row++) {
      for (int h = 0; h < s.heads; h++) {
        const float* from = t.wide + (static_cast<int64_t>(row) * s.heads + h) * expanded;
        const int64_t at = (first(tile) + row) * s.heads + h;
        round_row(from, s.nope, kept_.k + at * key());
        std::memcpy(kept_.k + at * key() + s.nope, latents(tile, row) + s.query + s.latent, s.rope * sizeof(Bf16));
        round_row(from + s.nope, s.value, kept_.v + at * s.value);
      }
    }
  }

  Bf16* latents(int64_t tile, int row) const { return kept_.latents + (first(tile) + row) * down(); }

  // The states after attention, then y of a dense layer, or what experts need: normed states and shared experts' output.
  void feed(int64_t tile, Bf16* normed, float* shared, Bf16* y, Scratch& t) const {
    const int count = rows(tile), width = s.heads * s.value;
    const int64_t at = first(tile) * s.dim;
    product(Left::rows(kept_.out + first(tile) * width, width), packed_[o_], count, s.dim, width / 2, t.state, s.dim);
    for (int i = 0; i < count * s.dim; i += LANES) store(kept_.after + at + i, load(x_ + at + i) + load(t.state + i));
    Bf16* h = s.router.experts ? normed + at : static_cast<Bf16*>(t.normed);
    normalise_tile(tile, kept_.after, w.mlp_norm, h);
    swiglu(swiglu_, packed_, h, count, kept_.inner + first(tile) * 2 * s.width, t.act, t.swiglu);
    float* out = s.router.experts ? shared + at : static_cast<float*>(t.state);
    product(Left::rows(t.act, s.width), packed_[swiglu_.down], count, s.dim, s.width / 2, out, s.dim);
    if (s.router.experts) {
      route(tile, h, t);
    } else {
      for (int i = 0; i < count * s.dim; i += LANES) store(y + at + i, load(kept_.after + at + i) + load(out + i));
    }
  }

  // In fp32, as the routing bias steps are small.
  void route(int64_t tile, const Bf16* normed, Scratch& t) const {
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
        const __mmask16 there = lanes(experts - e);
        _mm512_mask_storeu_ps(scores + e, there, sigmoid(_mm512_maskz_loadu_ps(there, scores + e)));
      }
      t.choice.choose(s.router, scores, kept_.indices + token * chosen, kept_.weights + token * chosen);
    }
  }

  void forward_experts(const Bf16* normed, const float* shared, Bf16* y) const {
    const Rows rows_of(s, kept_.indices);
    Buffer<Bf16> outputs(rows_of.count() * s.dim);
    const int chosen = s.router.chosen;
#pragma omp parallel num_threads(s.threads)
    {
      Scratch t(s);
#pragma omp for schedule(dynamic)
      for (size_t i = 0; i < rows_of.tiles.size(); i++) {
        const Rows::Tile& tile = rows_of.tiles[i];
        const int count = static_cast<int>(tile.count);
        rows_of.gather(tile, chosen, normed, s.dim, t.normed);
        swiglu(experts_[tile.expert], packed_, t.normed, count, kept_.expert_inner + tile.row * 2 * s.expert_width, t.act, t.swiglu);
        product(Left::rows(t.act, s.expert_width), packed_[experts_[tile.expert].down], count, s.dim, s.expert_width / 2, t.state, s.dim);
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
  void backward_feed(const Bf16* dy, const float* dweights, const float* dscores, const Weights& grads, Bf16* dafter) {
    const int experts = s.router.experts, chosen = s.router.chosen;
    const Rows rows_of(s, kept_.indices);
    const int64_t pairs = (s.tokens + 1) / 2, row_pairs = rows_of.count() / 2;
    Buffer<Bf16> normed(s.tokens * s.dim);
    Buffer<float> dnormed(s.tokens * s.dim), shares(rows_of.count()), dlogits(s.tokens * experts);
    Buffer<Pair> normed_pairs(pairs * s.dim), dy_pairs(pairs * s.dim), act_pairs(pairs * s.width), dinner_pairs(pairs * 2 * s.width);
    Buffer<Pair> row_normed(row_pairs * s.dim), row_dy(row_pairs * s.dim), row_act(row_pairs * s.expert_width), row_dinner(row_pairs * 2 * s.expert_width);
    Buffer<Bf16> row_dnormed(rows_of.count() * s.dim);
    NormGradient norm(tiles(), s.dim);
#pragma omp parallel num_threads(s.threads)
    {
      Scratch t(s);
#pragma omp for schedule(dynamic)
      for (int64_t tile = 0; tile < tiles(); tile++) {
        const int count = rows(tile);
        const int64_t at = first(tile), pair = at / 2;
        normalise_tile(tile, kept_.after, w.mlp_norm, normed + at * s.dim);
        swiglu_backward(swiglu_, packed_, dy + at * s.dim, count, kept_.inner + at * 2 * s.width, nullptr, t.dinner, t.act, nullptr, t.swiglu);
        swiglu_input(swiglu_, packed_, t.dinner, count, dnormed + at * s.dim, false);
        stream_rows(normed + at * s.dim, s.dim, count, s.dim, normed_pairs + pair * s.dim);
        stream_rows(dy + at * s.dim, s.dim, count, s.dim, dy_pairs + pair * s.dim);
        stream_rows(t.act, s.width, count, s.width, act_pairs + pair * s.width);
        stream_rows(t.dinner, 2 * s.width, count, 2 * s.width, dinner_pairs + pair * 2 * s.width);
      }
#pragma omp for schedule(dynamic)
      for (size_t i = 0; i < rows_of.tiles.size(); i++) {
        const Rows::Tile& tile = rows_of.tiles[i];
        const Swiglu& expert = experts_[tile.expert];
        const int count = static_cast<int>(tile.count), width = s.expert_width;
        float factors[TILE];
        for (int row = 0; row < count; row++) {
          const int64_t pair = rows_of.pairs[tile.row + row];
          factors[row] = pair < 0 ? 0.0f : kept_.weights[pair];
        }
        rows_of.gather(tile, chosen, normed, s.dim, t.normed);
        rows_of.gather(tile, chosen, dy, s.dim, t.narrow);
        swiglu_backward(expert, packed_, t.narrow, count, kept_.expert_inner + tile.row * 2 * width, factors, t.dinner, t.act, shares + tile.row, t.swiglu);
        swiglu_input(expert, packed_, t.dinner, count, t.state, false);
        round_row(t.state, count * s.dim, row_dnormed + tile.row * s.dim);
        stream_rows(t.normed, s.dim, count, s.dim, row_normed + tile.row / 2 * s.dim);
        stream_rows(t.narrow, s.dim, count, s.dim, row_dy + tile.row / 2 * s.dim);
        stream_rows(t.act, width, count, width, row_act + tile.row / 2 * width);
        stream_rows(t.dinner, 2 * width, count, 2 * width, row_dinner + tile.row * width);
      }
#pragma omp for schedule(dynamic)
      for (int64_t tile = 0; tile < tiles(); tile++) {
        for (int64_t token = first(tile); token < first(tile) + rows(tile); token++) {
          float* grad = dnormed + token * s.dim;
          for (int64_t pair = token * chosen; pair < (token + 1) * chosen; pair++) {
            const Bf16* from = row_dnormed + rows_of.rows[pair] * s.dim;
            for (int i = 0; i < s.dim; i += LANES) store(grad + i, load(grad + i) + load(from + i));
          }
          if (experts) unroute(token, rows_of, shares, dweights, dscores, dlogits + token * experts, grad);
          normalise_backward(kept_.after + token * s.dim, w.mlp_norm, s.dim, s.eps, grad, norm.of(tile));
          for (int i = 0; i < s.dim; i += LANES) store(dafter + token * s.dim + i, load(dy + token * s.dim + i) + load(grad + i));
        }
      }
      if (experts) router_gradient(dlogits, normed, grads.router);
    }
    norm.total(grads.mlp_norm);
    WeightGradients products;
    products.add(dinner_pairs, 2 * s.width, s.width, normed_pairs, s.dim, s.dim, pairs, grads.gate);
    products.add(dinner_pairs + s.width, 2 * s.width, s.width, normed_pairs, s.dim, s.dim, pairs, grads.up);
    products.add(dy_pairs, s.dim, s.dim, act_pairs, s.width, s.width, pairs, grads.down);
    for (int e = 0; e < experts; e++) {
      const int64_t begin = rows_of.begins[e] / 2, some = rows_of.begins[e + 1] / 2 - begin, width = s.expert_width;
      products.add(row_dinner + begin * 2 * width, 2 * width, 2 * s.expert_width, row_normed + begin * s.dim, s.dim, s.dim, some,
                   grads.expert_gate_up + 2 * e * width * s.dim);
      products.add(row_dy + begin * s.dim, s.dim, s.dim, row_act + begin * width, width, s.expert_width, some, grads.expert_down + e * width * s.dim);
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
  void router_gradient(const float* dlogits, const Bf16* normed, float* out) const {
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

  void backward_attention(const Bf16* dafter, const Weights& grads, Bf16* dx) {
    const int width = s.heads * s.value, keys = s.heads * key(), expanded = s.heads * (s.nope + s.value);
    const int64_t pairs = (s.tokens + 1) / 2;
    Buffer<Bf16> dout(s.tokens * width), dq(s.tokens * keys), dk(s.tokens * keys), dv(s.tokens * width);
    Buffer<float> along(s.tokens * s.heads);
    Buffer<Pair> dafter_pairs(pairs * s.dim), out_pairs(pairs * width), normed_pairs(pairs * s.dim), dlatent_pairs(pairs * down());
    Buffer<Pair> query_pairs(pairs * s.query), dq_pairs(pairs * keys), latent_pairs(pairs * s.latent), dexpanded_pairs(pairs * expanded);
    NormGradient norm(tiles(), s.dim), q_norm(tiles(), s.query), kv_norm(tiles(), s.latent);
    const bool all = sequences_.ends[sequences_.count - 1] == s.tokens;  // else some tokens are of no document
    if (!all) {
      std::memset(dq, 0, s.tokens * keys * sizeof(Bf16));
      std::memset(dk, 0, s.tokens * keys * sizeof(Bf16));
      std::memset(dv, 0, s.tokens * width * sizeof(Bf16));
    }
#pragma omp parallel num_threads(s.threads)
    {
      Scratch t(s);
      Attention attention;
#pragma omp for schedule(dynamic)
      for (int64_t tile = 0; tile < tiles(); tile++) {
        const int count = rows(tile);
        const int64_t at = first(tile);
        product(Left::rows(dafter + at * s.dim, s.dim), packed_[o_], count, width, s.dim / 2, t.wide, width);
        round_row(t.wide, count * width, dout + at * width);
        for (int64_t i = 0; i < static_cast<int64_t>(count) * s.heads; i++) {
          const int64_t one = at * s.heads + i;
          Vector dot{};
          for (int v = 0; v < s.value; v += LANES) dot += load(dout + one * s.value + v) * load(kept_.out + one * s.value + v);
          along[one] = sum(dot);
        }
        stream_rows(dafter + at * s.dim, s.dim, count, s.dim, dafter_pairs + at / 2 * s.dim);
        stream_rows(kept_.out + at * width, width, count, width, out_pairs + at / 2 * width);
      }
#pragma omp for schedule(dynamic)
      for (int64_t unit = 0; unit < units(); unit++)
        attention.backward(head(unit), kept_.q, kept_.k, kept_.v, dout, kept_.lse, along, dq, dk, dv);
#pragma omp for schedule(dynamic)
      for (int64_t tile = 0; tile < tiles(); tile++) {
        const int count = rows(tile);
        const int64_t at = first(tile), pair = at / 2;
        for (int row = 0; row < count; row++) unrotate(at + row, dq, dk, t.latents + static_cast<int64_t>(row) * down(), t.wide);
        stream_rows(dq + at * keys, keys, count, keys, dq_pairs + pair * keys);
        // Keys and values, back to their latent.
        for (int row = 0; row < count; row++) {
          for (int h = 0; h < s.heads; h++) {
            const int64_t one = (at + row) * s.heads + h;
            Bf16* to = t.narrow + (static_cast<int64_t>(row) * s.heads + h) * (s.nope + s.value);
            std::memcpy(to, dk + one * key(), s.nope * sizeof(Bf16));
            std::memcpy(to + s.nope, dv + one * s.value, s.value * sizeof(Bf16));
          }
        }
        stream_rows(t.narrow, expanded, count, expanded, dexpanded_pairs + pair * expanded);
        product(Left::rows(t.narrow, expanded), packed_[kv_b_], count, s.latent, expanded / 2, t.wide, s.latent);
        unnormalise_latents(tile, s.query, s.latent, w.kv_norm, t.wide, kv_norm.of(tile), t.latents);
        normalise_latents(tile, s.query, s.latent, w.kv_norm, t.narrow);
        stream_rows(t.narrow, s.latent, count, s.latent, latent_pairs + pair * s.latent);
        product(Left::rows(t.latents + s.query, down()), packed_[kv_a_], count, s.dim, (s.latent + s.rope) / 2, t.state, s.dim);
        // Queries.
        if (s.query) {
          product(Left::rows(dq + at * keys, keys), packed_[q_b_], count, s.query, keys / 2, t.wide, s.query);
          unnormalise_latents(tile, 0, s.query, w.q_norm, t.wide, q_norm.of(tile), t.latents);
          normalise_latents(tile, 0, s.query, w.q_norm, t.narrow);
          stream_rows(t.narrow, s.query, count, s.query, query_pairs + pair * s.query);
          product(Left::rows(t.latents, down()), packed_[q_a_], count, s.dim, s.query / 2, t.state, s.dim, true);
        } else {
          product(Left::rows(dq + at * keys, keys), packed_[q_b_], count, s.dim, keys / 2, t.state, s.dim, true);
        }
        stream_rows(t.latents, down(), count, down(), dlatent_pairs + pair * down());
        normalise_tile(tile, x_, w.attention_norm, t.normed);
        stream_rows(t.normed, s.dim, count, s.dim, normed_pairs + pair * s.dim);
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
    WeightGradients products;
    if (s.query) {
      q_norm.total(grads.q_norm);
      products.add(dlatent_pairs, down(), s.query, normed_pairs, s.dim, s.dim, pairs, grads.q_a);
      products.add(dq_pairs, keys, keys, query_pairs, s.query, s.query, pairs, grads.q_b);
    } else {
      products.add(dq_pairs, keys, keys, normed_pairs, s.dim, s.dim, pairs, grads.q_b);
    }
    products.add(dlatent_pairs + s.query, down(), s.latent + s.rope, normed_pairs, s.dim, s.dim, pairs, grads.kv_a);
    products.add(dexpanded_pairs, expanded, expanded, latent_pairs, s.latent, s.latent, pairs, grads.kv_b);
    products.add(dafter_pairs, s.dim, s.dim, out_pairs, width, width, pairs, grads.o);
    products.make(s.threads);
  }

  // Queries' gradients before their rotation, in place, and that of the key which all heads share, into `latents`.
  void unrotate(int64_t token, Bf16* dq, const Bf16* dk, Bf16* latents, float* scratch) const {
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
  void unnormalise_latents(int64_t tile, int at, int width, const float* weight, float* grad, float* dweight, Bf16* to) const {
    for (int row = 0; row < rows(tile); row++, grad += width) {
      normalise_backward(latents(tile, row) + at, weight, width, s.eps, grad, dweight);
      round_row(grad, width, to + static_cast<int64_t>(row) * down() + at);
    }
  }

  const Shape& s;
  const Weights& w;
  const Sequences& sequences_;
  const Bf16* x_;
  const Kept& kept_;
  Packed packed_;
  int64_t q_a_ = 0, q_b_ = 0, kv_a_ = 0, kv_b_ = 0, o_ = 0;  // in `packed_`
  Swiglu swiglu_{};  // the dense feed-forward, or the shared experts
  std::vector<Swiglu> experts_;
};

}  // namespace

extern "C" void trivium_layer_forward(const Shape* shape, const Weights* weights, const Sequences* sequences, const Bf16* x,
                                      const Kept* kept, Bf16* y) {
  Layer(*shape, *weights, *sequences, x, *kept).forward(y);
}

extern "C" void trivium_layer_backward(const Shape* shape, const Weights* weights, const Sequences* sequences, const Bf16* x,
                                       const Kept* kept, const Bf16* dy, const float* dweights, const float* dscores, const Weights* grads,
                                       Bf16* dx) {
  Layer(*shape, *weights, *sequences, x, *kept).backward(dy, dweights, dscores, *grads, dx);
}

extern "C" double trivium_cross_entropy(const Bf16* hidden, const float* weight, const int64_t* labels, int64_t tokens, int32_t dim,
                                        int32_t vocabulary, int32_t threads, Bf16* dhidden, float* dweight) {
  return cross_entropy(hidden, weight, labels, tokens, dim, vocabulary, threads, dhidden, dweight);
}
