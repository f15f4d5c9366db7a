// The layers of a decoding step in fp32 on CPU: a few tokens a row over the latent cache.
//
// A step of a small model is hundreds of small operations, each of which costs more to begin than to do. Here every
// thread takes its rows through all the layers at once, so that a step is one call and waits for nobody. Sums run in one
// order, whatever rows stand beside: a row's result does not depend on its batch, to the last bit.
//
// Weights are packed by core_model/generation/compiled.py: a matrix [O, K] as panels [ceil(O/32), K, 32], the last one padded
// with zeros. Names: D model, H heads, N no-rope dim, R rope dim, V value dim, C kv latent, Q query latent, E experts.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include <omp.h>

#include "router.h"
#include "vectors.h"

namespace {

constexpr int PANEL = 32;          // columns of a panel
constexpr int PART = 2 * LANES;    // of these taken at once
constexpr int ROWS = LANES == 16 ? 8 : 6;  // rows of a tile: twice as many sums, two weights and a factor are in registers
constexpr int TOKENS = 32;         // taken through the layers together: their activations stay near the core
constexpr int BLOCK = 64;          // positions whose scores are held at once
constexpr int64_t STRETCH = 1024;  // positions that are summed up by themselves, and can be by another thread
constexpr int QUERIES = 4;         // that share what is read of the cache
constexpr int AHEAD = 16;          // positions between what is read and what is fetched

template <int R>
void tile(const float* x, int64_t x_stride, int depth, const float* panel, float* out, int64_t out_stride, int columns) {
  for (int part = 0; part < columns; part += PART) {
    Vector sums[R][2] = {};
    for (int k = 0; k < depth; k++) {
      const Vector left = load(panel + k * PANEL + part), right = load(panel + k * PANEL + part + LANES);
      for (int r = 0; r < R; r++) {
        const float factor = x[r * x_stride + k];
        sums[r][0] += left * factor;
        sums[r][1] += right * factor;
      }
    }
    for (int r = 0; r < R; r++) {
      float* to = out + r * out_stride + part;
      if (part + PART <= columns) {
        store(to, sums[r][0]);
        store(to + LANES, sums[r][1]);
      } else {
        std::memcpy(to, sums[r], (columns - part) * sizeof(float));
      }
    }
  }
}

// out [rows, width] = x [rows, depth] times the transposed matrix [width, depth], packed.
void product(const float* x, int64_t x_stride, int rows, int depth, const float* packed, int width, float* out,
             int64_t out_stride) {
  using Tile = void (*)(const float*, int64_t, int, const float*, float*, int64_t, int);
  static constexpr Tile tiles[] = {nullptr, tile<1>, tile<2>, tile<3>, tile<4>, tile<5>, tile<6>, tile<7>, tile<8>};
  for (int column = 0; column < width; column += PANEL, packed += static_cast<int64_t>(depth) * PANEL) {
    const int columns = std::min(PANEL, width - column);
    for (int row = 0; row < rows; row += ROWS) {
      tiles[std::min(ROWS, rows - row)](x + row * x_stride, x_stride, depth, packed, out + row * out_stride + column,
                                        out_stride, columns);
    }
  }
}

void normalise(const float* x, int width, const float* weight, float eps, float* out) {
  float squares = 0;
  for (int i = 0; i < width; i++) squares += x[i] * x[i];
  const float inverse = 1.0f / std::sqrt(squares / width + eps);
  for (int i = 0; i < width; i++) out[i] = x[i] * inverse * weight[i];
}

// Pairs (0, 1), (2, 3), ... times the complex rotations.
void rotate(float* x, int width, const float* rotations) {
  for (int i = 0; i < width; i += 2) {
    const float real = x[i], imaginary = x[i + 1];
    x[i] = real * rotations[i] - imaginary * rotations[i + 1];
    x[i + 1] = real * rotations[i + 1] + imaginary * rotations[i];
  }
}

// silu(gate) * up of [rows, 2 width] into its first half.
void gated(float* inner, int rows, int width) {
  for (int row = 0; row < rows; row++) {
    float* gate = inner + static_cast<int64_t>(row) * 2 * width;
    const float* up = gate + width;
    int i = 0;
    for (; i + LANES <= width; i += LANES) store(gate + i, load(gate + i) * sigmoid(load(gate + i)) * load(up + i));
    if (i < width) {
      float padded[LANES] = {};
      std::memcpy(padded, gate + i, (width - i) * sizeof(float));
      const Vector rest = load(padded) * sigmoid(load(padded));
      store(padded, rest);
      for (int j = i; j < width; j++) gate[j] = padded[j - i] * up[j];
    }
  }
}

// Softmax's sums over a stretch of positions for each query: its largest score, the sum of exponentials, and the sum of
// latents weighted by them.
struct Partial {
  float most, total;
  float* latent;
};

}  // namespace

