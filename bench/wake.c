// What the machine needs to wake a sleeping thread: microseconds from futex(FUTEX_WAKE) to the thread's first store, in JSON.
//
//     cc -O2 -pthread bench/wake.c -o wake && ./wake [REPEATS] [PAUSE_US]
//
// The worker sleeps in the kernel, the main thread sleeps PAUSE_US in between, then wakes it and spins until it answers: the least that any
// pool can take after a sleep on this machine (on a virtual one, a halted processor has to be scheduled again by the host).
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static atomic_int asked, answered;

static double now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static void* worker(void* unused) {
    for (int seen = 0;; ++seen) {
        while (atomic_load(&asked) == seen) syscall(SYS_futex, &asked, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
        atomic_store(&answered, seen + 1);
    }
    return unused;
}

static int less(const void* a, const void* b) {
    double x = *(const double*)a, y = *(const double*)b;
    return (x > y) - (x < y);
}

int main(int argc, char** argv) {
    int repeats = argc > 1 ? atoi(argv[1]) : 100, pause_us = argc > 2 ? atoi(argv[2]) : 3000;
    if (repeats < 10 || repeats > 1000000 || pause_us < 0) return 2;
    double* took = malloc(repeats * sizeof *took);
    pthread_t thread;
    if (took == NULL || pthread_create(&thread, NULL, worker, NULL)) return 1;
    for (int i = 0; i < repeats; ++i) {
        usleep(pause_us);
        double begun = now_us();
        atomic_store(&asked, i + 1);
        syscall(SYS_futex, &asked, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
        while (atomic_load(&answered) != i + 1) {
        }
        took[i] = now_us() - begun;
    }
    qsort(took, repeats, sizeof *took, less);
    printf("{\"median\": %.3f, \"p10\": %.3f, \"p90\": %.3f}\n", took[repeats / 2], took[repeats / 10], took[9 * repeats / 10]);
    return 0;
}
