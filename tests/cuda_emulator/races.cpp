// Races: two threads at one address, one of them writing, that nothing orders. Kernels compiled with -fsanitize=thread
// call the hooks at the end of this file at each of their accesses to memory; the compiler's own library is not linked.
// The hooks do nothing in other modes than VPGFAST_EMULATED=races.
//
// Launches, blocks' barriers and warps' fences order; blocks of one launch nothing does. Every address remembers enough
// of who has used it that each unordered pair is found at its second access, whatever order the threads run in.

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <memory>
#include <unordered_map>

#include "machine.h"

namespace cuda_emulator {
namespace {

// A block that has met a fence and then an atomic access is known to the block that comes to the same place by an
// atomic access and then meets a fence: the last block that adds up what all have written, say.
struct Range {
  uint32_t first, last;  // segments
};
struct {
  std::unordered_map<uintptr_t, std::vector<Range>> released;  // in this launch, by the place of the atomic access
  uint32_t launch = 0, block = 0;
  std::vector<Range> acquired;                             // by the block that runs
  uint32_t fenced[kMostThreads] = {};                      // the block in which the thread has met a fence
  std::pair<uint32_t, uintptr_t> used[kMostThreads] = {};  // its block and place of the last atomic access

  void begin() {
    if (launch != now.launchs_first) {
      launch = now.launchs_first;
      released.clear();
    }
    if (block != now.blocks_first) {
      block = now.blocks_first;
      acquired.clear();
    }
  }
  bool known(uint32_t segment) const {
    return block == now.blocks_first && std::any_of(acquired.begin(), acquired.end(), [&](const Range& range) {
             return range.first <= segment && segment <= range.last;
           });
  }
  void atomic(uintptr_t at) {
    begin();
    used[now.thread] = {block, at};
    if (fenced[now.thread] == block) {
      std::vector<Range>& ranges = released[at];
      ranges.push_back({block, now.segment});
      ranges.insert(ranges.end(), acquired.begin(), acquired.end());
    }
  }
  void fence() {
    begin();
    fenced[now.thread] = block;
    const auto [in_block, at] = used[now.thread];
    if (in_block == block) {
      acquired.insert(acquired.end(), released[at].begin(), released[at].end());
    }
  }
} blocks;

// By whom and when an address was used. Segment 0 is never.
struct Access {
  uint32_t segment = 0, tick = 0, code = 0;
  int16_t thread = 0;
  bool is_read = false;

  // Whether nothing orders this before `later`. Segments before `since` do not count.
  bool unordered(const Access& later, uint32_t since) const {
    if (segment < since) {
      return false;
    }
    if (segment < now.blocks_first) {
      return !blocks.known(segment);  // by another block of this launch
    }
    if (segment < later.segment || thread == later.thread) {
      return false;
    }
    const Clocks& known = clocks(later.thread);
    return thread / kWarp != later.thread / kWarp || tick > (is_read ? known.meetings : known.fences)[thread % kWarp];
  }
};

// Accesses that may be unordered among themselves: reads, or atomic ones.
class Accesses {
 public:
  Accesses() = default;
  Accesses(const Accesses& other) : earlier_(other.earlier_), first_(other.first_), second_(other.second_) {
    if (other.lanes_) {
      lanes_ = std::make_unique<Lanes>(*other.lanes_);
    }
  }
  Accesses& operator=(Accesses&& other) = default;
  const Access* unordered(const Access& later, uint32_t since) const {
    for (const Access* one : {&earlier_, &first_, &second_}) {
      if (one->unordered(later, since)) {
        return one;
      }
    }
    for (int lane = 0; lanes_ && lane < kWarp; ++lane) {
      if ((*lanes_)[lane].unordered(later, since)) {
        return &(*lanes_)[lane];
      }
    }
    return nullptr;
  }

  void add(const Access& a, uint32_t since) {
    if (first_.segment < a.segment) {
      if (first_.segment >= since && first_.segment < now.blocks_first) {
        earlier_ = first_;
      }
      first_ = a;
      lanes_.reset();
    } else if (first_.thread / kWarp != a.thread / kWarp) {
      second_ = a;
    } else if (second_.segment == a.segment) {
      // Two warps have been here: whoever comes, one of them is not the comer's.
    } else if (first_.thread == a.thread) {
      first_ = a;
    } else {
      if (!lanes_) {
        lanes_ = std::make_unique<Lanes>();
      }
      (*lanes_)[a.thread % kWarp] = a;
    }
  }