extern "C" {

struct Shape {
  int32_t dim, heads, nope, rope, value, latent, query;  // query: 0 where queries come from the states themselves
  float eps;
};

struct Layer {
  const float *attention_norm, *down, *query_norm, *latent_norm, *queries, *up_k, *up_v, *out;  // up_k, up_v: or null
  const float *mlp_norm, *gate_up, *mlp_down;  // the dense feed-forward, or the shared experts
  const float *gate, *expert_gate_up, *expert_down;
  int32_t width, expert_width;  // width: of the dense feed-forward
  Router router;                // experts: 0 in a dense layer
};

}  // extern "C"

namespace {

// One call: what all threads share.
struct Step {
  const Shape* shape;
  const Layer* layers;
  int32_t count, tokens;  // layers; tokens of a row
  const int64_t* positions;
  const float* frequencies;  // of RoPE's pairs
  float amplitude;
  float* states;
  float* cache;
  int64_t layer_stride, row_stride;
  const float* last_norm;
  int64_t* indices;
  float *weights, *scores;  // of the MoE layers, one after the other: [X, K], [X, K], [X, E]
  int64_t all;              // X: tokens of all rows
};

class Worker {
 public:
  // threads: that share the positions of a row; 1 where each has rows of its own.
  Worker(const Step& step, int threads) : step_(step), shape_(*step.shape), threads_(threads) {}

  // Rows first to last through all layers.
  void run(int first, int last) {
    const int batch = std::max(1, TOKENS / step_.tokens);
    for (int row = first; row < last; row += batch) layers(row, std::min(last, row + batch));
  }

 private:
  void layers(int first, int last) {
    first_ = first;
    rows_ = last - first;
    count_ = rows_ * step_.tokens;
    float* x = step_.states + static_cast<int64_t>(first) * step_.tokens * shape_.dim;
    normed_.resize(static_cast<size_t>(count_) * shape_.dim);
    added_.resize(normed_.size());
    rotations_.resize(static_cast<size_t>(count_) * shape_.rope);
    for (int i = 0; i < count_; i++) {
      for (int pair = 0; pair < shape_.rope / 2; pair++) {
        const float angle = static_cast<float>(position(i)) * step_.frequencies[pair];
        float* at = &rotations_[static_cast<int64_t>(i) * shape_.rope + 2 * pair];
        at[0] = step_.amplitude * std::cos(angle);
        at[1] = step_.amplitude * std::sin(angle);
      }
    }
    int64_t routed = 0;  // numbers of the MoE layers before
    int64_t scored = 0;
    for (int index = 0; index < step_.count; index++) {
      const Layer& layer = step_.layers[index];
      attend(layer, index, x);
      add(x);
      for (int i = 0; i < count_; i++) norm(x, i, layer.mlp_norm);
      dense(layer);
      if (layer.router.experts) {
        const int64_t token = static_cast<int64_t>(first) * step_.tokens;
        route(layer, step_.indices + routed + token * layer.router.chosen, step_.weights + routed + token * layer.router.chosen,
              step_.scores + scored + token * layer.router.experts);
        routed += step_.all * layer.router.chosen;
        scored += step_.all * layer.router.experts;
      }
      add(x);
    }
    for (int i = 0; i < count_; i++) norm(x, i, step_.last_norm);
    std::copy(normed_.begin(), normed_.end(), x);
  }

