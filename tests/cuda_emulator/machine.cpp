// Runs launches: blocks one after the other, a block's threads as fibers, both in a random order. Fibers change over at
// barriers and where a warp meets; who comes to the wrong one, or never, ends the process with a message.

#include "machine.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>

namespace cuda_emulator {

Indices indices;
Now now;
std::vector<Region> shared_regions;
Failure failure;
uint64_t launches = 0;

namespace {

enum class State { ready, at_barrier, meeting, done };
struct Copy {
  void* to;
  const void* from;
  size_t size, zeros;
};
struct Thread {
  State state = State::done;
  Place place;
  int source = 0;  // of the meeting
  bool fence = false;
  uint64_t value = 0, result = 0;
  Clocks clocks;
  std::vector<std::vector<Copy>> copies;  // in groups, the last of which is open
};
// The lanes of a warp that wait for the others.
struct Meeting {
  unsigned here = 0, mask = 0;
  Place place;
  uint64_t gathered[kWarp];
};
struct AssertionFailed {};

std::mutex one_launch_at_a_time;
std::vector<Thread> threads(kMostThreads);
Meeting meetings[kMostThreads / kWarp];
int living = 0, waiting = 0, votes = 0, votes_counted = 0;
void (*body)(void*) = nullptr;
std::unique_ptr<char[]> dynamic_memory;
char* dynamic_start = nullptr;
std::mt19937 random_numbers;
unsigned seed_in_use = 0;

int below(int limit) {
  return static_cast<int>(random_numbers() * static_cast<uint64_t>(limit) >> 32);
}

bool same(const Place& a, const Place& b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

void set_indices(int thread) {
  const unsigned x = now.launch->block.x, y = now.launch->block.y, t = static_cast<unsigned>(thread);
  indices.thread = {t % x, t / x % y, t / (x * y)};
}

void go_to_scheduler(bool leaving = false) {
  const int from = now.thread;
  now.thread = kScheduler;
  change_fiber(from, kScheduler, leaving);
}

void thread_begins() {
  fiber_has_begun();
  try {
    body(const_cast<char*>(now.arguments));
  } catch (const AssertionFailed&) {
  }
  Thread& self = threads[now.thread];
  for (const auto& group : self.copies) {
    if (!group.empty() && failure.code == 0) {
      stop("leaves without having waited for its asynchronous copies");
    }
  }
  self.state = State::done;
  --living;
  go_to_scheduler(true);
  std::abort();
}

void prepare_shared_memory() {
  shared_regions.clear();
  const auto bytes = static_cast<size_t>(now.launch->shared);
  if (bytes > 0) {
    // No more aligned than CUDA promises, and as long as asked for to the byte.
    constexpr size_t kPage = 128, kAlignment = 16;
    dynamic_memory.reset(new char[bytes + kPage]);
    dynamic_start = dynamic_memory.get();
    while (reinterpret_cast<uintptr_t>(dynamic_start) % kPage != kAlignment) {
      ++dynamic_start;
    }
#if defined(__SANITIZE_ADDRESS__)
    char* const old = dynamic_memory.release();
    delete[] old;
    dynamic_memory.reset(new char[bytes]);
    dynamic_start = dynamic_memory.get();
#endif
    poison_shared(dynamic_start, bytes);
  }
}

void stop_where_nobody_can_go_on() {
  std::string message = "no thread can go on:";
  int listed = 0;
  for (int t = 0; t < now.threads && listed < 40; ++t) {
    const Thread& thread = threads[t];
    // One line for threads side by side that do the same.
    int last = t;
    while (last + 1 < now.threads && threads[last + 1].state == thread.state &&
           (thread.state == State::done || same(threads[last + 1].place, thread.place))) {
      ++last;
    }
    message += "\n  threads " + std::to_string(t) + " to " + std::to_string(last);
    message += thread.state == State::done         ? " have left"
               : thread.state == State::at_barrier ? " wait at the barrier at " + to_string(thread.place)
                                                   : " meet at " + to_string(thread.place);
    t = last;
    ++listed;
  }
  stop(message);
}

void run_block(std::vector<int>& order) {
  living = now.threads;
  waiting = votes = 0;
  now.blocks_first = ++now.segment;
  prepare_shared_memory();
  for (int t = 0; t < now.threads; ++t) {
    Thread& thread = threads[t];
    thread.state = State::ready;
    thread.place = {};
    thread.copies.clear();
    thread.clocks = {};
    thread.clocks.fences[t % kWarp] = thread.clocks.meetings[t % kWarp] = 1;
    start_fiber(t, thread_begins);
  }
  for (Meeting& meeting : meetings) {
    meeting.here = 0;
  }
  std::shuffle(order.begin(), order.end(), random_numbers);
  while (living > 0) {
    // Another order in every round: from another thread on and in other steps through the shuffled ones.
    const int start = below(now.threads);
    int step = 1 + below(now.threads);
    while (std::gcd(step, now.threads) != 1) {
      ++step;
    }
    bool went_on = false;
    for (int i = 0, place = start; i < now.threads; ++i, place = (place + step) % now.threads) {
      const int t = order[place];
      if (threads[t].state == State::ready) {
        went_on = true;
        now.thread = t;
        set_indices(t);
        change_fiber(kScheduler, t);
        if (failure.code != 0) {
          return;  // an assertion ends the launch; what the other threads' stacks hold is given up
        }
      }
    }
    if (!went_on) {
      stop_where_nobody_can_go_on();
    }
  }
}

void open_barrier_if_all_wait() {
  if (waiting < living) {
    return;
  }
  const Place& place = threads[now.thread].place;
  for (int t = 0; t < now.threads; ++t) {
    if (threads[t].state == State::done) {
      stop("thread " + std::to_string(t) + " has left and does not come to the barrier at " + to_string(place));
    }
    if (!same(threads[t].place, place)) {
      stop("threads of one block wait at two barriers, " + to_string(threads[t].place) + " and " + to_string(place));
    }
  }
  for (int t = 0; t < now.threads; ++t) {
    threads[t].state = State::ready;
  }
  waiting = 0;
  votes_counted = votes;
  votes = 0;
  ++now.segment;
}

// Each of the lanes now comes after what all of them have done.
void join(Thread* lanes, unsigned mask, uint32_t (Clocks::*which)[32]) {
  if (!settings.accesses) {
    return;
  }
  uint32_t latest[kWarp] = {};
  for (int i = 0; i < kWarp; ++i) {
    for (int j = 0; j < kWarp && (mask >> i & 1u); ++j) {
      latest[j] = std::max(latest[j], (lanes[i].clocks.*which)[j]);
    }
  }
  for (int i = 0; i < kWarp; ++i) {
    if (mask >> i & 1u) {
      std::copy_n(latest, kWarp, lanes[i].clocks.*which);
      ++(lanes[i].clocks.*which)[i];
    }
  }
}

void end_meeting(Thread* lanes, Meeting& meeting) {
  const unsigned mask = meeting.mask;
  unsigned bits = 0;
  for (int i = 0; i < kWarp; ++i) {
    bits |= static_cast<unsigned>((mask >> i & 1u) && lanes[i].value != 0) << i;
    meeting.gathered[i] = lanes[i].value;
  }
  for (int i = 0; i < kWarp; ++i) {
    if (mask >> i & 1u) {
      // A lane that the mask does not name has no value that counts.
      const int from = lanes[i].source;
      lanes[i].result = from < 0 ? bits : mask >> (from % kWarp) & 1u ? lanes[from % kWarp].value : ~uint64_t{0};
      lanes[i].state = State::ready;
    }
  }
  join(lanes, mask, &Clocks::meetings);
  if (lanes[now.thread % kWarp].fence) {
    join(lanes, mask, &Clocks::fences);
  }
  meeting.here = 0;
}

}  // namespace

std::string to_string(const Place& place) {
  return place.file ? std::string(place.file) + ":" + std::to_string(place.line) : "?";
}

void stop(const std::string& what) {
  std::fflush(stdout);
  std::fprintf(stderr, "\ncuda_emulator: %s", now.launch ? now.launch->name : "no launch");
  if (now.launch) {
    const uint3 block = indices.block;
    std::fprintf(stderr, ", block (%u, %u, %u), thread %d", block.x, block.y, block.z, now.thread);
  }
  std::fprintf(stderr, ": %s\ncuda_emulator: VPGFAST_EMULATOR_SEED=%u VPGFAST_EMULATOR_POISON=%d\n", what.c_str(),
               settings.seed, settings.poison);
  std::fflush(stderr);
  std::abort();
}

void fail(const char* what, Place place) {
  stop(to_string(place) + ": " + what);
}

const Clocks& clocks(int thread) {
  return threads[thread].clocks;
}

int lane() {
  return now.thread % kWarp;
}

bool is_shared(uintptr_t address) {
  for (const Region& region : shared_regions) {
    if (region.contains(address)) {
      return true;
    }
  }
  return false;
}

void run(const Launch& launch, void (*kernel)(void*), void* arguments, size_t bytes) {
  const std::lock_guard<std::mutex> lock(one_launch_at_a_time);
  if (settings.seed != seed_in_use) {
    random_numbers.seed(seed_in_use = settings.seed);
  }
  now.launch = &launch;
  now.threads = static_cast<int>(launch.block.x * launch.block.y * launch.block.z);
  now.arguments = static_cast<const char*>(arguments);
  now.argument_bytes = bytes;
  check_launch_limits();
  if (failure.code == 0) {
    ++launches;
    body = kernel;
    now.launchs_first = now.segment + 1;
    indices.block_size = launch.block;
    indices.grid_size = launch.grid;
    std::vector<int> threads_in_order(now.threads);
    std::iota(threads_in_order.begin(), threads_in_order.end(), 0);
    const dim3 grid = launch.grid;
    const size_t all = size_t{grid.x} * grid.y * grid.z, ends = static_cast<size_t>(settings.ends);
    const bool only_ends = ends > 0 && all > 2 * ends;
    std::vector<uint32_t> blocks(only_ends ? 2 * ends : all);
    std::iota(blocks.begin(), blocks.end(), 0u);
    for (size_t i = ends; only_ends && i < 2 * ends; ++i) {
      blocks[i] = static_cast<uint32_t>(all - 2 * ends + i);
    }
    std::shuffle(blocks.begin(), blocks.end(), random_numbers);
    for (const uint32_t b : blocks) {
      indices.block = {b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y};
      run_block(threads_in_order);
      traffic_ends_block();
      if (failure.code != 0) {
        break;
      }
    }
    races_end_launch();
    if (counts_traffic()) {
      traffic_ends_launch();
    }
  }
  shared_regions.clear();
  now.launch = nullptr;
  now.arguments = nullptr;
}

void* dynamic_shared(size_t alignment) {
  if (now.launch->shared == 0) {
    return nullptr;
  }
  if (reinterpret_cast<uintptr_t>(dynamic_start) % 16 != 0 || alignment > 128) {
    stop("shared memory is not aligned to so many bytes");
  }
  return dynamic_start;
}

void poison_shared(void* data, size_t bytes) {
  const auto start = reinterpret_cast<uintptr_t>(data);
  for (const Region& region : shared_regions) {
    if (region.start == start) {
      return;
    }
  }
  shared_regions.push_back({start, bytes});
  int64_t all = 0;
  for (const Region& region : shared_regions) {
    all += static_cast<int64_t>(region.size);
  }
  if (all > most_shared(now.launch->function)) {  // a GPU would refuse the launch
    stop(std::to_string(all) + " bytes of shared memory, of fixed size and asked for at launch, are more than allowed");
  }
  std::memset(data, settings.poison, bytes);
}

void barrier(Place place) {
  Thread& self = threads[now.thread];
  self.state = State::at_barrier;
  self.place = place;
  ++waiting;
  open_barrier_if_all_wait();
  if (self.state != State::ready) {
    go_to_scheduler();
  }
}

int barrier_with_votes(bool vote, Place place) {
  votes += vote;
  barrier(place);
  return votes_counted;
}

uint64_t meet(unsigned mask, uint64_t value, int source, bool fence, Place place) {
  Thread *lanes = &threads[now.thread / kWarp * kWarp], &self = threads[now.thread];
  Meeting& meeting = meetings[now.thread / kWarp];
  self.place = place;
  self.value = value;
  self.source = source;
  self.fence = fence;
  if (!(mask >> lane() & 1u)) {
    stop("the mask at " + to_string(place) + " leaves the thread itself out");
  }
  if (meeting.here != 0 && !(same(meeting.place, place) && meeting.mask == mask)) {
    stop(same(meeting.place, place)
             ? "lanes of one warp meet at " + to_string(place) + " with two masks"
             : "lanes of one warp meet at " + to_string(place) + " and " + to_string(meeting.place));
  }
  meeting.place = place;
  meeting.mask = mask;
  meeting.here |= 1u << lane();
  if (meeting.here == mask) {
    end_meeting(lanes, meeting);
  } else {
    self.state = State::meeting;
    go_to_scheduler();
  }
  return self.result;
}

const uint64_t* gather(uint64_t value, Place place) {
  meet(0xffffffffu, value, -1, false, place);
  return meetings[now.thread / kWarp].gathered;
}

void copy_async(void* to, const void* from, size_t size, size_t zeros, Place place) {
  if (size != 4 && size != 8 && size != 16) {
    fail("an asynchronous copy is of 4, 8 or 16 bytes", place);
  }
  if (reinterpret_cast<uintptr_t>(to) % size != 0 || reinterpret_cast<uintptr_t>(from) % size != 0) {
    fail("an asynchronous copy is not aligned to its size", place);
  }
  if (!is_shared(reinterpret_cast<uintptr_t>(to)) || is_shared(reinterpret_cast<uintptr_t>(from))) {
    fail("an asynchronous copy goes from global to shared memory", place);
  }
  if (zeros > size) {
    fail("an asynchronous copy fills more with zeros than it is long", place);
  }
  auto& groups = threads[now.thread].copies;
  if (groups.empty()) {
    groups.emplace_back();
  }
  groups.back().push_back({to, from, size, zeros});
  access(to, size, true);
  access(from, size - zeros, false);
  std::memset(to, settings.poison, size);
}

void commit_copies() {
  threads[now.thread].copies.emplace_back();
}

void wait_for_copies(size_t groups_left) {
  auto& groups = threads[now.thread].copies;
  // The open group, the last, is not waited for.
  while (groups.size() > groups_left + 1) {
    for (const Copy& copy : groups.front()) {
      access(copy.to, copy.size, true);
      std::memcpy(copy.to, copy.from, copy.size - copy.zeros);
      std::memset(static_cast<char*>(copy.to) + copy.size - copy.zeros, 0, copy.zeros);
    }
    groups.erase(groups.begin());
  }
}

void assertion_failed(const char* what, const char* file, int line) {
  const std::string message = std::string(file) + ":" + std::to_string(line) + ": assertion failed: " + what;
  if (!in_a_kernel()) {
    std::fprintf(stderr, "%s\n", message.c_str());
    std::abort();
  }
  failure = {710, message};
  throw AssertionFailed{};
}

}  // namespace cuda_emulator
