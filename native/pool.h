// A pool of threads with low fork and join cost, shared by the process.
//
// Tasks are taken one by one from a counter, so a worker that the machine delays costs little. A job is open while tasks are left: a worker that
// wakes too late finds it closed and nobody waits for it. Workers spin for about 100 us after the last job and then sleep, using no CPU.
// Results must not depend on which worker runs a task: every task writes its own outputs.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <string>
#include <type_traits>

namespace anybit {

using Task = void (*)(void *context, int64_t index);

// Runs task(context, 0 .. count-1) on the pool and returns when all are done. Inside a task, or while another thread uses the pool, it runs serially.
void parallel(int64_t count, Task task, void *context);

// The same for a callable object: parallel_for(n, [&](int64_t i) { ... }).
template <class Body> void parallel_for(int64_t count, Body &&body) {
  parallel(count, [](void *context, int64_t index) { (*static_cast<typename std::remove_reference<Body>::type *>(context))(index); }, &body);
}

// From now on the calling thread runs its jobs by itself: it is one of as many threads of the caller's as there are cores to use.
void stay_alone();

int threads();                // how many threads a job may use, the caller included
void set_threads(int count);  // 1 .. 256; workers are started on first use
int usable_cores();           // cores that this process may use: affinity mask and cgroup quota
// Whole cores that the quotas of a process's control groups (version 1 or 2, and of those around them) leave it; INT64_MAX without one.
// root: where they are mounted; membership: the process's list of them.
int64_t cgroup_cores(const std::string &root, const std::string &membership);

// Nanoseconds of a job whose tasks wait until all have begun (but not longer than most_ns): each needs a thread. For bench/pool.py and tests.
int64_t fork_join_ns(int64_t tasks, int64_t most_ns);

// This thread's scratch memory, at least `bytes`, 64-byte aligned, valid until its next call on the same thread. nullptr: out of memory.
void *scratch(size_t bytes);

// Sets nearest-even without flush to zero for the calling thread and restores what was there (another library may have changed it).
class FloatState {
 public:
  FloatState();
  ~FloatState();
  FloatState(const FloatState &) = delete;
  FloatState &operator=(const FloatState &) = delete;

 private:
  uint64_t saved_;
};

}  // namespace anybit