  void norm(const float* x, int token, const float* weight) {
    const int64_t at = static_cast<int64_t>(token) * shape_.dim;
    normalise(x + at, shape_.dim, weight, shape_.eps, &normed_[at]);
  }

  void add(float* x) const {
    for (size_t i = 0; i < added_.size(); i++) x[i] += added_[i];
  }

  // `added_` = the attention of x; its latents are stored in the cache.
  void attend(const Layer& layer, int index, const float* x) {
    const Shape& s = shape_;
    const int width = s.latent + s.rope, down = s.query + width;
    const int inner = layer.up_k ? s.nope : s.latent, query = inner + s.rope;
    const int outer = layer.up_v ? s.value : s.latent;
    for (int i = 0; i < count_; i++) norm(x, i, layer.attention_norm);
    down_.resize(static_cast<size_t>(count_) * down);
    product(normed_.data(), s.dim, count_, s.dim, layer.down, down, down_.data(), down);
    for (int i = 0; i < count_; i++) {
      float* at = &down_[static_cast<int64_t>(i) * down];
      float* kept = cache_of(index, i / step_.tokens) + position(i) * width;
      normalise(at + s.query, s.latent, layer.latent_norm, s.eps, kept);
      std::memcpy(kept + s.latent, at + s.query + s.latent, s.rope * sizeof(float));
      rotate(kept + s.latent, s.rope, rotation(i));
      if (s.query) normalise(at, s.query, layer.query_norm, s.eps, at);
    }
    made_.resize(static_cast<size_t>(count_) * s.heads * query);
    const float* source = s.query ? down_.data() : normed_.data();
    product(source, s.query ? down : s.dim, count_, s.query ? s.query : s.dim, layer.queries, s.heads * query,
            made_.data(), static_cast<int64_t>(s.heads) * query);
    queries_.resize(static_cast<size_t>(count_) * s.heads * width);
    for (int i = 0; i < count_ * s.heads; i++) {
      float* from = &made_[static_cast<int64_t>(i) * query];
      float* to = &queries_[static_cast<int64_t>(i) * width];
      rotate(from + inner, s.rope, rotation(i / s.heads));
      if (!layer.up_k) std::memcpy(to, from, s.latent * sizeof(float));
      std::memcpy(to + s.latent, from + inner, s.rope * sizeof(float));
    }
    for (int head = 0; layer.up_k && head < s.heads; head++) {
      product(&made_[static_cast<int64_t>(head) * query], static_cast<int64_t>(s.heads) * query, count_, s.nope,
              layer.up_k + head * packed_size(s.latent, s.nope), s.latent,
              &queries_[static_cast<int64_t>(head) * width], static_cast<int64_t>(s.heads) * width);
    }
    latents_.resize(static_cast<size_t>(count_) * s.heads * s.latent);
    for (int row = 0; row < rows_; row++) read_cache(index, row);
    const float* values = latents_.data();
    if (layer.up_v) {
      values_.resize(static_cast<size_t>(count_) * s.heads * s.value);
      for (int head = 0; head < s.heads; head++) {
        product(&latents_[static_cast<int64_t>(head) * s.latent], static_cast<int64_t>(s.heads) * s.latent, count_,
                s.latent, layer.up_v + head * packed_size(s.value, s.latent), s.value,
                &values_[static_cast<int64_t>(head) * s.value], static_cast<int64_t>(s.heads) * s.value);
      }
      values = values_.data();
    }
    product(values, static_cast<int64_t>(s.heads) * outer, count_, s.heads * outer, layer.out, s.dim, added_.data(), s.dim);
  }