 private:
  using Lanes = std::array<Access, kWarp>;
  Access earlier_;                // by a block that is through
  Access first_, second_;         // of two warps, in the last segment
  std::unique_ptr<Lanes> lanes_;  // of the first one's warp, the others of its lanes
};

struct Cell {
  Access write;
  Accesses reads;
  std::unique_ptr<Accesses> atomics;
};

// A piece of memory, in cells as large as the smallest access to it so far.
constexpr int kPageBits = 10;
struct Page {
  int shift = -1;
  std::unique_ptr<Cell[]> cells;

  void split(int finer) {
    auto split = std::make_unique<Cell[]>(size_t{1} << (kPageBits - finer));
    if (cells) {
      // What was one access is now several: as the last of them was.
      for (size_t i = 0; i < size_t{1} << (kPageBits - finer); ++i) {
        Cell& old = cells[i >> (shift - finer)];
        split[i].write = old.write;
        split[i].reads = Accesses(old.reads);
        if (old.atomics) {
          split[i].atomics = std::make_unique<Accesses>(*old.atomics);
        }
      }
    }
    cells = std::move(split);
    shift = finer;
  }
};

constexpr size_t kMostPages = 20'000, kRemembered = 1024;
std::unordered_map<uintptr_t, Page> pages;
struct {
  uintptr_t number = ~uintptr_t{0};
  Page* page = nullptr;
} remembered[kRemembered];

Page& page_of(uintptr_t at) {
  const uintptr_t number = at >> kPageBits;
  auto& slot = remembered[number % kRemembered];
  if (slot.number != number) {
    slot = {number, &pages[number]};
  }
  return *slot.page;
}

uintptr_t library_start() {
  static const uintptr_t start = [] {
    Dl_info info;
    return dladdr(&indices, &info) ? reinterpret_cast<uintptr_t>(info.dli_fbase) : 0;
  }();
  return start;
}

// File and line of an instruction, outwards from where it was inlined.
std::string written_at(uint32_t code) {
  Dl_info info;
  if (dladdr(&indices, &info) == 0) {
    return "?";
  }
  char place[32];
  std::snprintf(place, sizeof(place), " 0x%x", code - 1);
  std::string lines;
  if (FILE* pipe = popen(("addr2line -i -s -e '" + std::string(info.dli_fname) + "'" + place).c_str(), "r")) {
    char line[256];
    while (std::fgets(line, sizeof(line), pipe)) {
      lines += (lines.empty() ? "" : " < ") + std::string(line, std::strcspn(line, "\n"));
    }
    pclose(pipe);
  }
  return lines;
}

void stop_at_race(const Access& before, const Access& after, const char* kind, const char* earlier, uintptr_t at) {
  const bool other_block = before.segment < now.blocks_first;
  stop(std::string("race in ") + (is_shared(at) ? "shared" : "global") + " memory: " + kind + " at " +
       written_at(after.code) + "; " + earlier + " of thread " + std::to_string(before.thread) +
       (other_block ? " of another block" : "") + " at " + written_at(before.code));
}

void use_cell(Cell& cell, const Access& a, bool writes, bool atomic, uint32_t since, uintptr_t at) {
  const char* kind = atomic ? "atomic access" : writes ? "write" : "read";
  if (cell.write.unordered(a, since)) {
    stop_at_race(cell.write, a, kind, "write", at);
  }
  if (writes) {
    if (const Access* read = cell.reads.unordered(a, since)) {
      stop_at_race(*read, a, kind, "read", at);
    }
  }
  if (!atomic && cell.atomics) {
    if (const Access* other = cell.atomics->unordered(a, since)) {
      stop_at_race(*other, a, kind, "atomic access", at);
    }
  }
  if (atomic) {
    if (!cell.atomics) {
      cell.atomics = std::make_unique<Accesses>();
    }
    cell.atomics->add(a, since);
  } else if (writes) {
    cell.write = a;
  } else {
    cell.reads.add(a, since);
  }
}

void use(const void* data, size_t size, bool writes, bool atomic, void* code) {
  const auto at = reinterpret_cast<uintptr_t>(data);
  // Neither what is the thread's own, nor what only the host writes.
  if (!settings.accesses || !in_a_kernel() || size == 0 || on_a_fibers_stack(at) ||
      at - reinterpret_cast<uintptr_t>(&indices) < sizeof(indices) ||
      at - reinterpret_cast<uintptr_t>(now.arguments) < now.argument_bytes) {
    return;
  }
  if (counts_traffic()) {
    note_traffic(at, size, writes, atomic, reinterpret_cast<uintptr_t>(code));
    return;
  }
  const bool shared = is_shared(at);
  const uint32_t since = shared ? now.blocks_first : now.launchs_first;
  const Clocks& known = clocks(now.thread);
  const Access access{now.segment, (writes ? known.fences : known.meetings)[now.thread % kWarp],
                      static_cast<uint32_t>(reinterpret_cast<uintptr_t>(code) - library_start()),
                      static_cast<int16_t>(now.thread), !writes};
  // The largest power of two, up to 16, that both the place and the size are multiples of.
  const int aligned = __builtin_ctzll(at | size | 16);
  for (uintptr_t byte = at; byte < at + size;) {
    Page& page = page_of(byte);
    if (page.shift < 0 || page.shift > aligned) {
      page.split(aligned);
    }
    use_cell(page.cells[(byte & ((1u << kPageBits) - 1)) >> page.shift], access, writes, atomic, since, at);
    byte += size_t{1} << page.shift;
  }
}

}  // namespace

void races_end_launch() {
  if (pages.size() > kMostPages) {
    pages.clear();
    std::fill(std::begin(remembered), std::end(remembered), std::decay_t<decltype(remembered[0])>{});
  }
}

void access(const void* at, size_t size, bool writes) {
  use(at, size, writes, false, __builtin_return_address(0));
}
void atomic(const void* at, size_t size, void* code) {
  use(at, size, true, true, code);
  if (settings.accesses) {
    blocks.atomic(reinterpret_cast<uintptr_t>(at));
  }
}
void fence() {
  if (settings.accesses) {
    blocks.fence();
  }
}

}  // namespace cuda_emulator

