/*
 * A library with the part of LibVMI's ABI that the shim uses, and its habits that were seen: it talks on standard output, is
 * not made for two threads, keeps a frame it once failed to map as failed until its pages are flushed, flushes translations
 * only for ~0, and does not always say at what stage it failed. Misuse ends the process.
 *
 * Memory is a file: the domain in file mode; in Xen mode the domain is 'stub' or 7, and the file what STUB_LIBVMI_RAM names.
 * STUB_LIBVMI_HOLE: "from-to" (hexadecimal), an address range that is not there.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct vmi {
    int fd;
    uint32_t mode;
    uint64_t size;
    uint64_t from, to;
    uint8_t *failed; /* by frame */
};

static atomic_int inside;
/* Looked at by the tests. */
unsigned stub_instances, stub_reads, stub_page_flushes, stub_translation_flushes;

static void misuse(const char *what) {
    dprintf(2, "stub libvmi: %s\n", what);
    abort();
}

static void come(void) {
    if (atomic_fetch_add(&inside, 1) != 0) misuse("two threads at once");
}

static void go(void) { atomic_fetch_sub(&inside, 1); }

static void holes(struct vmi *vmi) {
    const char *hole = getenv("STUB_LIBVMI_HOLE");
    unsigned long long from = 0, to = 0;
    if (hole != NULL && sscanf(hole, "%llx-%llx", &from, &to) != 2) misuse("STUB_LIBVMI_HOLE");
    vmi->from = from;
    vmi->to = to;
}

uint32_t vmi_events_version(void) {
    const char *version = getenv("STUB_LIBVMI_EVENTS");
    return version == NULL ? 9 : (uint32_t)atoi(version);
}

int vmi_init(struct vmi **out, uint32_t mode, const void *domain, uint64_t flags, void *data, uint32_t *error) {
    (void)error;
    come();
    printf("VMI_WARNING: this goes to standard output\n");
    if (data != NULL) misuse("the memory map of init data overflows");
    if ((mode != 0 && mode != 2) || (flags != 1 && flags != 2)) misuse("mode or flags");
    const char *path = domain;
    if (mode == 0) {
        path = getenv("STUB_LIBVMI_RAM");
        bool known = flags == 2 ? *(const uint64_t *)domain == 7 : strcmp(domain, "stub") == 0;
        if (path == NULL || !known) {
            printf("VMI_ERROR: no such domain\n");
            go();
            return 1;
        }
    }
    struct stat stat;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &stat) != 0) {
        fprintf(stderr, "VMI_ERROR: failed to open file %s\n", path);
        go();
        return 1;
    }
    struct vmi *vmi = calloc(1, sizeof *vmi);
    *vmi = (struct vmi){.fd = fd, .mode = mode, .size = (uint64_t)stat.st_size};
    vmi->failed = calloc(vmi->size / 4096 + 1, 1);
    holes(vmi);
    stub_instances++;
    *out = vmi;
    go();
    return 0;
}

int vmi_destroy(struct vmi *vmi) {
    come();
    close(vmi->fd);
    free(vmi->failed);
    free(vmi);
    stub_instances--;
    go();
    return 0;
}

int vmi_read_pa(struct vmi *vmi, uint64_t at, size_t bytes, void *to, size_t *done) {
    come();
    stub_reads++;
    holes(vmi);
    *done = 0;
    uint64_t frame = at / 4096;
    bool there = at < vmi->size && (at < vmi->from || at >= vmi->to) && !vmi->failed[frame];
    if (there) {
        ssize_t got = pread(vmi->fd, to, bytes, (off_t)at);
        *done = got < 0 ? 0 : (size_t)got;
    } else {
        if (at < vmi->size) vmi->failed[frame] = 1;
        printf("VMI_ERROR: failed to map frame 0x%llx\n", (unsigned long long)frame);
    }
    go();
    return *done == bytes ? 0 : 1;
}

/* Only for programs that use LibVMI beside the shim. Its pages are those of vmi_read_pa. */
uint32_t vmi_init_paging(struct vmi *vmi, uint64_t flags) {
    (void)vmi;
    if (flags != 0) misuse("flags of vmi_init_paging");
    return 4;
}

/* access_context_t (libvmi.h), as far as it is used: version, page mode and mechanism are the only ones there are here. */
struct context {
    uint32_t version, unused, page_mode, nested_mode;
    uint64_t nested_table;
    uint32_t mechanism, unused2;
    uint64_t address, table;
};

/* Four levels (Intel SDM vol. 3A, 4.5). */
static bool translate(struct vmi *vmi, uint64_t table, uint64_t va, uint64_t *pa) {
    for (unsigned shift = 39;; shift -= 9) {
        uint64_t entry, at = (table & 0x000ffffffffff000ull) + (va >> shift & 511) * 8;
        size_t done;
        if (vmi_read_pa(vmi, at, 8, &entry, &done) != 0 || (entry & 1) == 0) return false;
        uint64_t in = (1ull << shift) - 1;
        if (shift == 12 || (shift < 39 && (entry & 0x80) != 0)) {
            *pa = (entry & 0x000ffffffffff000ull & ~in) | (va & in);
            return true;
        }
        table = entry;
    }
}

int vmi_read(struct vmi *vmi, const struct context *context, size_t bytes, void *to, size_t *done) {
    if (context->version != 1 || context->page_mode != 4 || context->mechanism != 1) misuse("the access context");
    for (*done = 0; *done < bytes;) {
        uint64_t at = context->address + *done, pa;
        size_t part = 4096 - (at & 4095), got;
        if (part > bytes - *done) part = bytes - *done;
        if (!translate(vmi, context->table, at, &pa) || vmi_read_pa(vmi, pa, part, (char *)to + *done, &got) != 0) return 1;
        *done += part;
    }
    return 0;
}

int vmi_get_vcpureg(struct vmi *vmi, uint64_t *value, uint64_t reg, unsigned long vcpu) {
    come();
    if (vmi->mode == 2) misuse("registers of a file");
    /* No LSTAR, as with a driver that can not. */
    int result = reg == 71 ? 1 : 0;
    if (result == 0) *value = 0xffffffff00000000ull | vcpu << 16 | reg;
    go();
    return result;
}

uint64_t vmi_get_max_physical_address(struct vmi *vmi) { return vmi->size; }

unsigned vmi_get_num_vcpus(struct vmi *vmi) { return vmi->mode == 2 ? 0 : 2; }

void vmi_v2pcache_flush(struct vmi *vmi, uint64_t table) {
    (void)vmi;
    if (table == ~0ull) stub_translation_flushes++;
}

void vmi_pagecache_flush(struct vmi *vmi) {
    memset(vmi->failed, 0, vmi->size / 4096 + 1);
    stub_page_flushes++;
}

/* What is there in LibVMI and not to be called. */
int vmi_init_complete(void) { misuse("vmi_init_complete changes domain 0"); return 1; }
int vmi_get_access_mode(void) { misuse("vmi_get_access_mode changes domain 0"); return 1; }
char *vmi_read_str(void) { misuse("vmi_read_str has no bound"); return NULL; }
