/*
 * The ring between the event agent and its client: one producer, one consumer, in a sealed memfd.
 *
 * Sleeping and waking, where a lost wake would be silence for ever: the consumer says that it sleeps and then looks at the
 * head once more; the producer moves the head and then looks whether the consumer sleeps. Both do so in one total order
 * (seq_cst), so at least one of them sees the other.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "events_ring.h"

#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW)
#define RINGS 64
#define RING_BITS 6

struct ring {
    struct ca_ring_shared *shared;
    uint8_t *data;
    uint64_t tail;
    uint32_t size;
    bool broken;
};

static struct {
    struct ring *ring;
    uint32_t generation;
} rings[RINGS];
static pthread_mutex_t table = PTHREAD_MUTEX_INITIALIZER;

static bool size_valid(uint64_t bytes) {
    return bytes >= CA_RING_MIN && bytes <= CA_RING_MAX && (bytes & (bytes - 1)) == 0;
}

static void *map(int fd, uint32_t size) {
    void *at = mmap(NULL, CA_RING_HEADER + (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return at == MAP_FAILED ? NULL : at;
}

/* ---- The producer. ---- */

int32_t ca_producer_open(struct ca_producer *producer, int fd) {
    struct stat now;
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || (seals & SEALS) != SEALS || fstat(fd, &now) != 0 || now.st_size <= CA_RING_HEADER ||
        !size_valid((uint64_t)now.st_size - CA_RING_HEADER))
        return ca_fail(CA_E_ARGUMENT, "the ring is not one of ca_ring_create()");
    uint32_t size = (uint32_t)(now.st_size - CA_RING_HEADER);
    struct ca_ring_shared *shared = map(fd, size);
    if (shared == NULL) return ca_fail(CA_E_NOMEM, "the ring can not be mapped: %s", strerror(errno));
    if (shared->magic != CA_RING_MAGIC || shared->size != size || atomic_load(&shared->head) != 0) {
        munmap(shared, CA_RING_HEADER + (size_t)size);
        return ca_fail(CA_E_ARGUMENT, "the ring has another version, or was used before");
    }
    *producer = (struct ca_producer){.shared = shared, .data = (uint8_t *)shared + CA_RING_HEADER, .size = size};
    return CA_OK;
}

void ca_producer_close(struct ca_producer *producer) {
    if (producer->shared != NULL) munmap(producer->shared, CA_RING_HEADER + (size_t)producer->size);
    producer->shared = NULL;
}

void ca_producer_reset(struct ca_producer *producer, uint32_t program) {
    producer->dropped[program] = producer->matched[program] = 0;
    atomic_store_explicit(&producer->shared->counts[program].dropped, 0, memory_order_relaxed);
    atomic_store_explicit(&producer->shared->counts[program].matched, 0, memory_order_relaxed);
}

void ca_producer_count(struct ca_producer *producer, uint32_t program, bool dropped) {
    if (dropped)
        atomic_store_explicit(&producer->shared->counts[program].dropped, ++producer->dropped[program],
                              memory_order_relaxed);
    atomic_store_explicit(&producer->shared->counts[program].matched, ++producer->matched[program],
                          memory_order_release);
}

static bool fits(struct ca_producer *producer, uint64_t bytes) {
    if (producer->head + bytes - producer->tail <= producer->size) return true;
    uint64_t tail = atomic_load_explicit(&producer->shared->tail, memory_order_acquire);
    /* A tail that goes back, or beyond the head, is no tail: the consumer then gets no more room. */
    if (tail < producer->tail || tail > producer->head || (tail & 7) != 0) return false;
    producer->tail = tail;
    return producer->head + bytes - tail <= producer->size;
}

