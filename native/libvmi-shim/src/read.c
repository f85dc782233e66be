#include "shim.h"

#define MAGIC 0x52454144u /* READ */
/* Bytes between two looks at the clock: about 30 us of copying. */
#define CHUNK (256u * 1024u)

struct request {
    uint64_t space, first, count, length, out;
};

struct fault_row {
    uint32_t request, index, reason, level;
    uint64_t address, entry;
};

struct cursor {
    struct ca_cursor head;
    uint32_t request, index;
    uint64_t done;    /* bytes of this address */
    uint32_t faulted; /* this address has its fault row */
};

/* One address, from cursor->done on. True when it is finished; false when the slice or the fault table is. */
static bool read_one(struct ca_mem *mem, const struct request *r, uint64_t address, uint8_t *out, struct cursor *c,
                     struct ca_slice *slice, struct fault_row *faults, uint32_t fault_rows, uint64_t *nfaults) {
    while (c->done < r->length) {
        uint64_t part = r->length - c->done < CHUNK ? r->length - c->done : CHUNK;
        uint64_t at = address + c->done, copied = 0;
        struct ca_fault fault = {0, 0, 0, 0};
        struct ca_mapping map = {0, 0, 0, 0};
        bool good = at >= address && ca_translate(mem, r->space, at, &map, &fault);
        if (at < address) fault = (struct ca_fault){at, 0, CA_F_NON_CANONICAL, (uint32_t)(r->space & 7)};
        if (map.span != 0 && map.span < part) part = map.span;
        if (good) {
            uint32_t reason = ca_phys_read(mem, map.physical, out + c->done, part, &copied);
            if (reason != CA_F_NONE) fault = (struct ca_fault){at + copied, map.entry, reason, 0};
            good = reason == CA_F_NONE;
        }
        if (!good) {
            if (r->space == 0) {
                if (fault.reason == CA_F_NON_CANONICAL) fault.reason = CA_F_OUTSIDE_RAM;
                fault.level = 0;
            }
            if (c->faulted == 0) {
                if (*nfaults == fault_rows) return false;
                faults[(*nfaults)++] =
                    (struct fault_row){c->request, c->index, fault.reason, fault.level, fault.address, fault.entry};
                c->faulted = 1;
            }
            /* The rest of this page is zero; a page further may be there again. */
            if (copied < part && r->space == 0) {
                uint64_t page = CA_PAGE - ((at + copied) & (CA_PAGE - 1));
                if (page < part - copied) part = copied + page;
            }
            memset(out + c->done + copied, 0, part - copied);
        }
        c->done += part;
        if (ca_slice_spent(slice, mem, 1 + (uint32_t)(part >> 11)) && c->done < r->length) return false;
    }
    c->done = 0;
    c->faulted = 0;
    return true;
}

/* The common case, without the book-keeping: how many were read before the first that is not ready, or faults. */
static uint32_t copy_ready(const struct ca_mem *mem, const uint8_t *const *hosts, uint32_t count, uint8_t *into, uint64_t length) {
    uint32_t done = 0;
    for (; done < count && hosts[done] != NULL && !ca_patched(mem); done++, into += length)
        if (!ca_guard_fetch(into, hosts[done], length)) break;
    return done;
}

int32_t ca_read(int32_t handle, uint32_t flags, uint32_t budget_us, const void *requests, uint32_t nrequests,
                const void *addresses, uint32_t naddresses, void *out, uint32_t out_size, void *faults,
                uint32_t fault_rows, void *cursor, void *status) {
    bool first;
    int32_t result = ca_cursor_open(cursor, MAGIC, &first);
    if (result != CA_OK) return result;
    if (requests == NULL || addresses == NULL || out == NULL || faults == NULL || fault_rows == 0 || status == NULL)
        return ca_fail(CA_E_ARGUMENT, "a buffer is missing");
    const struct request *rows = requests;
    for (uint32_t i = 0; i < nrequests; i++) {
        const struct request *r = &rows[i];
        if (!ca_space_valid(r->space)) return ca_fail(CA_E_ARGUMENT, "request %u: the space is malformed", i);
        if (r->length == 0 || r->length > UINT32_MAX || r->count > naddresses || r->first > naddresses - r->count ||
            r->out > out_size || r->count > (out_size - r->out) / r->length)
            return ca_fail(CA_E_ARGUMENT, "request %u reaches outside its tables", i);
    }
    struct cursor *c = cursor;
    if (c->request < nrequests && (c->index > rows[c->request].count || c->done > rows[c->request].length))
        return ca_fail(CA_E_CURSOR, "the cursor is damaged");

    struct ca_mem *mem;
    result = ca_enter(handle, flags, &mem);
    if (result != CA_OK) return result;
    struct ca_slice slice;
    ca_slice_start(&slice, budget_us);
    uint64_t nfaults = 0;
    result = CA_OK;
    for (; c->request < nrequests; c->request++, c->index = 0) {
        const struct request *r = &rows[c->request];
        const uint64_t *at = (const uint64_t *)addresses + r->first;
        const uint64_t length = r->length, count = r->count;
        uint8_t *results = (uint8_t *)out + r->out;
        /* Short reads are located in groups; `hosts` are of the addresses from `from` to `to`. */
        const uint8_t *hosts[CA_GROUP];
        uint32_t from = 0, to = 0, moved = 0;
        while (c->index < count) {
            if (length <= CA_PAGE && c->done == 0) {
                if (c->index >= to || moved != mem->moved) {
                    uint64_t left = count - c->index;
                    from = c->index;
                    to = from + (left < CA_GROUP ? (uint32_t)left : CA_GROUP);
                    ca_locate(mem, r->space, &at[from], to - from, length, hosts);
                    moved = mem->moved;
                }
                uint32_t good = copy_ready(mem, &hosts[c->index - from], to - c->index, results + c->index * length, length);
                c->index += good;
                if (good > 0 && ca_slice_spent(&slice, mem, good * (1 + (uint32_t)(length >> 11)))) goto more;
                if (c->index == to) continue;
            }
            uint8_t *into = results + c->index * length;
            if (!read_one(mem, r, at[c->index], into, c, &slice, faults, fault_rows, &nfaults)) goto more;
            c->index++;
        }
    }
    c->head.done = 1;
    goto out;
more:
    result = CA_MORE;
out:
    ((uint64_t *)status)[0] = nfaults;
    ca_leave(mem);
    return result;
}
