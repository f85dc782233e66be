/* Private to the shim: the memory object, its backends, and what the verbs share. */
#ifndef CA_SHIM_H
#define CA_SHIM_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "cloudapp.h"

#define CA_PAGE 4096u
#define CA_LIKELY(x) __builtin_expect(!!(x), 1)
#define CA_UNLIKELY(x) __builtin_expect(!!(x), 0)

struct ca_mem;

struct ca_fault {
    uint64_t address;
    uint64_t entry;
    uint32_t reason;
    uint32_t level;
};

/* A guest-physical address that is none. */
#define CA_NOWHERE UINT64_MAX

/*
 * Where a guest's pages come from. Walkers know only this, so that a file, a set of foreign mappings with eviction, or
 * another library can stand behind them.
 */
struct ca_backend {
    /*
     * A host pointer to guest-physical `gpa`, and how many bytes from there lie together in host memory (at least 1).
     * Returns an enum ca_reason. The pointer holds until the next call of at() or end(): a backend may evict.
     */
    uint32_t (*at)(struct ca_mem *mem, uint64_t gpa, uint8_t **host, uint64_t *bytes);
    /* The lowest address from `gpa` on that is RAM, or UINT64_MAX: how scans cross the holes. */
    uint64_t (*next)(struct ca_mem *mem, uint64_t gpa);
    /* Before and after each call of a verb, under the memory's lock. begin() returns CA_OK or an error. */
    int32_t (*begin)(struct ca_mem *mem);
    void (*end)(struct ca_mem *mem);
    /* Puts zero pages in place of every view. */
    int32_t (*revoke)(struct ca_mem *mem);
    void (*close)(struct ca_mem *mem);
    /* Drops views that may no longer be the guest's. May be NULL. */
    void (*invalidate)(struct ca_mem *mem);
    /* The same to write through, where at() may give a copy; CA_F_PATCHED for bytes that hold a breakpoint. NULL: as at(). */
    uint32_t (*at_write)(struct ca_mem *mem, uint64_t gpa, uint8_t **host, uint64_t *bytes);
    /*
     * Where the page's bytes from each of `gpas` on lie, if that is known without work and they are the guest's own; else NULL,
     * as for CA_NOWHERE. Holds until mem->moved changes. NULL: at() never has work to do, and nothing moves.
     */
    void (*ready)(struct ca_mem *mem, const uint64_t *gpas, uint32_t count, const uint8_t **hosts);
    /*
     * The 8 bytes, within a page, at places `step` bytes apart from *gpa to `last`, those of them that are RAM and at most
     * CA_GLANCE: gives their number, and in *gpa the place to go on from. For places so far apart that at() would map
     * much for each and keep it. NULL: at() costs nothing.
     */
    uint32_t (*glance)(struct ca_mem *mem, uint64_t *gpa, uint64_t last, uint64_t step, uint64_t *places, uint64_t *words);
};
#define CA_GLANCE 256u

struct ca_region {
    uint64_t gpa;
    uint64_t size;
    uint64_t offset;
};

/*
 * Cache of upper page-table levels: for 2 MiB of a space, the page table (level 1) below it, or the large page itself.
 * The last level is always read afresh.
 */
struct ca_cached {
    uint64_t space;
    uint64_t region; /* virtual address >> 21 */
    uint64_t base;   /* physical: of the level 1 table, or of this 2 MiB of a large page */
    uint64_t entry;  /* the entry that gave base */
    uint32_t generation;
    uint8_t flags;
    uint8_t large; /* 0: base is a table; 2, 3: base lies in a page of this level */
};
#define CA_CACHE_SLOTS 1024u

struct ca_mem {
    const struct ca_backend *ops;
    void *state; /* the backend's */
    uint64_t end;
    pthread_mutex_t lock;
    uint32_t refs; /* under the handle table's lock */
    bool writable;
    bool revoked;
    /* Set by the backend when it did what takes as long as many page walks: the clock is looked at next. */
    bool costly;
    uint32_t moved; /* changes when what ready() said may no longer hold */
    /* While it is not 0 the memory holds bytes that are ours, and only at() gives the guest's. NULL: never. */
    const _Atomic uint32_t *patches;
    uint32_t generation;
    struct ca_cached cache[CA_CACHE_SLOTS];
};