  // `latents_` of a row's queries: the cache under softmax's weights.
  void read_cache(int index, int row) {
    const int first = row * step_.tokens, queries = step_.tokens * shape_.heads;
    int64_t end = 0;
    for (int t = 0; t < step_.tokens; t++) end = std::max(end, position(first + t) + 1);
    const int stretches = static_cast<int>((end + STRETCH - 1) / STRETCH);
    partial_.resize(static_cast<size_t>(stretches) * queries * (shape_.latent + 2));
    auto partial = [&](int stretch, int query) {
      float* at = &partial_[(static_cast<size_t>(stretch) * queries + query) * (shape_.latent + 2)];
      return at;
    };
    const float* cached = cache_of(index, row);
#pragma omp parallel for num_threads(threads_) schedule(static) if (threads_ > 1 && stretches > 1)
    for (int stretch = 0; stretch < stretches; stretch++) {
      const int64_t begin = stretch * STRETCH, stop = std::min(end, begin + STRETCH);
      for (int query = 0; query < queries; query += QUERIES) {
        const int some = std::min(QUERIES, queries - query);
        Partial parts[QUERIES];
        for (int q = 0; q < some; q++) {
          float* at = partial(stretch, query + q);
          std::fill(at, at + shape_.latent + 2, 0.0f);
          parts[q] = {-INFINITY, 0.0f, at + 2};
        }
        switch (some) {
          case 1: sum_up<1>(cached, begin, stop, first, query, parts); break;
          case 2: sum_up<2>(cached, begin, stop, first, query, parts); break;
          case 3: sum_up<3>(cached, begin, stop, first, query, parts); break;
          default: sum_up<QUERIES>(cached, begin, stop, first, query, parts);
        }
        for (int q = 0; q < some; q++) {
          float* at = partial(stretch, query + q);
          at[0] = parts[q].most;
          at[1] = parts[q].total;
        }
      }
    }
    for (int query = 0; query < queries; query++) {
      float most = -INFINITY, total = 0;
      for (int stretch = 0; stretch < stretches; stretch++) most = std::max(most, partial(stretch, query)[0]);
      float* to = &latents_[(static_cast<int64_t>(first) * shape_.heads + query) * shape_.latent];
      std::fill(to, to + shape_.latent, 0.0f);
      for (int stretch = 0; stretch < stretches; stretch++) {
        const float* at = partial(stretch, query);
        if (at[1] == 0) continue;  // sees nothing there
        const float share = std::exp(at[0] - most);
        total += at[1] * share;
        for (int c = 0; c < shape_.latent; c++) to[c] += at[2 + c] * share;
      }
      for (int c = 0; c < shape_.latent; c++) to[c] /= total;
    }
  }

  // Q queries of a row over positions begin to stop.
  template <int Q>
  void sum_up(const float* cached, int64_t begin, int64_t stop, int first, int query, Partial* parts) const {
    const int width = shape_.latent + shape_.rope;
    const float* q = &queries_[(static_cast<int64_t>(first) * shape_.heads + query) * width];
    float scores[Q][BLOCK];
    int64_t seen[Q];
    for (int i = 0; i < Q; i++) seen[i] = position(first + (query + i) / shape_.heads) + 1;
    for (int64_t at = begin; at < stop; at += BLOCK) {
      const int count = static_cast<int>(std::min<int64_t>(BLOCK, stop - at));
      const float* block = cached + at * width;
      for (int j = 0; j < count; j++) {
        const float* key = block + static_cast<int64_t>(j) * width;
        // A row's past is read from beginning to end, but what fetches ahead by itself stops at the end of each page.
        for (int c = 0; c < width; c += 16) __builtin_prefetch(key + AHEAD * width + c);
        Vector sums[Q] = {};
        int c = 0;
        for (; c + LANES <= width; c += LANES) {
          const Vector part = load(key + c);
          for (int i = 0; i < Q; i++) sums[i] += part * load(q + i * width + c);
        }
        for (int i = 0; i < Q; i++) {
          float score = sum(sums[i]);
          for (int rest = c; rest < width; rest++) score += key[rest] * q[i * width + rest];
          scores[i][j] = score;
        }
      }
      for (int i = 0; i < Q; i++) weigh(scores[i], static_cast<int>(std::clamp<int64_t>(seen[i] - at, 0, count)), parts[i]);
      int c = 0;
      for (; c + PART <= shape_.latent; c += PART) {
        Vector totals[Q][2];
        for (int i = 0; i < Q; i++) {
          totals[i][0] = load(parts[i].latent + c);
          totals[i][1] = load(parts[i].latent + c + LANES);
        }
        for (int j = 0; j < count; j++) {
          const float* from = block + static_cast<int64_t>(j) * width + c;
          const Vector left = load(from), right = load(from + LANES);
          for (int i = 0; i < Q; i++) {
            totals[i][0] += left * scores[i][j];
            totals[i][1] += right * scores[i][j];
          }
        }
        for (int i = 0; i < Q; i++) {
          store(parts[i].latent + c, totals[i][0]);
          store(parts[i].latent + c + LANES, totals[i][1]);
        }
      }
      for (; c < shape_.latent; c++)
        for (int i = 0; i < Q; i++)
          for (int j = 0; j < count; j++) parts[i].latent[c] += block[static_cast<int64_t>(j) * width + c] * scores[i][j];
    }
  }

