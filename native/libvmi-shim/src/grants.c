/* Grants: pages shared with another domain through gntalloc, pages of another domain mapped through gntdev. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "evtchn.h"
#include "grants.h"

/* include/uapi/xen/gntalloc.h and gntdev.h of Linux. */
struct alloc {
    uint16_t domid, flags;
    uint32_t count;
    uint64_t index;
    uint32_t refs[];
};
#define GNTALLOC_ALLOC_GREF _IOC(_IOC_NONE, 'G', 5, 24)
#define GNTALLOC_FLAG_WRITABLE 1
struct map {
    uint32_t count, pad;
    uint64_t index;
    struct {
        uint32_t domid, ref;
    } refs[];
};
#define GNTDEV_MAP_GRANT_REF _IOC(_IOC_NONE, 'G', 0, 24)
struct notify {
    uint64_t index;
    uint32_t action, port;
};
/* One number in both headers. */
#define SET_UNMAP_NOTIFY _IOC(_IOC_NONE, 'G', 7, 16)
#define UNMAP_NOTIFY_CLEAR_BYTE 1
#define UNMAP_NOTIFY_SEND_EVENT 2

static const struct ca_grants nothing = {.fd = -1};

void ca_grants_free(struct ca_grants *grants) {
    if (grants->base != NULL) munmap(grants->base, grants->bytes);
    /* The device forgets the grants with the descriptor; pages the peer still maps stay until it lets go of them. */
    if (grants->fd >= 0) close(grants->fd);
    *grants = nothing;
}

static int32_t map_pages(struct ca_grants *grants, uint32_t pages, const char *what, uint32_t domid) {
    int protection = PROT_READ | (grants->writable ? PROT_WRITE : 0);
    size_t bytes = (size_t)pages * CA_PAGE;
    void *base = mmap(NULL, bytes, protection, MAP_SHARED, grants->fd, (off_t)grants->index);
    if (base == MAP_FAILED) return ca_fail(CA_E_OPEN, "%s domain %u could not be mapped: %s", what, domid, strerror(errno));
    grants->base = base;
    grants->bytes = bytes;
    return CA_OK;
}

/* Module parameter of gntalloc; 0 if unknown. */
static unsigned limit(void) {
    unsigned value = 0;
    FILE *file = fopen("/sys/module/xen_gntalloc/parameters/limit", "re");
    if (file == NULL) return 0;
    if (fscanf(file, "%u", &value) != 1) value = 0;
    fclose(file);
    return value;
}

static int32_t check(uint32_t domid, uint32_t flags, uint32_t pages) {
    if (domid > 0x7fef) return ca_fail(CA_E_ARGUMENT, "%u is no number of a domain", domid);
    if (pages == 0 || pages > CA_GRANTS_MAX || (flags & ~CA_GRANTS_WRITE) != 0)
        return ca_fail(CA_E_ARGUMENT, "1 to %u pages can be shared at a time, not %u", CA_GRANTS_MAX, pages);
    return CA_OK;
}

int32_t ca_grants_make(struct ca_grants *grants, uint32_t domid, uint32_t flags, uint32_t pages, uint32_t *refs) {
    *grants = nothing;
    int32_t result = check(domid, flags, pages);
    if (result != CA_OK) return result;
    grants->fd = ca_device_open("/dev/xen/gntalloc", "xen-gntalloc");
    if (grants->fd < 0) return grants->fd;
    /* sizeof of the header's struct, which has one reference, is the least the device copies. */
    struct alloc *wanted = calloc(1, sizeof *wanted + (size_t)pages * sizeof wanted->refs[0] + 8);
    if (wanted == NULL) {
        ca_grants_free(grants);
        return ca_fail(CA_E_NOMEM, "out of memory");
    }
    wanted->domid = (uint16_t)domid;
    wanted->flags = flags & CA_GRANTS_WRITE ? GNTALLOC_FLAG_WRITABLE : 0;
    wanted->count = pages;
    if (ioctl(grants->fd, GNTALLOC_ALLOC_GREF, wanted) != 0) {
        int error = errno;
        result = error == ENOSPC
                     ? ca_fail(CA_E_NOMEM,
                               "this domain has no %u grants left to share: gntalloc's limit is %u for all its processes (raise "
                               "it: /sys/module/xen_gntalloc/parameters/limit), or Xen's own is reached",
                               pages, limit())
                     : ca_fail(CA_E_SOURCE, "%u pages could not be shared with domain %u: %s", pages, domid, strerror(error));
    } else {
        grants->index = wanted->index;
        grants->shared = grants->writable = true;
        memcpy(refs, wanted->refs, pages * sizeof *refs);
        result = map_pages(grants, pages, "pages shared with", domid);
    }
    free(wanted);
    if (result != CA_OK) ca_grants_free(grants);
    return result;
}

