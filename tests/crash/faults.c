/* A library for LD_PRELOAD that makes one of a process's calls below a folder fail, or kills the process in it.
 *
 * Counted are calls that take room on a disk or make something durable or visible: opening a file to write, writing,
 * truncating, fsync, rename, mkdir. Of a write that fails, half arrives first. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { ONCE, FULL, SHORT, KILL };

static char root[PATH_MAX];
static long number, target;
static int mode, error, trace = -1;

void faults_arm(const char *folder, long call, int how, int code, int log) {
    strncpy(root, folder, sizeof root - 1);
    number = 0, target = call, mode = how, error = code, trace = log;
}

long faults_count(void) { return number; }

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int below(const char *path) { return root[0] && path && !strncmp(path, root, strlen(root)); }

static int owned(int file) {
    char link[64], path[PATH_MAX];
    if (!root[0] || file < 3) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    return length > 0 && (path[length] = 0, below(path));
}

/* Whether this call is the one; writes go on to `half`, where KILL and SHORT strike after half of the bytes. */
static int strikes(const char *call, const char *path, int writes) {
    long mine = __sync_add_and_fetch(&number, 1);
    if (trace >= 0) dprintf(trace, "%ld %s %s\n", mine, call, path ? path : "");
    if (mode == FULL && target && mine > target) return strcmp(call, "fsync") && strcmp(call, "rename");
    if (mine != target) return 0;
    if (mode == KILL && !writes) kill(getpid(), SIGKILL);
    return mode == SHORT ? writes : 1;
}

static ssize_t half(ssize_t written) {
    if (mode == KILL) kill(getpid(), SIGKILL);
    if (mode == SHORT || (mode == FULL && number == target && written > 0)) return written;
    return errno = error, -1;
}

ssize_t write(int file, const void *data, size_t size) {
    if (!owned(file) || !strikes("write", 0, 1)) return REAL(write)(file, data, size);
    return half(REAL(write)(file, data, size / 2 + (mode == SHORT)));
}

ssize_t pwrite64(int file, const void *data, size_t size, off64_t place) {
    if (!owned(file) || !strikes("write", 0, 1)) return REAL(pwrite64)(file, data, size, place);
    return half(REAL(pwrite64)(file, data, size / 2 + (mode == SHORT), place));
}

ssize_t writev(int file, const struct iovec *parts, int count) {
    if (!owned(file) || !strikes("write", 0, 1)) return REAL(writev)(file, parts, count);
    return half(REAL(write)(file, parts->iov_base, parts->iov_len / 2 + (mode == SHORT)));
}

ssize_t sendfile(int to, int from, off_t *place, size_t size) {
    if (!owned(to) || !strikes("write", 0, 1)) return REAL(sendfile)(to, from, place, size);
    return half(REAL(sendfile)(to, from, place, size / 2 + 1));
}

ssize_t sendfile64(int to, int from, off64_t *place, size_t size) { return sendfile(to, from, place, size); }

size_t fwrite(const void *data, size_t size, size_t count, FILE *stream) {
    if (!root[0] || !owned(fileno(stream)) || !strikes("write", 0, 0)) return REAL(fwrite)(data, size, count, stream);
    size_t written = REAL(fwrite)(data, size, count / 2, stream);
    return errno = error, written;
}

int ftruncate64(int file, off64_t size) {
    return owned(file) && strikes("truncate", 0, 0) ? (errno = error, -1) : REAL(ftruncate64)(file, size);
}

int fsync(int file) { return owned(file) && strikes("fsync", 0, 0) ? (errno = error, -1) : REAL(fsync)(file); }

int rename(const char *from, const char *to) {
    return below(to) && strikes("rename", to, 0) ? (errno = error, -1) : REAL(rename)(from, to);
}

int mkdir(const char *path, mode_t rights) {
    return below(path) && strikes("mkdir", path, 0) ? (errno = error, -1) : REAL(mkdir)(path, rights);
}

#define OPEN(name)                                                                                   \
    int name(const char *path, int flags, ...) {                                                     \
        va_list rest;                                                                                \
        va_start(rest, flags);                                                                       \
        mode_t rights = flags & O_CREAT ? va_arg(rest, mode_t) : 0;                                  \
        va_end(rest);                                                                                \
        if (flags & O_CREAT && below(path) && strikes("open", path, 0)) return errno = error, -1;    \
        return REAL(name)(path, flags, rights);                                                      \
    }
OPEN(open)
OPEN(open64)