extern "C" {
#define HOOK_(name, size, writes)                                             \
  void name(void* at) {                                                       \
    cuda_emulator::use(at, size, writes, false, __builtin_return_address(0)); \
  }
#define HOOKS_(size)                              \
  HOOK_(__tsan_read##size, size, false)           \
  HOOK_(__tsan_write##size, size, true)           \
  HOOK_(__tsan_unaligned_read##size, size, false) \
  HOOK_(__tsan_unaligned_write##size, size, true) \
  HOOK_(__tsan_volatile_read##size, size, false)  \
  HOOK_(__tsan_volatile_write##size, size, true)
HOOKS_(1)
HOOKS_(2)
HOOKS_(4)
HOOKS_(8)
HOOKS_(16)
void __tsan_read_range(void* at, size_t size) {
  cuda_emulator::use(at, size, false, false, __builtin_return_address(0));
}
void __tsan_write_range(void* at, size_t size) {
  cuda_emulator::use(at, size, true, false, __builtin_return_address(0));
}
void __tsan_init() {
}
void __tsan_func_entry(void*) {
}
void __tsan_func_exit() {
}
void __tsan_vptr_update(void**, void*) {
}
void __tsan_vptr_read(void**) {
}
// Of the host's code: reference counts and guards of statics.
int8_t __tsan_atomic8_load(const volatile int8_t* at, int) {
  return __atomic_load_n(at, __ATOMIC_SEQ_CST);
}
int32_t __tsan_atomic32_load(const volatile int32_t* at, int) {
  return __atomic_load_n(at, __ATOMIC_SEQ_CST);
}
int64_t __tsan_atomic64_load(const volatile int64_t* at, int) {
  return __atomic_load_n(at, __ATOMIC_SEQ_CST);
}
void __tsan_atomic32_store(volatile int32_t* at, int32_t value, int) {
  __atomic_store_n(at, value, __ATOMIC_SEQ_CST);
}
int32_t __tsan_atomic32_fetch_add(volatile int32_t* at, int32_t value, int) {
  return __atomic_fetch_add(at, value, __ATOMIC_SEQ_CST);
}
}