int32_t ca_grants_take(struct ca_grants *grants, uint32_t domid, uint32_t flags, uint32_t pages, const uint32_t *refs) {
    *grants = nothing;
    int32_t result = check(domid, flags, pages);
    if (result != CA_OK) return result;
    grants->fd = ca_device_open("/dev/xen/gntdev", "xen-gntdev");
    if (grants->fd < 0) return grants->fd;
    struct map *wanted = calloc(1, sizeof *wanted + (size_t)pages * sizeof wanted->refs[0]);
    if (wanted == NULL) {
        ca_grants_free(grants);
        return ca_fail(CA_E_NOMEM, "out of memory");
    }
    wanted->count = pages;
    for (uint32_t i = 0; i < pages; i++) {
        wanted->refs[i].domid = domid;
        wanted->refs[i].ref = refs[i];
    }
    if (ioctl(grants->fd, GNTDEV_MAP_GRANT_REF, wanted) != 0) {
        result = ca_fail(CA_E_SOURCE, "%u grants of domain %u could not be taken: %s", pages, domid, strerror(errno));
    } else {
        grants->index = wanted->index;
        grants->writable = flags & CA_GRANTS_WRITE;
        result = map_pages(grants, pages, "grants of", domid);
    }
    free(wanted);
    if (result != CA_OK) ca_grants_free(grants);
    return result;
}

int32_t ca_grants_on_unmap(struct ca_grants *grants, uint64_t at, uint32_t port) {
    if (at >= grants->bytes || !grants->writable)
        return ca_fail(CA_E_ARGUMENT, "no writable byte %llu in %zu", (unsigned long long)at, grants->bytes);
    bool tell = port != CA_EVTCHN_UNBOUND;
    struct notify wanted = {grants->index + at, UNMAP_NOTIFY_CLEAR_BYTE | (tell ? UNMAP_NOTIFY_SEND_EVENT : 0), tell ? port : 0};
    if (ioctl(grants->fd, SET_UNMAP_NOTIFY, &wanted) == 0) return CA_OK;
    return ca_fail(CA_E_SOURCE, "the kernel takes no order for the unmapping: %s", strerror(errno));
}

/* Handles. */
struct held {
    struct ca_object object;
    struct ca_grants grants;
};
static struct ca_objects all = {.what = "set of grants", .lock = PTHREAD_MUTEX_INITIALIZER};

static void free_held(struct ca_object *object) {
    struct held *held = (struct held *)object;
    ca_grants_free(&held->grants);
    free(held);
}

static int32_t hold(struct ca_grants *grants) {
    struct held *held = calloc(1, sizeof *held);
    if (held == NULL) {
        ca_grants_free(grants);
        return ca_fail(CA_E_NOMEM, "out of memory");
    }
    held->object.free = free_held;
    held->grants = *grants;
    return ca_objects_add(&all, &held->object);
}

int32_t ca_grants_share(uint32_t domid, uint32_t flags, uint32_t pages, void *refs) {
    if (refs == NULL) return ca_fail(CA_E_ARGUMENT, "no place for the references");
    struct ca_grants grants;
    int32_t result = ca_grants_make(&grants, domid, flags, pages, refs);
    return result == CA_OK ? hold(&grants) : result;
}

int32_t ca_grants_map(uint32_t domid, uint32_t flags, uint32_t pages, const void *refs) {
    if (refs == NULL) return ca_fail(CA_E_ARGUMENT, "no references");
    struct ca_grants grants;
    int32_t result = ca_grants_take(&grants, domid, flags, pages, refs);
    return result == CA_OK ? hold(&grants) : result;
}

static int32_t inside(const struct ca_grants *grants, uint64_t at, uint32_t bytes) {
    if (at <= grants->bytes && bytes <= grants->bytes - at) return CA_OK;
    return ca_fail(CA_E_ARGUMENT, "%u bytes at %llu are not within the %zu shared", bytes, (unsigned long long)at, grants->bytes);
}

int32_t ca_grants_read(int32_t handle, uint64_t at, void *to, uint32_t bytes) {
    struct held *held = (struct held *)ca_objects_enter(&all, handle);
    if (held == NULL) return CA_E_HANDLE;
    int32_t result = inside(&held->grants, at, bytes);
    if (result == CA_OK && bytes > 0) memcpy(to, held->grants.base + at, bytes);
    ca_objects_leave(&all, &held->object);
    return result;
}

int32_t ca_grants_write(int32_t handle, uint64_t at, const void *from, uint32_t bytes) {
    struct held *held = (struct held *)ca_objects_enter(&all, handle);
    if (held == NULL) return CA_E_HANDLE;
    int32_t result = inside(&held->grants, at, bytes);
    if (result == CA_OK && !held->grants.writable) result = ca_fail(CA_E_READONLY, "these pages were mapped for reading only");
    if (result == CA_OK && bytes > 0) memcpy(held->grants.base + at, from, bytes);
    ca_objects_leave(&all, &held->object);
    return result;
}

int32_t ca_grants_notify(int32_t handle, uint64_t at, uint32_t port) {
    struct held *held = (struct held *)ca_objects_enter(&all, handle);
    if (held == NULL) return CA_E_HANDLE;
    int32_t result = ca_grants_on_unmap(&held->grants, at, port);
    ca_objects_leave(&all, &held->object);
    return result;
}

int32_t ca_grants_close(int32_t handle) { return ca_objects_close(&all, handle); }