uint64_t *ca_producer_reserve(struct ca_producer *producer, uint32_t bytes) {
    uint64_t at = producer->head & (producer->size - 1), end = producer->size - at;
    uint64_t skip = end < bytes ? end : 0;
    if (!fits(producer, skip + bytes)) return NULL;
    if (skip != 0) {
        const uint32_t head[2] = {(uint32_t)(skip / 8), CA_RECORD_SKIP};
        memcpy(producer->data + at, head, sizeof head);
        producer->head += skip;
        at = 0;
    }
    return (uint64_t *)(void *)(producer->data + at);
}

bool ca_producer_publish(struct ca_producer *producer, uint32_t bytes) {
    struct ca_ring_shared *shared = producer->shared;
    producer->head += bytes;
    atomic_store_explicit(&shared->head, producer->head, memory_order_seq_cst);
    return CA_UNLIKELY(atomic_load_explicit(&shared->sleeping, memory_order_seq_cst) != 0) &&
           atomic_exchange_explicit(&shared->sleeping, 0, memory_order_seq_cst) != 0;
}

/* ---- The consumer. ---- */

static struct ring *find(int32_t handle, uint32_t *slot) {
    uint32_t i = (uint32_t)handle & (RINGS - 1);
    if (handle <= 0 || rings[i].ring == NULL || rings[i].generation != (uint32_t)handle >> RING_BITS) return NULL;
    *slot = i;
    return rings[i].ring;
}

static int32_t bad_handle(int32_t handle) { return ca_fail(CA_E_HANDLE, "ring %d is not open", (int)handle); }

int32_t ca_ring_create(uint32_t bytes, void *fd_out) {
    if (fd_out == NULL || !size_valid(bytes))
        return ca_fail(CA_E_ARGUMENT, "a ring has a power of two of bytes, from 64 KiB to 64 MiB");
    int fd = memfd_create("cloudapp-events", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) return ca_fail(CA_E_NOMEM, "memfd_create: %s", strerror(errno));
    struct ring *ring = calloc(1, sizeof *ring);
    int32_t result = CA_E_NOMEM;
    if (ring == NULL || ftruncate(fd, (off_t)CA_RING_HEADER + bytes) != 0 || fcntl(fd, F_ADD_SEALS, SEALS | F_SEAL_SEAL) != 0 ||
        (ring->shared = map(fd, bytes)) == NULL) {
        result = ca_fail(CA_E_NOMEM, "a ring of %u bytes can not be made: %s", bytes, strerror(errno));
        goto failed;
    }
    ring->data = (uint8_t *)ring->shared + CA_RING_HEADER;
    ring->size = bytes;
    ring->shared->magic = CA_RING_MAGIC;
    ring->shared->size = bytes;
    pthread_mutex_lock(&table);
    for (uint32_t i = 1; i < RINGS && result < 0; i++) {
        if (rings[i].ring != NULL) continue;
        rings[i].ring = ring;
        rings[i].generation = (rings[i].generation + 1) & ((1u << (31 - RING_BITS)) - 1);
        result = (int32_t)(rings[i].generation << RING_BITS | i);
    }
    pthread_mutex_unlock(&table);
    if (result < 0) {
        munmap(ring->shared, CA_RING_HEADER + (size_t)bytes);
        result = ca_fail(CA_E_NOMEM, "more than %d rings are open", RINGS - 1);
        goto failed;
    }
    memcpy(fd_out, &fd, sizeof fd);
    return result;
failed:
    free(ring);
    close(fd);
    return result;
}

int32_t ca_ring_close(int32_t handle) {
    uint32_t slot;
    pthread_mutex_lock(&table);
    struct ring *ring = find(handle, &slot);
    if (ring != NULL) {
        rings[slot].ring = NULL;
        munmap(ring->shared, CA_RING_HEADER + (size_t)ring->size);
        free(ring);
    }
    pthread_mutex_unlock(&table);
    return ring == NULL ? bad_handle(handle) : CA_OK;
}

static int32_t broken(struct ring *ring, const char *what) {
    ring->broken = true;
    return ca_fail(CA_E_SOURCE, "the event ring is damaged: %s", what);
}

