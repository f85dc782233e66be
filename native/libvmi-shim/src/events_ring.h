/* Private: the ring between the event agent and its client. The layout, and the producer's side. */
#ifndef CA_EVENTS_RING_H
#define CA_EVENTS_RING_H

#include <stdatomic.h>

#include "cloudapp_events.h"
#include "shim.h"

#define CA_RING_MAGIC 0x31676e6972726143ull
#define CA_RING_MIN (64u << 10)
#define CA_RING_MAX (64u << 20)
/* The data begins here in the file. */
#define CA_RING_HEADER 8192u

/*
 * Each side writes its own line only. Head and tail count bytes from the beginning and never wrap in the life of a ring;
 * each side keeps its own in private memory and believes of the other's only what can be.
 */
struct ca_ring_shared {
    uint64_t magic;
    uint32_t size, pad;
    _Alignas(128) _Atomic uint64_t head; /* the producer's */
    /* Events matched and records dropped, by program; the producer's. */
    _Alignas(128) struct {
        _Atomic uint64_t dropped, matched;
    } counts[CA_PROGRAMS_MAX];
    _Alignas(128) _Atomic uint64_t tail; /* the consumer's */
    _Atomic uint32_t sleeping;           /* set by the consumer, taken by the producer when it wakes it */
};
_Static_assert(sizeof(struct ca_ring_shared) <= CA_RING_HEADER, "the header has its room");

_Static_assert(CA_RECORD_BYTES_MAX == (CA_RECORD_WORDS + CA_CAPTURES_MAX * (1 + CA_CAPTURE_BYTES_MAX / 8)) * 8u,
               "every capture of the longest kind");

struct ca_producer {
    struct ca_ring_shared *shared;
    uint8_t *data;
    uint64_t head, tail; /* tail: as last believed */
    uint32_t size;
    uint64_t dropped[CA_PROGRAMS_MAX], matched[CA_PROGRAMS_MAX];
};

/* Maps a ring made by ca_ring_create(); refuses one that could shrink under us, or of another shape. */
int32_t ca_producer_open(struct ca_producer *producer, int fd);
void ca_producer_close(struct ca_producer *producer);
/* Begins the counts of a program anew. */
void ca_producer_reset(struct ca_producer *producer, uint32_t program);
/*
 * Room for a record of `bytes`, or NULL if the consumer is that far behind. To be filled, then published by
 * ca_producer_publish(), which is true if the consumer sleeps and is to be woken.
 */
uint64_t *ca_producer_reserve(struct ca_producer *producer, uint32_t bytes);
bool ca_producer_publish(struct ca_producer *producer, uint32_t bytes);
/* Shows the counts of a program to the consumer. */
void ca_producer_count(struct ca_producer *producer, uint32_t program, bool dropped);

#endif
