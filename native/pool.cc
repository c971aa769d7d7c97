#include "pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <string>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace anybit {
namespace {

constexpr uint64_t kOpen = 1ull << 15;  // gate: generation in the high bits, open flag, workers inside in the low 15 bits
constexpr int64_t kSpinNs = 100 * 1000;

struct Job {
  Task task = nullptr;
  void *context = nullptr;
  int64_t count = 0;
};

Job job;
std::atomic<uint64_t> gate{0};
std::atomic<int64_t> next_task{0};
std::atomic<uint32_t> epoch{0};
std::atomic<int> sleepers{0};
std::atomic<int> wanted{0};
std::mutex owner;  // held by the thread that runs a job
int started = 0;
bool fork_handler = false;
thread_local bool inside = false;
thread_local bool alone = false;

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

int64_t now_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000ll + t.tv_nsec;
}

void futex(std::atomic<uint32_t> *word, int op, uint32_t value) {
  syscall(SYS_futex, reinterpret_cast<uint32_t *>(word), op | FUTEX_PRIVATE_FLAG, value, nullptr, nullptr, 0);
}

void run_tasks() {
  FloatState state;
  inside = true;
  for (;;) {
    int64_t i = next_task.fetch_add(1, std::memory_order_relaxed);
    if (i >= job.count) break;
    job.task(job.context, i);
  }
  inside = false;
}

void *worker(void *argument) {
  const int index = static_cast<int>(reinterpret_cast<intptr_t>(argument));  // 1 .. threads-1
  uint64_t done = 0;
  int64_t idle_since = now_ns();
  for (;;) {
    const uint32_t seen = epoch.load();
    uint64_t g = gate.load(std::memory_order_acquire);
    const uint64_t generation = g >> 16;
    if ((g & kOpen) && generation != done && index < wanted.load(std::memory_order_relaxed)) {
      if (gate.compare_exchange_weak(g, g + 1, std::memory_order_acq_rel)) {
        done = generation;
        run_tasks();
        gate.fetch_sub(1, std::memory_order_release);
        idle_since = now_ns();
      }
      continue;
    }
    for (int i = 0; i < 32; i++) relax();
    if (now_ns() - idle_since > kSpinNs) {
      sleepers.fetch_add(1);
      futex(&epoch, FUTEX_WAIT, seen);  // returns at once when a job came since `seen` was read
      sleepers.fetch_sub(1);
      idle_since = now_ns();
    }
  }
  return nullptr;
}

void forked_child() {  // the workers stayed in the parent
  started = 0;
  sleepers.store(0);
  gate.store(0);
  inside = false;
  new (&owner) std::mutex;
}

void start_workers(int count) {
  if (!fork_handler) fork_handler = pthread_atfork(nullptr, nullptr, forked_child) == 0;
  for (int i = started + 1; i < count; i++) {
    pthread_t thread;
    if (pthread_create(&thread, nullptr, worker, reinterpret_cast<void *>(static_cast<intptr_t>(i))) != 0) return;  // fewer workers, same result
    pthread_detach(thread);
    started = i;
  }
}

std::string text_of(const std::string &path) {
  std::string text;
  if (FILE *f = fopen(path.c_str(), "r")) {
    char part[4096];
    for (size_t got; (got = fread(part, 1, sizeof part, f)) > 0;) text.append(part, got);
    fclose(f);
  }
  return text;
}

int64_t rounded_up(long long quota, long long period) { return quota > 0 && period > 0 ? (quota + period - 1) / period : INT64_MAX; }

// What a group and those around it may use: the least of their quotas.
int64_t quota_cores(const std::string &root, std::string group, bool unified) {
  int64_t cores = INT64_MAX;
  for (;;) {
    long long quota = 0, period = 0;
    if (unified) {
      if (sscanf(text_of(root + group + "/cpu.max").c_str(), "%lld %lld", &quota, &period) != 2) quota = 0;  // "max 100000": no limit
    } else {
      if (sscanf(text_of(root + group + "/cpu.cfs_quota_us").c_str(), "%lld", &quota) != 1) quota = 0;
      if (sscanf(text_of(root + group + "/cpu.cfs_period_us").c_str(), "%lld", &period) != 1) period = 0;
    }
    cores = std::min(cores, rounded_up(quota, period));
    const size_t at = group.find_last_of('/');
    if (at == std::string::npos) return cores;
    group.resize(at);
  }
}

}  // namespace

