/* How far a domain's memory reaches. */
#include <errno.h>
#include <sys/mman.h>

#include "xen.h"

int ca_xen_refusal(int error) {
    if (error < 0) error = -error;
    return error == EACCES || error == EPERM ? error : 0;
}

/* Where the memory of a domain that may only be mapped ends: what Xen would say by XENMEM_maximum_gpfn is not ours to ask. */
struct extent {
    const struct ca_xen *xen;
    void *foreign;
    uint32_t domid;
    int refused;
};

/* Above the last RAM there can be a hole (below 4 GiB, for devices) of up to 2 GiB, but none of 4. */
#define HOLE (4ull << 30)
/* One page of every 2 MiB is tried, so many in a call, up to 2 TiB: what xen_mem.c maps at a time and at most. */
#define STRIDE_SHIFT 21u
#define PROBES 512u
#define MOST (2ull << 40)

static uint64_t last_by_mapping(struct extent *e) {
    uint64_t last = UINT64_MAX;
    uint64_t until = HOLE;
    for (uint64_t at = 0; at < until && at < MOST; at += (uint64_t)PROBES << STRIDE_SHIFT) {
        uint64_t frames[PROBES];
        int errors[PROBES] = {0};
        for (uint32_t i = 0; i < PROBES; i++) frames[i] = (at >> 12) + ((uint64_t)i << (STRIDE_SHIFT - 12));
        errno = 0;
        uint8_t *base = e->xen->foreign_map(e->foreign, e->domid, PROT_READ, PROBES, frames, errors);
        if (base == NULL) e->refused = ca_xen_refusal(errno);
        for (uint32_t i = 0; i < PROBES; i++) {
            if (ca_xen_refusal(errors[i]) != 0) e->refused = ca_xen_refusal(errors[i]);
            if (base == NULL || errors[i] != 0) continue;
            /* The whole run: its missing pages are found when they are asked for. */
            last = frames[i] + (1u << (STRIDE_SHIFT - 12)) - 1;
            until = ((last + 1) << 12) + HOLE;
        }
        if (base != NULL) e->xen->foreign_unmap(e->foreign, base, PROBES);
        if (e->refused != 0) break;
    }
    return last;
}

int32_t ca_xen_measure(const struct ca_xen *xen, uint32_t domid, uint8_t uuid[16], uint64_t *last) {
    struct ca_xen_domain domain;
    int32_t result = ca_xen_find(xen, domid, &domain);
    if (result == CA_OK) memcpy(uuid, domain.uuid, sizeof domain.uuid);
    if (result == CA_OK && (domain.flags & CA_XEN_HVM) == 0)
        result = ca_fail(CA_E_UNSUPPORTED,
                         "domain %u is a PV guest: its page tables hold machine addresses, which need Xen's own table of "
                         "them; run it as type=\"pvh\" or \"hvm\"",
                         domid);
    if (result == CA_OK && (domain.flags & CA_XEN_DYING) != 0) result = ca_fail(CA_E_OPEN, "domain %u is going", domid);
    /* A negative int where it is an error, the frame otherwise. */
    if (result == CA_OK && xen->last_frame(xen->control, domid, last) < 0) result = ca_xen_failed("measure", domid);
    return result;
}

int32_t ca_xen_measure_direct(const struct ca_xen *xen, void *foreign, uint32_t domid, uint64_t *last) {
    if (xen->last_frame(xen->control, domid, last) >= 0) return CA_OK;
    struct extent extent = {xen, foreign, domid, 0};
    *last = last_by_mapping(&extent);
    if (extent.refused != 0) {
        errno = extent.refused;
        return ca_xen_failed("map", domid);
    }
    return *last == UINT64_MAX ? ca_fail(CA_E_OPEN, "domain %u has no memory, or there is none", domid) : CA_OK;
}