/* error.c */
int32_t ca_fail(int32_t code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* mem.c: handles. ca_enter() locks the memory and begins a call; ca_leave() ends it. */
int32_t ca_mem_register(struct ca_mem *mem);
int32_t ca_enter(int32_t handle, uint32_t flags, struct ca_mem **mem);
void ca_leave(struct ca_mem *mem);
void ca_cache_drop(struct ca_mem *mem);

/* guard.c: copies that survive a mapping whose file has shrunk. */
int32_t ca_guard_arm(void);
/* Whether processor and kernel have AVX; written when the library is loaded. */
extern uint8_t ca_guard_vectors __attribute__((visibility("hidden")));
/* *to = *(u64 *)from; nonzero if the source faulted. */
int ca_guard_load64(uint64_t *to, const void *from);
/* Returns the bytes NOT copied. */
size_t ca_guard_copy(void *to, const void *from, size_t bytes);
/* All of it, by the shorter of the two; false if the source faulted. */
static inline bool ca_guard_fetch(void *to, const void *from, size_t bytes) {
    return bytes == 8 ? ca_guard_load64(to, from) == 0 : ca_guard_copy(to, from, bytes) == 0;
}

/* phys.c */
uint32_t ca_phys_load64(struct ca_mem *mem, uint64_t gpa, uint64_t *value);
/* Copies up to `bytes`; *done is how many before the reason that is returned. */
uint32_t ca_phys_read(struct ca_mem *mem, uint64_t gpa, void *to, uint64_t bytes, uint64_t *done);
uint32_t ca_phys_write(struct ca_mem *mem, uint64_t gpa, const void *from, uint64_t bytes, uint64_t *done);

/* paging.c */
#define CA_SPACE_ROOT 0x000ffffffffff000ull
bool ca_space_valid(uint64_t space);
struct ca_mapping {
    uint64_t physical;
    uint64_t entry;
    /* Bytes from here to the end of the page; with a fault, to the end of what is missing. 0: to the end of the space. */
    uint64_t span;
    uint32_t flags;
};
/* Translates one address; true if it maps. With false, map->span still says how far the hole goes. */
bool ca_translate(struct ca_mem *mem, uint64_t space, uint64_t va, struct ca_mapping *map, struct ca_fault *fault);
/* Whole of [va, va + bytes), or the first fault. */
bool ca_load(struct ca_mem *mem, uint64_t space, uint64_t va, void *to, uint64_t bytes, struct ca_fault *fault);
bool ca_load64(struct ca_mem *mem, uint64_t space, uint64_t va, uint64_t *value, struct ca_fault *fault);

static inline bool ca_patched(const struct ca_mem *mem) {
    return CA_UNLIKELY(mem->patches != NULL && atomic_load_explicit(mem->patches, memory_order_acquire) != 0);
}

/*
 * Where `length` bytes at each of up to CA_GROUP addresses lie, as ready() says it; NULL for those that cross a page, are not
 * there, or need work. The processor is asked to fetch them all: scattered reads wait for memory (250 ns each where measured),
 * and waits that overlap cost a twentieth.
 */
#define CA_GROUP 32u
void ca_locate(struct ca_mem *mem, uint64_t space, const uint64_t *addresses, uint32_t count, uint64_t length,
               const uint8_t **hosts);

/* slice.c: how long this call may still work. Cost 1 is about one page walk. */
struct ca_slice {
    uint64_t deadline; /* 0: not known yet */
    uint32_t budget_us;
    uint32_t credit;
};
uint64_t ca_now(void);
void ca_slice_start(struct ca_slice *slice, uint32_t budget_us);
bool ca_slice_renew(struct ca_slice *slice, struct ca_mem *mem);
static inline bool ca_slice_spent(struct ca_slice *slice, struct ca_mem *mem, uint32_t cost) {
    if (CA_LIKELY(cost < slice->credit && !mem->costly)) {
        slice->credit -= cost;
        return false;
    }
    return ca_slice_renew(slice, mem);
}

/* Every cursor begins so. */
struct ca_cursor {
    uint32_t magic; /* 0 on the first call, then the verb's */
    uint32_t done;
};
/* Checks a cursor for `magic`; *first if it is new. */
int32_t ca_cursor_open(void *cursor, uint32_t magic, bool *first);

#endif
