#define _GNU_SOURCE
#include <time.h>

#include "shim.h"

#define CREDIT 128u

uint64_t ca_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

void ca_slice_start(struct ca_slice *slice, uint32_t budget_us) {
    slice->deadline = ca_now() + (uint64_t)budget_us * 1000ull;
    slice->credit = CREDIT;
}

bool ca_slice_renew(struct ca_slice *slice) {
    slice->credit = CREDIT;
    return ca_now() >= slice->deadline;
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