int64_t cgroup_cores(const std::string &root, const std::string &membership) {
  int64_t cores = INT64_MAX;
  const std::string lines = text_of(membership);
  for (size_t at = 0; at < lines.size();) {
    const size_t end = std::min(lines.find('\n', at), lines.size());
    const std::string line = lines.substr(at, end - at);
    at = end + 1;
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string kinds = "," + line.substr(first + 1, second - first - 1) + ",", group = line.substr(second + 1);
    if (kinds == ",,") cores = std::min({cores, quota_cores(root, group, true), quota_cores(root + "/unified", group, true)});
    if (kinds.find(",cpu,") != std::string::npos)
      cores = std::min({cores, quota_cores(root + "/cpu", group, false), quota_cores(root + "/cpu,cpuacct", group, false)});
  }
  return std::min(cores, quota_cores(root, "", true));  // inside a container the group that counts may be the root that is seen
}

int usable_cores() {
  cpu_set_t set;
  int64_t cores = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : sysconf(_SC_NPROCESSORS_ONLN);
  const int64_t quota = cgroup_cores("/sys/fs/cgroup", "/proc/self/cgroup");
  if (quota < cores) cores = quota;
  return cores < 1 ? 1 : cores > 256 ? 256 : static_cast<int>(cores);
}

int threads() {
  int count = wanted.load(std::memory_order_relaxed);
  if (count == 0) {
    count = usable_cores();
    wanted.store(count);
  }
  return count;
}

void set_threads(int count) {
  std::lock_guard<std::mutex> lock(owner);
  wanted.store(count < 1 ? 1 : count > 256 ? 256 : count);
}

void stay_alone() { alone = true; }

void parallel(int64_t count, Task task, void *context) {
  if (count <= 0) return;
  std::unique_lock<std::mutex> lock(owner, std::defer_lock);
  const int use = threads();
  if (count == 1 || use == 1 || inside || alone || !lock.try_lock()) {
    FloatState state;
    for (int64_t i = 0; i < count; i++) task(context, i);
    return;
  }
  if (started + 1 < use) start_workers(use);
  job = {task, context, count};
  next_task.store(0, std::memory_order_relaxed);
  gate.store(((gate.load(std::memory_order_relaxed) >> 16) + 1) << 16 | kOpen, std::memory_order_release);
  epoch.fetch_add(1);
  if (sleepers.load() > 0) futex(&epoch, FUTEX_WAKE, INT32_MAX);
  run_tasks();
  gate.fetch_and(~kOpen, std::memory_order_acq_rel);
  for (int64_t spins = 0; (gate.load(std::memory_order_acquire) & (kOpen - 1)) != 0; spins++) {
    relax();
    if (spins > 4000) sched_yield();  // a worker lost its core
  }
}

int64_t fork_join_ns(int64_t tasks, int64_t most_ns) {
  std::atomic<int64_t> begun_tasks{0};
  const int64_t begun = now_ns();
  parallel_for(tasks, [&](int64_t) {
    begun_tasks.fetch_add(1);
    while (begun_tasks.load() < tasks && now_ns() - begun < most_ns) relax();
  });
  return now_ns() - begun;
}

void *scratch(size_t bytes) {
  struct Buffer {
    void *data = nullptr;
    size_t size = 0;
    ~Buffer() { free(data); }
  };
  thread_local Buffer buffer;
  if (buffer.size < bytes) {
    free(buffer.data);
    buffer.size = (bytes + 4095) / 4096 * 4096;
    buffer.data = aligned_alloc(64, buffer.size);
    if (!buffer.data) buffer.size = 0;
  }
  return buffer.data;
}

#if defined(__x86_64__)
FloatState::FloatState() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }  // all exceptions masked, nearest-even, no flush to zero
FloatState::~FloatState() { _mm_setcsr(static_cast<unsigned>(saved_)); }
#elif defined(__aarch64__)
FloatState::FloatState() {
  asm volatile("mrs %0, fpcr" : "=r"(saved_));
  asm volatile("msr fpcr, %0" ::"r"(uint64_t{0}));
}
FloatState::~FloatState() { asm volatile("msr fpcr, %0" ::"r"(saved_)); }
#else
FloatState::FloatState() : saved_(0) {}
FloatState::~FloatState() {}
#endif

}  // namespace anybit
