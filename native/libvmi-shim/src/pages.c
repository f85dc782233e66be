#include "shim.h"

#define MAGIC 0x50414745u /* PAGE */
/* Tables that point at themselves map 2^36 pages: one call looks at no more than 4 TiB of 4 KiB pages. */
#define MAX_PAGES (1ull << 30)

struct cursor {
    struct ca_cursor head;
    uint64_t at;
    uint64_t emitted;
    uint64_t looked;
    /* A run that may still grow. */
    uint64_t va, pa, size;
    uint32_t flags, open;
    uint32_t over; /* OVER_* */
};

enum { OVER_NO, OVER_RANGE, OVER_BOUND };

int32_t ca_pages(int32_t handle, uint32_t flags, uint32_t budget_us, uint64_t space, uint64_t start, uint64_t last,
                 uint32_t want, uint32_t limit, void *out, uint32_t rows, void *cursor, void *status) {
    bool first;
    int32_t result = ca_cursor_open(cursor, MAGIC, &first);
    if (result != CA_OK) return result;
    if (out == NULL || ((uintptr_t)out & 7) != 0 || status == NULL || rows == 0 || limit == 0 || start > last ||
        space == 0 || !ca_space_valid(space))
        return ca_fail(CA_E_ARGUMENT, "a buffer is missing, the range is empty or the space is not virtual");
    struct cursor *c = cursor;
    last |= CA_PAGE - 1;
    if (first) c->at = start & ~(uint64_t)(CA_PAGE - 1);
    if (c->at > last) return ca_fail(CA_E_CURSOR, "the cursor is damaged");
    uint64_t *virtual = out, *physical = virtual + rows, *sizes = physical + rows;
    uint8_t *run_flags = (uint8_t *)(sizes + rows);

    struct ca_mem *mem;
    result = ca_enter(handle, flags, &mem);
    if (result != CA_OK) return result;
    struct ca_slice slice;
    ca_slice_start(&slice, budget_us);
    uint32_t row = 0, end = CA_END_COMPLETE;
    result = CA_OK;
    for (;;) {
        struct ca_mapping map = {0, 0, 0, 0};
        struct ca_fault fault;
        bool mapped = c->over == OVER_NO && ca_translate(mem, space, c->at, &map, &fault) && (map.flags & want) == want;
        bool grows = mapped && c->open != 0 && c->va + c->size == c->at && c->pa + c->size == map.physical &&
                     c->flags == map.flags;
        if (c->open != 0 && !grows) {
            /* The run is whole: give it, or wait for room. */
            if (row == rows) {
                result = CA_MORE;
                break;
            }
            virtual[row] = c->va;
            physical[row] = c->pa;
            sizes[row] = c->size;
            run_flags[row] = (uint8_t)c->flags;
            row++;
            c->open = 0;
            c->emitted++;
        }
        if (c->over != OVER_NO) {
            if (c->over == OVER_BOUND) end = CA_END_LIMIT;
            break;
        }
        if (map.span == 0 || map.span - 1 > last - c->at) map.span = last - c->at + 1;
        if (mapped) {
            if (c->emitted == limit) {
                end = CA_END_LIMIT;
                break;
            }
            if (!grows) {
                c->va = c->at;
                c->pa = map.physical;
                c->size = 0;
                c->flags = map.flags;
                c->open = 1;
            }
            c->size += map.span;
        }
        if (map.span - 1 == last - c->at) {
            c->over = OVER_RANGE;
            continue;
        }
        c->at += map.span;
        if (++c->looked >= MAX_PAGES) {
            c->over = OVER_BOUND;
            continue;
        }
        if (ca_slice_spent(&slice, mem, 1)) {
            result = CA_MORE;
            break;
        }
    }
    if (row < rows) {
        memmove(virtual + row, physical, row * 8);
        memmove(virtual + 2 * row, sizes, row * 8);
        memmove(virtual + 3 * row, run_flags, row);
    }
    uint64_t *words = status;
    words[0] = row;
    words[1] = end;
    words[2] = c->at;
    if (result == CA_OK) c->head.done = 1;
    ca_leave(mem);
    return result;
}
