/* Fault injection: fails, tears or kills at the Nth system call that changes or opens something below given folders.

   Loaded by LD_PRELOAD into a process that calls `faults_arm`; without that call it only passes calls on. Descriptors are
   told by /proc/self/fd, so that duplicates and descriptors of other libraries count as well. The counter lies in
   memory that forked processes share. Not seen: writes to memory-mapped pages (only their msync), and what the C
   library does on its own behalf beyond fopen, fwrite, fflush and fclose. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, FAIL, STICKY, KILL, TORN };

struct shared {
    int calls; /* counted so far, by all processes */
    int hit;   /* faults that were injected */
};

static struct shared *shared;
static char prefixes[8][PATH_MAX];
static int prefix_count, mode, at, fault, log_handle = -1;
static pid_t armed_process;

/* Errors that a call can really give. */
static int can_give(const char *call, int error, int creates) {
    if (error == EIO) return 1;
    if (!strcmp(call, "open")) return error == EACCES || (error == ENOSPC && creates);
    if (!strcmp(call, "rename") || !strcmp(call, "mkdir")) return error == EACCES || error == ENOSPC;
    if (!strcmp(call, "unlink")) return error == EACCES;
    if (!strcmp(call, "write") || !strcmp(call, "fsync") || !strcmp(call, "close") || !strcmp(call, "fallocate"))
        return error == ENOSPC;
    return 0;
}

int faults_arm(const char *folders, int how, int number, int error, int handle) {
    char *copy = strdup(folders), *rest = copy, *one;
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED || !copy) return -1;
    for (prefix_count = 0; prefix_count < 8 && (one = strsep(&rest, ":"));)
        snprintf(prefixes[prefix_count++], PATH_MAX, "%s", one);
    free(copy);
    at = number, fault = error, log_handle = handle, armed_process = getpid(), mode = how;
    return 0;
}

int faults_calls(void) { return shared ? shared->calls : -1; }
int faults_hit(void) { return shared ? shared->hit : -1; }

static int counts(const char *path) {
    for (int index = 0; index < prefix_count; index++) {
        size_t length = strlen(prefixes[index]);
        if (!strncmp(path, prefixes[index], length) && (path[length] == '/' || !path[length])) return 1;
    }
    return 0;
}

static int path_of(int handle, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    path[length < 0 ? 0 : length] = 0;
    return length > 0;
}

static void full_path(int folder, const char *name, char *path) {
    char start[PATH_MAX] = "";
    if (name[0] != '/') {
        if (folder == AT_FDCWD) {
            if (!getcwd(start, sizeof start)) start[0] = 0;
        } else {
            path_of(folder, start);
        }
    }
    snprintf(path, PATH_MAX, "%.*s%s%.*s", 2000, start, start[0] ? "/" : "", 2000, name);
}

static void die(void) {
    kill(armed_process, SIGKILL);
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* Count a call; the errno it is to fail with, -1 if it is to be torn and then killed, 0 if it goes on. */
static int injected(const char *call, const char *path, int creates) {
    if (!shared || !counts(path)) return 0;
    int number = __sync_add_and_fetch(&shared->calls, 1), saved = errno;
    if (log_handle >= 0) {
        char line[PATH_MAX + 64];
        int size = snprintf(line, sizeof line, "%d\t%s%s\t%s\n", number, call, creates ? "+" : "", path);
        if (syscall(SYS_write, log_handle, line, (size_t)size) < 0) { /* the log is for people */ }
    }
    errno = saved;
    if (mode == COUNT || number < at || (mode != STICKY && number > at)) return 0;
    if (mode == KILL) die();
    if (mode == TORN) return strcmp(call, "write") ? (die(), 0) : -1;
    /* A full disk: what needs room fails from now on. */
    if (mode == STICKY && strcmp(call, "write") && strcmp(call, "mkdir") && strcmp(call, "rename") &&
        strcmp(call, "fallocate") && !creates)
        return 0;
    __sync_add_and_fetch(&shared->hit, 1);
    return can_give(call, fault, creates) ? fault : EIO;
}

static int injected_handle(const char *call, int handle) {
    char path[PATH_MAX];
    if (!shared) return 0;
    int saved = errno, known = path_of(handle, path);
    errno = saved;
    return known ? injected(call, path, 0) : 0;
}

static int injected_path(const char *call, int folder, const char *name, int creates) {
    char path[PATH_MAX];
    if (!shared || !name) return 0;
    int saved = errno;
    full_path(folder, name, path);
    errno = saved;
    return injected(call, path, creates);
}

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)
#define STOP_IF(value, result) \
    do { \
        int stops = (value); \
        if (stops > 0) { \
            errno = stops; \
            return result; \
        } \
    } while (0)

static mode_t mode_argument(int flags, va_list arguments) {
    return flags & (O_CREAT | (O_TMPFILE & ~O_DIRECTORY)) ? va_arg(arguments, mode_t) : 0;
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        va_list arguments; \
        va_start(arguments, flags); \
        mode_t bits = mode_argument(flags, arguments); \
        va_end(arguments); \
        STOP_IF(injected_path("open", AT_FDCWD, path, !!(flags & (O_CREAT | (O_TMPFILE & ~O_DIRECTORY)))), -1); \
        REAL(name); \
        return real(path, flags, bits); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
    int name(int folder, const char *path, int flags, ...) { \
        va_list arguments; \
        va_start(arguments, flags); \
        mode_t bits = mode_argument(flags, arguments); \
        va_end(arguments); \
        STOP_IF(injected_path("open", folder, path, !!(flags & O_CREAT)), -1); \
        REAL(name); \
        return real(folder, path, flags, bits); \
    }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name) \
    FILE *name(const char *path, const char *how) { \
        STOP_IF(injected_path("open", AT_FDCWD, path, how[0] != 'r'), NULL); \
        REAL(name); \
        return real(path, how); \
    }