  // Scores become exponentials relative to the largest so far, of what is not visible 0; what was summed before is
  // brought to it.
  void weigh(float* scores, int visible, Partial& part) const {
    float most = part.most;
    for (int j = 0; j < visible; j++) most = std::max(most, scores[j]);
    const float share = visible ? std::exp(part.most - most) : 1.0f;
    for (int j = 0; j < visible; j += LANES) store(scores + j, exponential(load(scores + j) - most));
    std::fill(scores + visible, scores + BLOCK, 0.0f);
    Vector totals = {};
    for (int j = 0; j < BLOCK; j += LANES) totals += load(scores + j);
    if (share != 1.0f)
      for (int c = 0; c < shape_.latent; c++) part.latent[c] *= share;
    part.total = part.total * share + sum(totals);
    part.most = most;
  }

  // `added_` = the dense feed-forward, or the shared experts, of `normed_`.
  void dense(const Layer& layer) {
    if (!layer.width) {
      std::fill(added_.begin(), added_.end(), 0.0f);
      return;
    }
    inner_.resize(static_cast<size_t>(count_) * 2 * layer.width);
    product(normed_.data(), shape_.dim, count_, shape_.dim, layer.gate_up, 2 * layer.width, inner_.data(), 2 * layer.width);
    gated(inner_.data(), count_, layer.width);
    product(inner_.data(), 2 * layer.width, count_, layer.width, layer.mlp_down, shape_.dim, added_.data(), shape_.dim);
  }