static int32_t drain(struct ring *ring, uint8_t *to, uint32_t bytes) {
    struct ca_ring_shared *shared = ring->shared;
    uint32_t copied = 0;
    if (ring->broken) return ca_fail(CA_E_SOURCE, "the event ring is damaged");
    if (atomic_load_explicit(&shared->sleeping, memory_order_relaxed) != 0)
        atomic_store_explicit(&shared->sleeping, 0, memory_order_relaxed);
    for (;;) {
        uint64_t head = atomic_load_explicit(&shared->head, memory_order_seq_cst);
        if (head - ring->tail > ring->size || (head & 7) != 0) return broken(ring, "its head is out of range");
        while (ring->tail != head) {
            uint64_t at = ring->tail & (ring->size - 1);
            uint32_t words[2];
            memcpy(words, ring->data + at, sizeof words);
            uint64_t length = (uint64_t)words[0] * 8;
            bool skip = words[1] == CA_RECORD_SKIP;
            if (length == 0 || length > head - ring->tail || length > ring->size - at ||
                (!skip && (length < CA_RECORD_WORDS * 8 || length > CA_RECORD_BYTES_MAX || words[1] >= CA_PROGRAMS_MAX)))
                return broken(ring, "a record is of an impossible length or program");
            if (!skip) {
                if (length > bytes - copied) {
                    if (copied == 0)
                        return ca_fail(CA_E_ARGUMENT, "the next record has %u bytes, the buffer %u", (uint32_t)length, bytes);
                    goto out;
                }
                memcpy(to + copied, ring->data + at, length);
                /* The producer may have changed them since they were looked at. */
                memcpy(to + copied, words, sizeof words);
                copied += (uint32_t)length;
            }
            ring->tail += length;
        }
        if (copied != 0) goto out;
        atomic_store_explicit(&shared->tail, ring->tail, memory_order_release);
        atomic_store_explicit(&shared->sleeping, 1, memory_order_seq_cst);
        if (atomic_load_explicit(&shared->head, memory_order_seq_cst) == head) return 0;
        atomic_store_explicit(&shared->sleeping, 0, memory_order_relaxed);
    }
out:
    atomic_store_explicit(&shared->tail, ring->tail, memory_order_release);
    return (int32_t)copied;
}

int32_t ca_ring_drain(int32_t handle, void *to, uint32_t bytes) {
    if (to == NULL || bytes > INT32_MAX) return ca_fail(CA_E_ARGUMENT, "the buffer is missing or too large");
    uint32_t slot;
    /* One lock for all rings: draining is copying, and nearly always done by one thread. */
    pthread_mutex_lock(&table);
    struct ring *ring = find(handle, &slot);
    int32_t result = ring == NULL ? bad_handle(handle) : drain(ring, to, bytes);
    pthread_mutex_unlock(&table);
    return result;
}

int32_t ca_ring_counts(int32_t handle, uint32_t program, void *counts) {
    if (counts == NULL || ((uintptr_t)counts & 7) != 0 || program >= CA_PROGRAMS_MAX)
        return ca_fail(CA_E_ARGUMENT, "the buffer is missing, or there is no such program");
    uint32_t slot;
    pthread_mutex_lock(&table);
    struct ring *ring = find(handle, &slot);
    if (ring != NULL) {
        /* Matched first: a drop that is counted meanwhile is then missing in both, not in one. */
        uint64_t words[2];
        words[1] = atomic_load_explicit(&ring->shared->counts[program].matched, memory_order_acquire);
        words[0] = atomic_load_explicit(&ring->shared->counts[program].dropped, memory_order_relaxed);
        if (words[0] > words[1]) words[0] = words[1];
        memcpy(counts, words, sizeof words);
    }
    pthread_mutex_unlock(&table);
    return ring == NULL ? bad_handle(handle) : CA_OK;
}
