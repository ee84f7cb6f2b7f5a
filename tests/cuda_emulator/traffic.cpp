// Counts memory traffic in the races build, with VPGFAST_EMULATOR_TRAFFIC=FILE: a line of JSON is added to the file for
// every launch. The n-th time that the lanes of a warp come by an instruction is one request, as it would be on a GPU.
//
// Sectors of 32 and lines of 128 bytes are counted for global memory. For shared memory passes are counted: as many as
// the most crowded of the 32 banks has different words, for every 128 bytes of the request.

#include <cstdio>
#include <cstdlib>
#include <map>
#include <set>
#include <tuple>
#include <unordered_map>
#include <unordered_set>

#include "machine.h"

namespace cuda_emulator {
namespace {

struct Request {
  std::vector<Region> at;
  bool writes = false, atomic = false, shared = false;
};
struct Counts {
  uint64_t requests = 0, sectors = 0, lines = 0, bytes = 0;
};
struct Traffic {
  Counts loads, stores, atomics;
  uint64_t shared_requests = 0, shared_passes = 0, shared_least = 0;
  std::unordered_set<uintptr_t> read, written;  // sectors, each of which has to be moved once at least
};
Traffic traffic;
// Of the block that runs: the requests of a warp at an instruction, and how often each thread has come by one.
std::map<std::tuple<uintptr_t, int, uint32_t>, Request> requests;
std::unordered_map<uintptr_t, std::vector<uint32_t>> times;

const char* file() {
  static const char* const name = std::getenv("VPGFAST_EMULATOR_TRAFFIC");
  return name;
}

void count_shared(const Request& request) {
  std::set<uintptr_t> banks[32];
  uint64_t bytes = 0;
  for (const Region& access : request.at) {
    for (uintptr_t word = access.start / 4; word <= (access.start + access.size - 1) / 4; ++word) {
      banks[word % 32].insert(word);
    }
    bytes += access.size;
  }
  uint64_t most = 0, words = 0;
  for (const auto& bank : banks) {
    most = std::max<uint64_t>(most, bank.size());
    words += bank.size();
  }
  ++traffic.shared_requests;
  traffic.shared_passes += most;
  traffic.shared_least += (words + 31) / 32;
}

void count_global(const Request& request) {
  Counts& counts = request.atomic ? traffic.atomics : request.writes ? traffic.stores : traffic.loads;
  std::set<uintptr_t> sectors, lines;
  for (const Region& access : request.at) {
    for (uintptr_t sector = access.start / 32; sector <= (access.start + access.size - 1) / 32; ++sector) {
      sectors.insert(sector);
      lines.insert(sector / 4);
      (request.writes ? traffic.written : traffic.read).insert(sector);
    }
    counts.bytes += access.size;
  }
  ++counts.requests;
  counts.sectors += sectors.size();
  counts.lines += lines.size();
}

void write(FILE* to, const char* name, const Counts& counts) {
  std::fprintf(to, "\"%s\": {\"requests\": %lu, \"sectors\": %lu, \"lines\": %lu, \"bytes\": %lu}, ", name,
               static_cast<unsigned long>(counts.requests), static_cast<unsigned long>(counts.sectors),
               static_cast<unsigned long>(counts.lines), static_cast<unsigned long>(counts.bytes));
}

}  // namespace

bool counts_traffic() {
  return file() != nullptr;
}

void note_traffic(uintptr_t at, size_t size, bool writes, bool atomic, uintptr_t code) {
  auto& of_threads = times[code];
  of_threads.resize(kMostThreads);
  Request& request = requests[{code, now.thread / kWarp, of_threads[now.thread]++}];
  request.at.push_back({at, size});
  request.writes = writes;
  request.atomic = atomic;
  request.shared = is_shared(at);
}

void traffic_ends_block() {
  for (const auto& [key, request] : requests) {
    request.shared ? count_shared(request) : count_global(request);
  }
  requests.clear();
  times.clear();
}

void traffic_ends_launch() {
  if (FILE* to = std::fopen(file(), "a")) {
    const Launch& launch = *now.launch;
    std::fprintf(to, "{\"kernel\": \"%s\", \"grid\": [%u, %u, %u], \"block\": %d, \"dynamic_shared\": %ld, ",
                 launch.name, launch.grid.x, launch.grid.y, launch.grid.z, now.threads,
                 static_cast<long>(launch.shared));
    write(to, "loads", traffic.loads);
    write(to, "stores", traffic.stores);
    write(to, "atomics", traffic.atomics);
    std::fprintf(to, "\"bytes_read_once\": %zu, \"bytes_written_once\": %zu, ", traffic.read.size() * 32,
                 traffic.written.size() * 32);
    std::fprintf(to, "\"shared\": {\"requests\": %lu, \"passes\": %lu, \"least_passes\": %lu}}\n",
                 static_cast<unsigned long>(traffic.shared_requests), static_cast<unsigned long>(traffic.shared_passes),
                 static_cast<unsigned long>(traffic.shared_least));
    std::fclose(to);
  }
  traffic = {};
}

}  // namespace cuda_emulator