  // Choose experts for `normed_`, and add to `added_` what they give.
  void route(const Layer& layer, int64_t* indices, float* weights, float* scores) {
    product(normed_.data(), shape_.dim, count_, shape_.dim, layer.gate, layer.router.experts, scores, layer.router.experts);
    for (int64_t i = 0; i < static_cast<int64_t>(count_) * layer.router.experts; i += LANES) {
      float padded[LANES] = {};
      const size_t some = std::min<int64_t>(LANES, static_cast<int64_t>(count_) * layer.router.experts - i) * sizeof(float);
      std::memcpy(padded, scores + i, some);
      store(padded, sigmoid(load(padded)));
      std::memcpy(scores + i, padded, some);
    }
    for (int i = 0; i < count_; i++) {
      choice_.choose(layer.router, scores + static_cast<int64_t>(i) * layer.router.experts, indices + static_cast<int64_t>(i) * layer.router.chosen,
             weights + static_cast<int64_t>(i) * layer.router.chosen);
    }
    const int64_t up_size = packed_size(2 * layer.expert_width, shape_.dim);
    const int64_t down_size = packed_size(shape_.dim, layer.expert_width);
    gathered_.resize(static_cast<size_t>(count_) * shape_.dim);
    inner_.resize(static_cast<size_t>(count_) * 2 * layer.expert_width);
    for (int expert = 0; expert < layer.router.experts; expert++) {
      places_.clear();
      for (int i = 0; i < count_ * layer.router.chosen; i++)
        if (indices[i] == expert) places_.push_back(i);
      const int some = static_cast<int>(places_.size());
      if (!some) continue;
      for (int i = 0; i < some; i++) {
        std::memcpy(&gathered_[static_cast<int64_t>(i) * shape_.dim],
                    &normed_[static_cast<int64_t>(places_[i] / layer.router.chosen) * shape_.dim], shape_.dim * sizeof(float));
      }
      product(gathered_.data(), shape_.dim, some, shape_.dim, layer.expert_gate_up + expert * up_size,
              2 * layer.expert_width, inner_.data(), 2 * layer.expert_width);
      gated(inner_.data(), some, layer.expert_width);
      product(inner_.data(), 2 * layer.expert_width, some, layer.expert_width, layer.expert_down + expert * down_size,
              shape_.dim, gathered_.data(), shape_.dim);
      for (int i = 0; i < some; i++) {
        float* to = &added_[static_cast<int64_t>(places_[i] / layer.router.chosen) * shape_.dim];
        const float* from = &gathered_[static_cast<int64_t>(i) * shape_.dim];
        for (int d = 0; d < shape_.dim; d++) to[d] += from[d] * weights[places_[i]];
      }
    }
  }

  static int64_t packed_size(int width, int depth) {
    return static_cast<int64_t>((width + PANEL - 1) / PANEL) * PANEL * depth;
  }
  float* cache_of(int index, int row) const {
    return step_.cache + index * step_.layer_stride + (first_ + row) * step_.row_stride;
  }
  int64_t position(int token) const { return step_.positions[static_cast<int64_t>(first_) * step_.tokens + token]; }
  const float* rotation(int token) const { return &rotations_[static_cast<int64_t>(token) * shape_.rope]; }

  const Step& step_;
  const Shape& shape_;
  const int threads_;
  int first_ = 0, rows_ = 0, count_ = 0;  // of the rows at hand; tokens of theirs
  std::vector<float> normed_, added_, rotations_, down_, made_, queries_, latents_, values_, partial_, inner_, gathered_;
  Choice choice_;
  std::vector<int> places_;
};

}  // namespace

extern "C" void trivium_decode(const Shape* shape, const Layer* layers, int32_t count, int32_t rows, int32_t tokens,
                               const int64_t* positions, const float* frequencies, float amplitude, float* states,
                               float* cache, int64_t layer_stride, int64_t row_stride, const float* last_norm, int64_t* indices,
                               float* weights, float* scores, int32_t threads) {
  const int64_t all = static_cast<int64_t>(rows) * tokens;
  const Step step{shape, layers, count, tokens, positions, frequencies, amplitude, states, cache,
                  layer_stride, row_stride, last_norm, indices, weights, scores, all};
  if (rows < threads) {
    Worker(step, threads).run(0, rows);
    return;
  }
#pragma omp parallel num_threads(threads)
  {
    const int number = omp_get_thread_num(), all = omp_get_num_threads();
    Worker(step, 1).run(static_cast<int>(static_cast<int64_t>(rows) * number / all),
                        static_cast<int>(static_cast<int64_t>(rows) * (number + 1) / all));
  }
}

// out [rows, width] = x [rows, depth] times the transposed matrix [width, depth], packed.
extern "C" void trivium_product(const float* x, int32_t rows, int32_t depth, const float* packed, int32_t width, float* out,
                                int32_t threads) {
  const int panels = (width + PANEL - 1) / PANEL;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int panel = 0; panel < panels; panel++) {
    product(x, depth, rows, depth, packed + static_cast<int64_t>(panel) * PANEL * depth,
            std::min(PANEL, width - panel * PANEL), out + panel * PANEL, width);
  }
}
