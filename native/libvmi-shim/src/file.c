/* The backend of a RAM file: one shared mapping of the file, and a table from guest-physical regions to its offsets. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "shim.h"

/* A RAM file has a few; a dump of a guest that gave pages back, thousands. */
#define MAX_REGIONS 65536u
/* Highest guest-physical address: MAXPHYADDR is at most 52 (Intel SDM vol. 3A, 4.1.4). */
#define MAX_PHYSICAL (1ull << 52)

struct file {
    int fd;
    int prot;
    uint8_t *base;
    uint64_t mapped; /* bytes of the file that are mapped */
    uint64_t there;  /* bytes of these that the file still has, as of this call */
    uint32_t count;
    struct ca_region regions[];
};

/* The first region that ends behind `gpa`, or the end of the table, which is sorted. */
static const struct ca_region *after(const struct file *file, uint64_t gpa) {
    const struct ca_region *region = file->regions;
    for (uint32_t left = file->count; left > 0;) {
        uint32_t half = left / 2;
        if (region[half].gpa + region[half].size > gpa) {
            left = half;
        } else {
            region += half + 1;
            left -= half + 1;
        }
    }
    return region;
}

static uint32_t file_at(struct ca_mem *mem, uint64_t gpa, uint8_t **host, uint64_t *bytes) {
    struct file *file = mem->state;
    const struct ca_region *region = file->regions;
    uint64_t in = gpa - region->gpa;
    if (CA_UNLIKELY(in >= region->size)) {
        region = after(file, gpa);
        if (region == file->regions + file->count || gpa < region->gpa) return CA_F_OUTSIDE_RAM;
        in = gpa - region->gpa;
    }
    uint64_t offset = region->offset + in;
    if (CA_UNLIKELY(offset >= file->there)) return CA_F_SOURCE;
    uint64_t left = region->size - in;
    *bytes = left < file->there - offset ? left : file->there - offset;
    *host = file->base + offset;
    return CA_F_NONE;
}

static uint64_t file_next(struct ca_mem *mem, uint64_t gpa) {
    struct file *file = mem->state;
    for (const struct ca_region *region = after(file, gpa); region < file->regions + file->count; region++) {
        uint64_t from = gpa > region->gpa ? gpa : region->gpa;
        if (from - region->gpa < region->size && region->offset + (from - region->gpa) < file->there) return from;
    }
    return UINT64_MAX;
}

static int32_t file_begin(struct ca_mem *mem) {
    struct file *file = mem->state;
    struct stat now;
    if (fstat(file->fd, &now) != 0) return ca_fail(CA_E_SOURCE, "fstat of the RAM file: %s", strerror(errno));
    /* The rest of a partly cut page reads as zeros without SIGBUS: only the size tells. */
    file->there = (uint64_t)now.st_size < file->mapped ? (uint64_t)now.st_size : file->mapped;
    return CA_OK;
}

static void file_end(struct ca_mem *mem) { (void)mem; }

static int32_t file_revoke(struct ca_mem *mem) {
    struct file *file = mem->state;
    file->there = 0;
    mem->writable = false;
    if (mmap(file->base, file->mapped, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) ==
        MAP_FAILED)
        return ca_fail(CA_E_SOURCE, "mmap of zero pages: %s", strerror(errno));
    return CA_OK;
}

static void file_close(struct ca_mem *mem) {
    struct file *file = mem->state;
    munmap(file->base, file->mapped);
    close(file->fd);
    free(file);
}

static const struct ca_backend file_backend = {.at = file_at,
                                               .next = file_next,
                                               .begin = file_begin,
                                               .end = file_end,
                                               .revoke = file_revoke,
                                               .close = file_close};

static int by_address(const void *a, const void *b) {
    const struct ca_region *left = a, *right = b;
    return left->gpa < right->gpa ? -1 : left->gpa > right->gpa;
}

/* Fills the sorted region table; the address after the last byte of RAM, or 0 with an error set. */
static uint64_t regions(struct file *file, const void *table, uint32_t count, uint64_t size) {
    if (count == 0) {
        file->count = 1;
        file->regions[0] = (struct ca_region){0, size, 0};
    } else {
        file->count = count;
        memcpy(file->regions, table, count * sizeof *file->regions);
        qsort(file->regions, count, sizeof *file->regions, by_address);
    }
    uint64_t end = 0;
    for (uint32_t i = 0; i < file->count; i++) {
        const struct ca_region *r = &file->regions[i];
        if (r->size == 0 || r->size > MAX_PHYSICAL || r->gpa > MAX_PHYSICAL - r->size || r->offset > INT64_MAX - r->size) {
            ca_fail(CA_E_ARGUMENT, "region %u is empty or outside 52 bits", i);
            return 0;
        }
        if (r->gpa < end) {
            ca_fail(CA_E_ARGUMENT, "the regions overlap at 0x%llx", (unsigned long long)r->gpa);
            return 0;
        }
        end = r->gpa + r->size;
    }
    return end;
}

int32_t ca_mem_open_file(const void *path, const void *table, uint32_t count, uint32_t flags) {
    if (path == NULL || count > MAX_REGIONS || (count > 0 && table == NULL) || (flags & ~CA_OPEN_WRITE) != 0)
        return ca_fail(CA_E_ARGUMENT, "path, region count or flags are wrong");
    bool writable = (flags & CA_OPEN_WRITE) != 0;
    /* O_NONBLOCK: a FIFO in place of the file must not hang us. */
    int fd = open(path, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return ca_fail(CA_E_OPEN, "open %s: %s", (const char *)path, strerror(errno));

    int32_t result = CA_E_NOMEM;
    struct stat now;
    struct ca_mem *mem = calloc(1, sizeof *mem);
    struct file *file = calloc(1, sizeof *file + (count > 0 ? count : 1) * sizeof *file->regions);
    if (mem == NULL || file == NULL) {
        ca_fail(CA_E_NOMEM, "out of memory");
        goto failed;
    }
    result = CA_E_OPEN;
    if (fstat(fd, &now) != 0 || !S_ISREG(now.st_mode)) {
        ca_fail(CA_E_OPEN, "%s is not a regular file", (const char *)path);
        goto failed;
    }
    if (now.st_size == 0) {
        ca_fail(CA_E_OPEN, "%s is empty", (const char *)path);
        goto failed;
    }
    file->fd = fd;
    file->mapped = (uint64_t)now.st_size;
    mem->end = regions(file, table, count, file->mapped);
    if (mem->end == 0) {
        result = CA_E_ARGUMENT;
        goto failed;
    }
    file->prot = writable ? PROT_READ | PROT_WRITE : PROT_READ;
    file->base = mmap(NULL, file->mapped, file->prot, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (file->base == MAP_FAILED) {
        ca_fail(CA_E_OPEN, "mmap %s: %s", (const char *)path, strerror(errno));
        goto failed;
    }
    mem->ops = &file_backend;
    mem->state = file;
    mem->writable = writable;
    result = ca_mem_register(mem);
    if (result > 0) return result;
    munmap(file->base, file->mapped);
failed:
    close(fd);
    free(file);
    free(mem);
    return result;
}
