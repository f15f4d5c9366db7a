// Memory without initial values. Large blocks are kept for the next one who asks: the C library gives those above 32 MB
// back to the system, and a step would spend its time on fresh pages.
#pragma once

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <new>
#include <vector>

namespace {

class Blocks {
 public:
  struct Block {
    void* at;
    int64_t size;
  };

  // At least `size` bytes.
  Block take(int64_t size) {
    if (size >= LARGE) {
      const std::lock_guard<std::mutex> lock(mutex_);
      auto best = free_.end();
      for (auto one = free_.begin(); one != free_.end(); ++one)
        if (one->size >= size && one->size <= 2 * size && (best == free_.end() || one->size < best->size)) best = one;
      if (best != free_.end()) {
        const Block found = *best;
        free_.erase(best);
        kept_ -= found.size;
        return found;
      }
    }
    return {::operator new(size, ALIGNMENT), size};
  }

  void give(const Block& block) {
    if (block.size < LARGE) return ::operator delete(block.at, ALIGNMENT);
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(block);
    kept_ += block.size;
    while (kept_ > MOST) {  // the one that has waited longest
      ::operator delete(free_.front().at, ALIGNMENT);
      kept_ -= free_.front().size;
      free_.erase(free_.begin());
    }
  }

 private:
  static constexpr std::align_val_t ALIGNMENT{64};
  static constexpr int64_t LARGE = int64_t{16} << 20, MOST = int64_t{1} << 30;
  std::mutex mutex_;
  std::vector<Block> free_;
  int64_t kept_ = 0;
};

inline Blocks& blocks() {
  static Blocks* const all = new Blocks;  // never destroyed: threads may outlive statics
  return *all;
}

template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t size) : block_(blocks().take(std::max<int64_t>(size, 1) * sizeof(T))) {}
  ~Buffer() { blocks().give(block_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  operator T*() const { return static_cast<T*>(block_.at); }

 private:
  Blocks::Block block_;
};

}  // namespace
