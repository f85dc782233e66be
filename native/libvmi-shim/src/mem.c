/* Handles: small integers that are checked, so that a stale one is an error and not a crash. */
#include <stdlib.h>

#include "shim.h"

#define SLOTS 1024
#define SLOT_BITS 10

static struct {
    struct ca_mem *mem;
    uint32_t generation;
} slots[SLOTS];
static pthread_mutex_t table = PTHREAD_MUTEX_INITIALIZER;

int32_t ca_mem_register(struct ca_mem *mem) {
    pthread_mutex_init(&mem->lock, NULL);
    mem->refs = 1;
    mem->generation = 1;
    pthread_mutex_lock(&table);
    int32_t handle = CA_E_NOMEM;
    /* Slot 0 is left out, so that no handle is 0. */
    for (uint32_t i = 1; i < SLOTS; i++) {
        if (slots[i].mem != NULL) continue;
        slots[i].mem = mem;
        slots[i].generation = (slots[i].generation + 1) & ((1u << (31 - SLOT_BITS)) - 1);
        handle = (int32_t)(slots[i].generation << SLOT_BITS | i);
        break;
    }
    pthread_mutex_unlock(&table);
    return handle < 0 ? ca_fail(handle, "more than %d memories are open", SLOTS - 1) : handle;
}

static struct ca_mem *find(int32_t handle, uint32_t *slot) {
    uint32_t i = (uint32_t)handle & (SLOTS - 1);
    if (handle <= 0 || slots[i].mem == NULL || slots[i].generation != (uint32_t)handle >> SLOT_BITS) return NULL;
    *slot = i;
    return slots[i].mem;
}

static struct ca_mem *acquire(int32_t handle) {
    uint32_t slot;
    pthread_mutex_lock(&table);
    struct ca_mem *mem = find(handle, &slot);
    if (mem != NULL) mem->refs++;
    pthread_mutex_unlock(&table);
    return mem;
}

static void release(struct ca_mem *mem) {
    pthread_mutex_lock(&table);
    uint32_t left = --mem->refs;
    pthread_mutex_unlock(&table);
    if (left > 0) return;
    mem->ops->close(mem);
    pthread_mutex_destroy(&mem->lock);
    free(mem);
}

static int32_t bad_handle(int32_t handle) { return ca_fail(CA_E_HANDLE, "handle %d is not open", (int)handle); }

void ca_cache_drop(struct ca_mem *mem) {
    if (++mem->generation == 0) {
        memset(mem->cache, 0, sizeof mem->cache);
        mem->generation = 1;
    }
}

int32_t ca_enter(int32_t handle, uint32_t flags, struct ca_mem **out) {
    struct ca_mem *mem = acquire(handle);
    if (mem == NULL) return bad_handle(handle);
    pthread_mutex_lock(&mem->lock);
    int32_t result = mem->revoked ? ca_fail(CA_E_REVOKED, "the memory was revoked") : mem->ops->begin(mem);
    /* A page taken away while it is mapped raises SIGBUS, as a file that shrinks does. */
    if (result == CA_OK && (flags & CA_ARMED) == 0) result = ca_guard_arm();
    if (result != CA_OK) {
        pthread_mutex_unlock(&mem->lock);
        release(mem);
        return result;
    }
    if ((flags & CA_KEEP) == 0) ca_cache_drop(mem);
    *out = mem;
    return CA_OK;
}

void ca_leave(struct ca_mem *mem) {
    mem->ops->end(mem);
    pthread_mutex_unlock(&mem->lock);
    release(mem);
}

int32_t ca_mem_close(int32_t handle) {
    uint32_t slot;
    pthread_mutex_lock(&table);
    struct ca_mem *mem = find(handle, &slot);
    if (mem != NULL) slots[slot].mem = NULL;
    pthread_mutex_unlock(&table);
    if (mem == NULL) return bad_handle(handle);
    release(mem);
    return CA_OK;
}

int32_t ca_mem_revoke(int32_t handle) {
    struct ca_mem *mem = acquire(handle);
    if (mem == NULL) return bad_handle(handle);
    pthread_mutex_lock(&mem->lock);
    int32_t result = CA_OK;
    if (!mem->revoked) {
        result = mem->ops->revoke(mem);
        mem->revoked = true;
    }
    pthread_mutex_unlock(&mem->lock);
    release(mem);
    return result;
}

int32_t ca_mem_invalidate(int32_t handle) {
    struct ca_mem *mem = acquire(handle);
    if (mem == NULL) return bad_handle(handle);
    pthread_mutex_lock(&mem->lock);
    ca_cache_drop(mem);
    if (mem->ops->invalidate != NULL && !mem->revoked) mem->ops->invalidate(mem);
    pthread_mutex_unlock(&mem->lock);
    release(mem);
    return CA_OK;
}

uint64_t ca_mem_end(int32_t handle) {
    struct ca_mem *mem = acquire(handle);
    if (mem == NULL) return 0;
    uint64_t end = mem->end;
    release(mem);
    return end;
}