FOPEN(fopen)
FOPEN(fopen64)

ssize_t write(int handle, const void *data, size_t size) {
    REAL(write);
    int found = injected_handle("write", handle);
    if (found < 0) {
        if (real(handle, data, size / 2) < 0) { /* killed in any case */ }
        die();
    }
    STOP_IF(found, -1);
    return real(handle, data, size);
}

ssize_t writev(int handle, const struct iovec *parts, int count) {
    int found = injected_handle("write", handle);
    if (found < 0) die();
    STOP_IF(found, -1);
    REAL(writev);
    return real(handle, parts, count);
}

#define PWRITE(name, offset_type) \
    ssize_t name(int handle, const void *data, size_t size, offset_type offset) { \
        int found = injected_handle("write", handle); \
        if (found < 0) die(); \
        STOP_IF(found, -1); \
        REAL(name); \
        return real(handle, data, size, offset); \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

size_t fwrite(const void *data, size_t size, size_t count, FILE *file) {
    int found = shared ? injected_handle("write", fileno(file)) : 0;
    if (found < 0) die();
    STOP_IF(found, 0);
    REAL(fwrite);
    return real(data, size, count, file);
}

int fclose(FILE *file) {
    int found = shared ? injected_handle("close", fileno(file)) : 0;
    REAL(fclose);
    int result = real(file);
    STOP_IF(found, EOF);
    return result;
}

int close(int handle) {
    int found = injected_handle("close", handle);
    REAL(close);
    int result = real(handle);
    STOP_IF(found, -1);
    return result;
}

#define ON_HANDLE(name, call) \
    int name(int handle) { \
        STOP_IF(injected_handle(call, handle), -1); \
        REAL(name); \
        return real(handle); \
    }
ON_HANDLE(fsync, "fsync")
ON_HANDLE(fdatasync, "fsync")

#define TRUNCATE(name, offset_type) \
    int name(int handle, offset_type size) { \
        STOP_IF(injected_handle("ftruncate", handle), -1); \
        REAL(name); \
        return real(handle, size); \
    }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)

/* The error of posix_fallocate is its result. */
#define ALLOCATE(name, offset_type) \
    int name(int handle, offset_type offset, offset_type size) { \
        int found = injected_handle("fallocate", handle); \
        if (found > 0) return found; \
        REAL(name); \
        return real(handle, offset, size); \
    }
ALLOCATE(posix_fallocate, off_t)
ALLOCATE(posix_fallocate64, off64_t)

#define ON_PATH(name, call) \
    int name(const char *path) { \
        STOP_IF(injected_path(call, AT_FDCWD, path, 0), -1); \
        REAL(name); \
        return real(path); \
    }
ON_PATH(unlink, "unlink")
ON_PATH(rmdir, "unlink")

int unlinkat(int folder, const char *path, int flags) {
    STOP_IF(injected_path("unlink", folder, path, 0), -1);
    REAL(unlinkat);
    return real(folder, path, flags);
}

int mkdir(const char *path, mode_t bits) {
    STOP_IF(injected_path("mkdir", AT_FDCWD, path, 0), -1);
    REAL(mkdir);
    return real(path, bits);
}

int mkdirat(int folder, const char *path, mode_t bits) {
    STOP_IF(injected_path("mkdir", folder, path, 0), -1);
    REAL(mkdirat);
    return real(folder, path, bits);
}

int rename(const char *from, const char *to) {
    STOP_IF(injected_path("rename", AT_FDCWD, to, 0), -1);
    REAL(rename);
    return real(from, to);
}

int renameat(int from_folder, const char *from, int to_folder, const char *to) {
    STOP_IF(injected_path("rename", to_folder, to, 0), -1);
    REAL(renameat);
    return real(from_folder, from, to_folder, to);
}

int link(const char *from, const char *to) {
    STOP_IF(injected_path("rename", AT_FDCWD, to, 0), -1);
    REAL(link);
    return real(from, to);
}

/* The file of an address stands in /proc/self/maps. */
int msync(void *address, size_t size, int flags) {
    if (shared) {
        char line[PATH_MAX + 128], path[PATH_MAX] = "";
        int saved = errno;
        FILE *maps = fopen("/proc/self/maps", "r");
        unsigned long low, high;
        while (maps && fgets(line, sizeof line, maps)) {
            char *found = strchr(line, '/');
            if (found && sscanf(line, "%lx-%lx", &low, &high) == 2 && low <= (unsigned long)address &&
                (unsigned long)address < high)
                snprintf(path, sizeof path, "%.*s", (int)strcspn(found, "\n"), found);
        }
        if (maps) fclose(maps);
        errno = saved;
        STOP_IF(injected("msync", path, 0), -1);
    }
    REAL(msync);
    return real(address, size, flags);
}
