/* The bytes of one ring. All that can go wrong because of the peer goes wrong here, and is checked here. */
#include "vchan.h"

static int32_t impossible(const char *what, const struct ca_ring *ring, uint32_t theirs) {
    return ca_fail(CA_E_PROTOCOL, "the peer wrote impossible indexes: %s (theirs %u, ours %u, ring of %u bytes)", what, theirs,
                   ring->mine, ring->size);
}

int32_t ca_ring_ready(const struct ca_ring *ring, uint32_t *bytes) {
    uint32_t prod = atomic_load_explicit(&ring->shared->prod, memory_order_acquire);
    if (CA_UNLIKELY(atomic_load_explicit(&ring->shared->cons, memory_order_relaxed) != ring->mine))
        return impossible("our place was changed", ring, prod);
    if (CA_UNLIKELY(prod - ring->mine > ring->size)) return impossible("more to read than the ring holds", ring, prod);
    *bytes = prod - ring->mine;
    return CA_OK;
}

int32_t ca_ring_space(const struct ca_ring *ring, uint32_t *bytes) {
    uint32_t cons = atomic_load_explicit(&ring->shared->cons, memory_order_acquire);
    if (CA_UNLIKELY(atomic_load_explicit(&ring->shared->prod, memory_order_relaxed) != ring->mine))
        return impossible("our place was changed", ring, cons);
    if (CA_UNLIKELY(ring->mine - cons > ring->size)) return impossible("more was read than was written", ring, cons);
    *bytes = ring->size - (ring->mine - cons);
    return CA_OK;
}

void ca_ring_take(struct ca_ring *ring, void *to, uint32_t bytes) {
    uint32_t at = ring->mine & (ring->size - 1);
    uint32_t first = bytes < ring->size - at ? bytes : ring->size - at;
    memcpy(to, ring->data + at, first);
    memcpy((uint8_t *)to + first, ring->data, bytes - first);
    ring->mine += bytes;
    atomic_store_explicit(&ring->shared->cons, ring->mine, memory_order_release);
}

void ca_ring_put(struct ca_ring *ring, const void *from, uint32_t bytes) {
    uint32_t at = ring->mine & (ring->size - 1);
    uint32_t first = bytes < ring->size - at ? bytes : ring->size - at;
    memcpy(ring->data + at, from, first);
    memcpy(ring->data, (const uint8_t *)from + first, bytes - first);
    ring->mine += bytes;
    atomic_store_explicit(&ring->shared->prod, ring->mine, memory_order_release);
}
