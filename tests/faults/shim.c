/* Loaded with LD_PRELOAD: counts the system calls that change what lies below one folder, and kills the process at the n-th, lets it fail,
   or cuts a write short. Only the calls that a save can make are wrapped; whoever writes in another way is not seen, which the test checks
   by comparing the counted bytes with the saved ones. Not thread-safe: one thread saves. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NONE, KILL, TORN, FAIL, SHORT, FULL };
enum { MAX_FD = 4096, MAX_LOG = 1 << 20 };

static char root[4096];
static int action = NONE, error_code = 0;
static long chosen = -1, count = 0, written = 0;
static char marked[MAX_FD], log_of[MAX_LOG];

void fault_arm(const char *folder, long n, int what, int code) {
    strncpy(root, folder, sizeof root - 1);
    chosen = n, action = what, error_code = code, count = 0, written = 0;
    memset(marked, 0, sizeof marked);
}
void fault_disarm(void) { root[0] = 0; }
long fault_count(void) { return count; }
long fault_written(void) { return written; }
char fault_call(long i) { return i < MAX_LOG ? log_of[i] : 0; }

static int ours(const char *path) { return root[0] && path && strncmp(path, root, strlen(root)) == 0; }
static int is_marked(int fd) { return root[0] && fd >= 0 && fd < MAX_FD && marked[fd]; }
static int ours_at(int folder, const char *path) { return path && (path[0] == '/' ? ours(path) : is_marked(folder)); }

/* What to do at this call: 0 go on, 1 fail, 2 cut short (and, when torn, die after it). */
static int reached(char call, int creates) {
    if (count < MAX_LOG) log_of[count] = call;
    long here = count++;
    if (action == FULL && here >= chosen && creates) { errno = error_code; return 1; }
    if (here != chosen) return 0;
    if (action == KILL) raise(SIGKILL);
    if (action == FAIL) { errno = error_code; return 1; }
    return action == TORN || action == SHORT ? 2 : 0;
}
static long after(int what, long result) {
    if (what == 2 && action == TORN) raise(SIGKILL);
    return result;
}

#define REAL(type, name, ...) static type (*real)(__VA_ARGS__); if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

static int note(int fd, int mine) {
    if (fd >= 0 && fd < MAX_FD) marked[fd] = (char)mine;
    return fd;
}
#define OPEN(name, mine, args, call, ...)                                                      \
    int name args {                                                                            \
        REAL(int, #name, __VA_ARGS__);                                                         \
        mode_t mode = 0;                                                                       \
        if (flags & (O_CREAT | O_TMPFILE)) {                                                   \
            va_list list; va_start(list, flags); mode = (mode_t)va_arg(list, int); va_end(list); \
        }                                                                                      \
        int mine_ = mine, what = mine_ ? reached('o', flags & O_CREAT) : 0;                    \
        if (what == 1) return -1;                                                              \
        return (int)after(what, note(real call, mine_));                                       \
    }
OPEN(open, ours(path), (const char *path, int flags, ...), (path, flags, mode), const char *, int, mode_t)
OPEN(open64, ours(path), (const char *path, int flags, ...), (path, flags, mode), const char *, int, mode_t)
OPEN(openat, ours_at(folder, path), (int folder, const char *path, int flags, ...), (folder, path, flags, mode), int, const char *, int, mode_t)
OPEN(openat64, ours_at(folder, path), (int folder, const char *path, int flags, ...), (folder, path, flags, mode), int, const char *, int, mode_t)

ssize_t write(int fd, const void *data, size_t size) {
    REAL(ssize_t, "write", int, const void *, size_t);
    int what = is_marked(fd) ? reached('w', 1) : 0;
    if (what == 1) return -1;
    ssize_t done = real(fd, data, what == 2 ? (size + 1) / 2 : size);
    if (is_marked(fd) && done > 0) written += done;
    return after(what, done);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off64_t);
    int what = is_marked(fd) ? reached('w', 1) : 0;
    if (what == 1) return -1;
    ssize_t done = real(fd, data, what == 2 ? (size + 1) / 2 : size, at);
    if (is_marked(fd) && done > 0) written += done;
    return after(what, done);
}
ssize_t writev(int fd, const struct iovec *parts, int n) {
    if (!is_marked(fd)) { REAL(ssize_t, "writev", int, const struct iovec *, int); return real(fd, parts, n); }
    return n ? write(fd, parts[0].iov_base, parts[0].iov_len) : 0; /* a short write is allowed to stop anywhere */
}

#define SIMPLE(name, letter, mine, creates, args, call, ...)    \
    int name args {                                             \
        REAL(int, #name, __VA_ARGS__);                          \
        int what = mine ? reached(letter, creates) : 0;         \
        if (what == 1) return -1;                               \
        return (int)after(what, real call);                     \
    }
SIMPLE(fsync, 's', is_marked(fd), 1, (int fd), (fd), int)
SIMPLE(fdatasync, 's', is_marked(fd), 1, (int fd), (fd), int)
/* Advice changes nothing, so that its failure must change nothing either; it gives its error instead of setting errno. */
#define ADVISE(name)                                                                     \
    int name(int fd, off_t offset, off_t size, int advice) {                             \
        REAL(int, #name, int, off_t, off_t, int);                                        \
        int what = is_marked(fd) ? reached('a', 0) : 0;                                  \
        return what == 1 ? errno : (int)after(what, real(fd, offset, size, advice));     \
    }
ADVISE(posix_fadvise)
ADVISE(posix_fadvise64)
SIMPLE(ftruncate64, 't', is_marked(fd), 1, (int fd, off64_t size), (fd, size), int, off64_t)
SIMPLE(mkdir, 'm', ours(path), 1, (const char *path, mode_t mode), (path, mode), const char *, mode_t)
SIMPLE(rename, 'r', ours(from) || ours(to), 1, (const char *from, const char *to), (from, to), const char *, const char *)
SIMPLE(renameat2, 'r', ours_at(a, from) || ours_at(b, to), 1, (int a, const char *from, int b, const char *to, unsigned how), (a, from, b, to, how),
       int, const char *, int, const char *, unsigned)
SIMPLE(link, 'l', ours(from) || ours(to), 1, (const char *from, const char *to), (from, to), const char *, const char *)
SIMPLE(unlink, 'u', ours(path), 0, (const char *path), (path), const char *)
SIMPLE(unlinkat, 'u', ours_at(folder, path), 0, (int folder, const char *path, int how), (folder, path, how), int, const char *, int)
SIMPLE(rmdir, 'u', ours(path), 0, (const char *path), (path), const char *)
SIMPLE(flock, 'k', is_marked(fd), 0, (int fd, int how), (fd, how), int, int)

int close(int fd) {
    REAL(int, "close", int);
    int mine = is_marked(fd), what = mine ? reached('c', 0) : 0;
    if (fd >= 0 && fd < MAX_FD) marked[fd] = 0;
    int code = errno, result = real(fd); /* a failing close has closed */
    if (what == 1) { errno = code; return -1; }
    return (int)after(what, result);
}
