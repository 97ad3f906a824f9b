/* System calls that fail below the folder $SHIM_BELOW as $SHIM_FAILS says, such as "fsync_dir=22,rename_dir=38". */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static int below(const char *path) {
    const char *folder = getenv("SHIM_BELOW");
    return folder && *folder && path && strncmp(path, folder, strlen(folder)) == 0;
}

static const char *path_of(int fd, char *memory) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, memory, PATH_MAX - 1);
    memory[length < 0 ? 0 : length] = 0;
    return memory;
}

static int fails(const char *call, const char *path) {
    const char *all = getenv("SHIM_FAILS");
    size_t length = strlen(call);
    if (!all || !below(path)) return 0;
    for (const char *at = all; (at = strstr(at, call)); at += length)
        if ((at == all || at[-1] == ',') && at[length] == '=') {
            errno = atoi(at + length + 1);
            return 1;
        }
    return 0;
}

static int is_folder(const char *path) {
    struct stat found;
    return stat(path, &found) == 0 && S_ISDIR(found.st_mode);
}

#define REAL(type, name, ...) ((type (*)(__VA_ARGS__)) dlsym(RTLD_NEXT, #name))

int fsync(int fd) {
    char memory[PATH_MAX];
    const char *path = path_of(fd, memory);
    if (fails(is_folder(path) ? "fsync_dir" : "fsync_file", path)) return -1;
    return REAL(int, fsync, int)(fd);
}

int rename(const char *old, const char *new) {
    if (fails(is_folder(old) ? "rename_dir" : "rename_file", old)) return -1;
    return REAL(int, rename, const char *, const char *)(old, new);
}

int flock(int fd, int operation) {
    char memory[PATH_MAX];
    if (fails("flock", path_of(fd, memory))) return -1;
    return REAL(int, flock, int, int)(fd, operation);
}

ssize_t pread64(int fd, void *buffer, size_t count, off64_t offset) {
    char memory[PATH_MAX];
    if (fails("pread", path_of(fd, memory))) return -1;
    return REAL(ssize_t, pread64, int, void *, size_t, off64_t)(fd, buffer, count, offset);
}

ssize_t pread(int fd, void *buffer, size_t count, off_t offset) {
    return pread64(fd, buffer, count, offset);
}
