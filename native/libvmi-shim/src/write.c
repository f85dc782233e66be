#include "shim.h"

#define MAGIC 0x57524954u /* WRIT */
#define CHUNK (256u * 1024u)

struct cursor {
    struct ca_cursor head;
    uint64_t done;
};

int32_t ca_write(int32_t handle, uint32_t flags, uint32_t budget_us, uint64_t space, uint64_t at, const void *bytes,
                 uint32_t size, void *cursor, void *status) {
    bool first;
    int32_t result = ca_cursor_open(cursor, MAGIC, &first);
    if (result != CA_OK) return result;
    struct cursor *c = cursor;
    if (bytes == NULL || status == NULL || !ca_space_valid(space))
        return ca_fail(CA_E_ARGUMENT, "a buffer is missing or the space is malformed");
    if (c->done > size) return ca_fail(CA_E_CURSOR, "the cursor is damaged");
    struct ca_mem *mem;
    result = ca_enter(handle, flags, &mem);
    if (result != CA_OK) return result;
    if (!mem->writable) {
        ca_leave(mem);
        return ca_fail(CA_E_READONLY, "the memory was not opened for writing");
    }
    struct ca_slice slice;
    ca_slice_start(&slice, budget_us);
    struct ca_fault fault = {0, 0, 0, 0};
    while (c->done < size) {
        struct ca_mapping map;
        uint64_t here = at + c->done, part = size - c->done < CHUNK ? size - c->done : CHUNK, copied;
        if (here < at) {
            fault = (struct ca_fault){here, 0, space == 0 ? CA_F_OUTSIDE_RAM : CA_F_NON_CANONICAL, (uint32_t)(space & 7)};
            break;
        }
        if (!ca_translate(mem, space, here, &map, &fault)) break;
        if (map.span != 0 && map.span < part) part = map.span;
        uint32_t reason = ca_phys_write(mem, map.physical, (const uint8_t *)bytes + c->done, part, &copied);
        c->done += copied;
        if (reason != CA_F_NONE) {
            fault = (struct ca_fault){here + copied, map.entry, reason, 0};
            break;
        }
        if (c->done < size && ca_slice_spent(&slice, mem, 1 + (uint32_t)(part >> 11))) {
            result = CA_MORE;
            break;
        }
    }
    /* What was written may have been a page table. */
    ca_cache_drop(mem);
    if (result == CA_OK) c->head.done = 1;
    uint64_t *words = status;
    words[0] = c->done;
    words[1] = fault.reason;
    words[2] = fault.level;
    words[3] = fault.address;
    words[4] = fault.entry;
    ca_leave(mem);
    return result;
}
