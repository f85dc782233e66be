/* Domains, vCPUs and pauses, through libxenctrl and libxenstore. */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>

#include "xen.h"

/* struct xen_domctl_getdomaininfo (xen/domctl.h of 4.17); behind it, room for what another release adds, as libxenctrl
 * copies the whole of its own. */
struct info {
    uint16_t domain, pad;
    uint32_t flags;
    uint64_t pages, max_pages, outstanding, shared, paged, shared_info, cpu_time;
    uint32_t online, highest, ssidref;
    uint8_t uuid[16];
    uint8_t rest[1024];
};
_Static_assert(offsetof(struct info, uuid) == 76, "as in xen/domctl.h");

/* struct hvm_hw_cpu (xen/arch-x86/hvm/save.h), which is part of the format of saved guests. */
struct cpu {
    uint8_t fpu[512];
    uint64_t rax, rbx, rcx, rdx, rbp, rsi, rdi, rsp, r8[8];
    uint64_t rip, rflags, cr0, cr2, cr3, cr4, dr[6];
    uint32_t selectors[8], limits[8], idtr_limit, gdtr_limit;
    uint64_t cs_base, ds_base, es_base, fs_base, gs_base, ss_base, tr_base, ldtr_base, idtr_base, gdtr_base;
    uint32_t rights[8];
    uint64_t sysenter[3], shadow_gs, msr_flags, lstar, star, cstar, syscall_mask, efer, tsc_aux, tsc;
    uint32_t pending, error;
    uint8_t rest[1024];
};
#define HVM_SAVE_CPU 2

int32_t ca_xen_find(const struct ca_xen *xen, uint32_t domid, struct ca_xen_domain *domain) {
    struct info info;
    memset(&info, 0, sizeof info);
    int count = xen->domain_list(xen->control, domid, 1, &info);
    if (count < 0) return ca_xen_failed("describe", domid);
    if (count == 0 || info.domain != domid) return ca_fail(CA_E_OPEN, "there is no domain %u", domid);
    *domain = (struct ca_xen_domain){.domid = info.domain,
                                     .flags = info.flags & (CA_XEN_DYING | CA_XEN_HVM | CA_XEN_SHUTDOWN | CA_XEN_PAUSED),
                                     .pages = info.pages,
                                     .online = info.online,
                                     .highest = info.highest};
    memcpy(domain->uuid, info.uuid, sizeof info.uuid);
    return CA_OK;
}

#define XENVER_VERSION 0 /* xen/version.h */

int32_t ca_xen_version(void) {
    const struct ca_xen *xen;
    int32_t result = ca_xen_load(&xen);
    if (result != CA_OK) return result;
    ca_xen_lock();
    int version = xen->version(xen->control, XENVER_VERSION, NULL);
    ca_xen_unlock();
    int error = errno;
    if (version >= 0) return version;
    return error == EPERM ? 0 : ca_fail(CA_E_SOURCE, "Xen could not be asked for its version: %s", strerror(error));
}

int32_t ca_xen_domains(uint32_t first, void *rows, uint32_t count) {
    if (rows == NULL || ((uintptr_t)rows & 7) != 0 || count == 0 || count > 65536)
        return ca_fail(CA_E_ARGUMENT, "the buffer is missing, or the number of rows is wrong");
    const struct ca_xen *xen;
    int32_t result = ca_xen_load(&xen);
    if (result != CA_OK) return result;
    uint64_t *row = rows;
    uint32_t given = 0;
    ca_xen_lock();
    while (given < count) {
        struct info info;
        memset(&info, 0, sizeof info);
        int got = xen->domain_list(xen->control, first, 1, &info);
        if (got < 0) result = ca_xen_failed("list", first);
        if (got <= 0) break;
        row[0] = info.domain;
        row[1] = info.flags & (CA_XEN_DYING | CA_XEN_HVM | CA_XEN_SHUTDOWN | CA_XEN_PAUSED);
        row[2] = info.pages;
        row[3] = info.online;
        row[4] = info.highest;
        memcpy(row + 5, info.uuid, sizeof info.uuid);
        row[7] = 0;
        row += CA_XEN_DOMAIN_WORDS;
        given++;
        first = info.domain + 1u;
    }
    ca_xen_unlock();
    return result == CA_OK ? (int32_t)given : result;
}

int32_t ca_xen_store(const void *path, void *value, uint32_t size) {
    if (path == NULL || value == NULL || size == 0) return ca_fail(CA_E_ARGUMENT, "path or buffer is missing");
    const struct ca_xen *xen;
    int32_t result = ca_xen_load(&xen);
    if (result != CA_OK) return result;
    ca_xen_lock();
    /* One connection a call: it is rare, and nothing is left behind in the daemon. */
    void *store = xen->store_open(0);
    if (store == NULL) {
        result = ca_fail(CA_E_SOURCE, "xenstore can not be reached (%s): is xenstored running?", strerror(errno));
    } else {
        unsigned length = 0;
        char *text = xen->store_read(store, 0, path, &length);
        if (text == NULL) {
            result = ca_fail(errno == ENOENT ? CA_E_OPEN : CA_E_SOURCE, "xenstore %s: %s", (const char *)path,
                             strerror(errno));
        } else {
            uint32_t cut = length < size - 1 ? length : size - 1;
            memcpy(value, text, cut);
            ((char *)value)[cut] = 0;
            free(text);
            result = length > INT32_MAX ? INT32_MAX : (int32_t)length;
        }
        xen->store_close(store);
    }
    ca_xen_unlock();
    return result;
}

int32_t ca_xen_vcpu(uint32_t domid, uint32_t vcpu, void *out) {
    if (out == NULL || ((uintptr_t)out & 7) != 0 || vcpu > UINT16_MAX)
        return ca_fail(CA_E_ARGUMENT, "the buffer is missing, or the vCPU is out of range");
    const struct ca_xen *xen;
    int32_t result = ca_xen_load(&xen);
    if (result != CA_OK) return result;
    struct cpu cpu;
    memset(&cpu, 0, sizeof cpu);
    ca_xen_lock();
    if (xen->hvm_context(xen->control, domid, HVM_SAVE_CPU, (uint16_t)vcpu, &cpu, sizeof cpu) != 0)
        result = errno == ENODATA || errno == ENOENT ? ca_fail(CA_E_OPEN, "vCPU %u of domain %u is not up", vcpu, domid)
                                                     : ca_xen_failed("read the registers of", domid);
    ca_xen_unlock();
    if (result != CA_OK) return result;
    const uint64_t words[CA_XEN_VCPU_WORDS] = {
        cpu.rip,     cpu.rsp,       cpu.rflags,    cpu.cr0,        cpu.cr3,       cpu.cr4,   cpu.efer,
        cpu.gs_base, cpu.shadow_gs, cpu.idtr_base, cpu.idtr_limit, cpu.gdtr_base, cpu.lstar, 0};
    memcpy(out, words, sizeof words);
    return CA_OK;
}

static int32_t change(uint32_t domid, bool pause) {
    const struct ca_xen *xen;
    int32_t result = ca_xen_load(&xen);
    if (result != CA_OK) return result;
    ca_xen_lock();
    int failed = pause ? xen->domain_pause(xen->control, domid) : xen->domain_unpause(xen->control, domid);
    if (failed != 0) result = ca_xen_failed(pause ? "pause" : "unpause", domid);
    ca_xen_unlock();
    return result;
}

int32_t ca_xen_pause(uint32_t domid) { return change(domid, true); }
int32_t ca_xen_unpause(uint32_t domid) { return change(domid, false); }
