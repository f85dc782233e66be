#define _GNU_SOURCE
#include <time.h>

#include "shim.h"

/* Some 20 us of page walks, and more than a batch of 256 words: looking at the clock is a system call where a clock is not shared with programs (Xen's dom0). */
#define CREDIT 320u

uint64_t ca_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

void ca_slice_start(struct ca_slice *slice, uint32_t budget_us) {
    *slice = (struct ca_slice){0, budget_us, CREDIT};
}

bool ca_slice_renew(struct ca_slice *slice, struct ca_mem *mem) {
    slice->credit = CREDIT;
    mem->costly = false;
    if (slice->budget_us == UINT32_MAX) return false;
    uint64_t now = ca_now();
    /* Time is counted from the first look on: what a short call does before it takes less than the looking. */
    if (slice->deadline == 0) slice->deadline = now + (uint64_t)slice->budget_us * 1000ull;
    return now >= slice->deadline;
}

int32_t ca_cursor_open(void *cursor, uint32_t magic, bool *first) {
    if (cursor == NULL || ((uintptr_t)cursor & 7) != 0)
        return ca_fail(CA_E_ARGUMENT, "the cursor is missing or not 8-byte aligned");
    struct ca_cursor *head = cursor;
    *first = head->magic == 0;
    if (!*first && head->magic != magic) return ca_fail(CA_E_CURSOR, "the cursor belongs to another verb");
    if (head->done != 0) return ca_fail(CA_E_CURSOR, "the cursor is of a call that has ended");
    head->magic = magic;
    return CA_OK;
}
