/* Write down, in order, what a process does to the files in one folder: what they hold, and when that was synced.

   Loaded with LD_PRELOAD. POWER_LOSS_FOLDER is the folder, POWER_LOSS_LOG the file that records are appended to; several
   processes may share both. A record is a header of 32 bytes (struct record) and its content. Kinds:

     o  a file was opened: content is its name; offset is 1 if this call created it
     w  content was written at offset
     t  the file was cut, or extended with zeros, to offset
     s  the file was synced
     u  content is a name that was removed
     d  the folder was synced

   tests/support/power_loss.py reads them. -shm is left out: SQLite makes it anew after a loss of power. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

struct record {
    uint64_t kind, file, offset, length;
};

enum { DESCRIPTORS = 65536 };

static char folder[PATH_MAX];
static uint64_t folder_inode;
static uint64_t followed[DESCRIPTORS]; /* the inode of each descriptor of a followed file, or 0 */
static int log_file = -1;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("POWER_LOSS_FOLDER"), *log = getenv("POWER_LOSS_LOG");
    struct stat found;
    if (!path || !log || !realpath(path, folder) || stat(folder, &found)) return;
    folder_inode = found.st_ino;
    log_file = REAL(open64)(log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
}

/* Call and record are one step, for all threads and processes, so that the order of records is that of the calls. */
static void lock(void) {
    pthread_mutex_lock(&mutex);
    flock(log_file, LOCK_EX);
}

static void unlock(void) {
    flock(log_file, LOCK_UN);
    pthread_mutex_unlock(&mutex);
}

static void append(char kind, uint64_t file, uint64_t offset, const void *content, uint64_t length) {
    static char buffer[1 << 20];
    struct record record = {kind, file, offset, length};
    if (sizeof record + length > sizeof buffer) abort();
    memcpy(buffer, &record, sizeof record);
    memcpy(buffer + sizeof record, content, length);
    /* One write, so that a process that is killed leaves no half record. */
    if (REAL(write)(log_file, buffer, sizeof record + length) != (ssize_t)(sizeof record + length)) abort();
}

/* The name in the folder of a file of a database, or NULL. */
static const char *name_of(const char *path) {
    char full[PATH_MAX], *slash;
    const char *name = strrchr(path, '/');
    name = name ? name + 1 : path;
    size_t length = strlen(name);
    if (log_file < 0 || !strstr(name, ".db") || (length > 4 && !strcmp(name + length - 4, "-shm"))) return NULL;
    strncpy(full, path, sizeof full - 1);
    full[sizeof full - 1] = 0;
    slash = strrchr(full, '/');
    if (slash) *slash = 0;
    char resolved[PATH_MAX];
    if (!realpath(slash ? full : ".", resolved) || strcmp(resolved, folder)) return NULL;
    return name;
}

static uint64_t followed_at(int descriptor) {
    return descriptor >= 0 && descriptor < DESCRIPTORS ? followed[descriptor] : 0;
}

static int opened(int descriptor, const char *name, int was_there) {
    struct stat found;
    if (descriptor < 0 || fstat(descriptor, &found)) return descriptor;
    if (descriptor >= DESCRIPTORS) abort();
    followed[descriptor] = found.st_ino;
    append('o', found.st_ino, !was_there, name, strlen(name));
    return descriptor;
}

#define OPEN(function)                                                                                                 \
    int function(const char *path, int flags, ...) {                                                                   \
        va_list arguments;                                                                                             \
        va_start(arguments, flags);                                                                                    \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, mode_t) : 0;                                   \
        va_end(arguments);                                                                                             \
        const char *name = name_of(path);                                                                              \
        if (!name) return REAL(function)(path, flags, mode);                                                           \
        lock();                                                                                                        \
        int was_there = access(path, F_OK) == 0;                                                                       \
        int descriptor = opened(REAL(function)(path, flags, mode), name, was_there);                                   \
        if (descriptor >= 0 && flags & O_TRUNC) append('t', followed[descriptor], 0, "", 0);                           \
        unlock();                                                                                                      \
        return descriptor;                                                                                             \
    }

OPEN(open)
OPEN(open64)

int close(int descriptor) {
    if (followed_at(descriptor)) followed[descriptor] = 0;
    return REAL(close)(descriptor);
}

#define PWRITE(function, offset_type)                                                                                  \
    ssize_t function(int descriptor, const void *content, size_t length, offset_type offset) {                         \
        if (!followed_at(descriptor)) return REAL(function)(descriptor, content, length, offset);                      \
        lock();                                                                                                        \
        ssize_t written = REAL(function)(descriptor, content, length, offset);                                         \
        if (written > 0) append('w', followed[descriptor], offset, content, written);                                  \
        unlock();                                                                                                      \
        return written;                                                                                                \
    }

PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

ssize_t write(int descriptor, const void *content, size_t length) {
    if (!followed_at(descriptor)) return REAL(write)(descriptor, content, length);
    lock();
    off_t offset = lseek(descriptor, 0, SEEK_CUR);
    ssize_t written = REAL(write)(descriptor, content, length);
    if (written > 0) append('w', followed[descriptor], offset, content, written);
    unlock();
    return written;
}

#define TRUNCATE(function, offset_type)                                                                                \
    int function(int descriptor, offset_type length) {                                                                 \
        if (!followed_at(descriptor)) return REAL(function)(descriptor, length);                                       \
        lock();                                                                                                        \
        int result = REAL(function)(descriptor, length);                                                               \
        if (result == 0) append('t', followed[descriptor], length, "", 0);                                             \
        unlock();                                                                                                      \
        return result;                                                                                                 \
    }

TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)

#define SYNC(function)                                                                                                 \
    int function(int descriptor) {                                                                                     \
        struct stat found;                                                                                             \
        uint64_t file = followed_at(descriptor);                                                                       \
        int is_folder = !file && log_file >= 0 && !fstat(descriptor, &found) && found.st_ino == folder_inode;          \
        if (!file && !is_folder) return REAL(function)(descriptor);                                                    \
        lock();                                                                                                        \
        int result = REAL(function)(descriptor);                                                                       \
        if (result == 0) append(file ? 's' : 'd', file, 0, "", 0);                                                     \
        unlock();                                                                                                      \
        return result;                                                                                                 \
    }

SYNC(fsync)
SYNC(fdatasync)

int unlink(const char *path) {
    const char *name = name_of(path);
    if (!name) return REAL(unlink)(path);
    lock();
    int result = REAL(unlink)(path);
    if (result == 0) append('u', 0, 0, name, strlen(name));
    unlock();
    return result;
}
