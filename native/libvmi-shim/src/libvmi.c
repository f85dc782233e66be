/*
 * The backend of LibVMI: pages are copied out of it, one at a time as that is how it reads, and kept for the time of one
 * call of a verb. Strings and structures are read by our own bounded verbs on top; nothing of LibVMI parses guest data.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "libvmi.h"

#define PAGES 256u
#define RUN_SHIFT 21u
#define NONE UINT64_MAX
/* 128 GiB of guest memory: the part of it whose holes scans know. One page of every 2 MiB is tried. */
#define MAX_RUNS (1ull << 16)
/* Highest guest-physical address: MAXPHYADDR is at most 52 (Intel SDM vol. 3A, 4.1.4). */
#define MAX_PHYSICAL (1ull << 52)

struct libvmi {
    const struct ca_vmi *lib;
    void *vmi;
    bool inside;  /* this call of a verb has entered LibVMI */
    bool flushed; /* and has dropped LibVMI's pages once */
    uint32_t vcpus;
    uint64_t runs;
    uint64_t *ram; /* one bit for 2 MiB: it holds RAM, as far as its first page tells */
    uint64_t numbers[PAGES];
    uint8_t pages[PAGES][CA_PAGE];
};

static void enter(struct libvmi *v) {
    if (v->inside) return;
    ca_vmi_enter();
    v->inside = true;
}

static void leave(struct libvmi *v) {
    if (!v->inside) return;
    ca_vmi_leave();
    v->inside = false;
}

static bool fetch(struct libvmi *v, uint64_t number, uint8_t *page) {
    size_t done = 0;
    enter(v);
    return v->lib->read_pa(v->vmi, number * CA_PAGE, CA_PAGE, page, &done) == 0 && done == CA_PAGE;
}

static uint32_t libvmi_at(struct ca_mem *mem, uint64_t gpa, uint8_t **host, uint64_t *bytes) {
    struct libvmi *v = mem->state;
    if (CA_UNLIKELY(gpa >= mem->end)) return CA_F_OUTSIDE_RAM;
    uint64_t number = gpa / CA_PAGE, in = gpa % CA_PAGE;
    uint32_t slot = (uint32_t)(number * 0x9e3779b97f4a7c15ull >> 56);
    if (v->numbers[slot] != number) {
        v->numbers[slot] = NONE;
        if (!fetch(v, number, v->pages[slot])) {
            /* A frame LibVMI once failed to map stays failed until its pages are dropped; it may have come since. That
             * costs LibVMI all its mappings: once a call, and not for a hole. */
            uint64_t run = gpa >> RUN_SHIFT;
            if (v->flushed || (run < v->runs && (v->ram[run / 64] >> (run % 64) & 1) == 0)) return CA_F_OUTSIDE_RAM;
            v->flushed = true;
            v->lib->pagecache_flush(v->vmi);
            if (!fetch(v, number, v->pages[slot])) return CA_F_OUTSIDE_RAM;
        }
        v->numbers[slot] = number;
    }
    uint64_t left = mem->end - gpa;
    *bytes = left < CA_PAGE - in ? left : CA_PAGE - in;
    *host = v->pages[slot] + in;
    return CA_F_NONE;
}

/* A page costs a call of LibVMI: it is fetched when it is read. */
static void libvmi_ready(struct ca_mem *mem, const uint64_t *gpas, uint32_t count, const uint8_t **hosts) {
    (void)mem;
    (void)gpas;
    memset(hosts, 0, count * sizeof *hosts);
}

static uint64_t libvmi_next(struct ca_mem *mem, uint64_t gpa) {
    const struct libvmi *v = mem->state;
    if (gpa >= mem->end) return UINT64_MAX;
    for (uint64_t run = gpa >> RUN_SHIFT; run < v->runs; run++) {
        if (v->ram[run / 64] == 0) run |= 63;
        else if ((v->ram[run / 64] >> (run % 64) & 1) != 0) {
            uint64_t from = run << RUN_SHIFT;
            return from > gpa ? from : gpa;
        }
    }
    uint64_t behind = v->runs << RUN_SHIFT;
    if (behind >= mem->end) return UINT64_MAX;
    return behind > gpa ? behind : gpa;
}

static void survey(struct ca_mem *mem) {
    struct libvmi *v = mem->state;
    memset(v->ram, 0, (v->runs + 63) / 64 * 8);
    for (uint64_t run = 0; run < v->runs; run++)
        if (fetch(v, run << (RUN_SHIFT - 12), v->pages[0])) v->ram[run / 64] |= 1ull << (run % 64);
    memset(v->numbers, 0xff, sizeof v->numbers);
}

static int32_t libvmi_begin(struct ca_mem *mem) {
    struct libvmi *v = mem->state;
    /* Guest data are never kept from call to call. */
    memset(v->numbers, 0xff, sizeof v->numbers);
    v->flushed = false;
    return CA_OK;
}

static void libvmi_end(struct ca_mem *mem) { leave(mem->state); }

static void libvmi_invalidate(struct ca_mem *mem) {
    struct libvmi *v = mem->state;
    enter(v);
    /* ~0: with a page table, LibVMI's flush does nothing. */
    v->lib->v2pcache_flush(v->vmi, ~0ull);
    v->lib->pagecache_flush(v->vmi);
    survey(mem);
    leave(v);
}

static void destroy(struct libvmi *v) {
    if (v->vmi == NULL) return;
    enter(v);
    v->lib->destroy(v->vmi);
    leave(v);
    v->vmi = NULL;
}

static int32_t libvmi_revoke(struct ca_mem *mem) {
    struct libvmi *v = mem->state;
    destroy(v);
    memset(v->pages, 0, sizeof v->pages);
    return CA_OK;
}

static void libvmi_close(struct ca_mem *mem) {
    struct libvmi *v = mem->state;
    destroy(v);
    free(v->ram);
    free(v);
}

static const struct ca_backend libvmi_backend = {.at = libvmi_at,
                                                 .ready = libvmi_ready,
                                                 .next = libvmi_next,
                                                 .begin = libvmi_begin,
                                                 .end = libvmi_end,
                                                 .revoke = libvmi_revoke,
                                                 .close = libvmi_close,
                                                 .invalidate = libvmi_invalidate};

static int32_t init(struct libvmi *v, uint32_t kind, const char *target) {
    uint64_t domid = 0;
    const void *domain = target;
    if (kind == CA_LIBVMI_XEN_ID) {
        char *end;
        errno = 0;
        domid = strtoull(target, &end, 10);
        if (errno != 0 || *target < '0' || *target > '9' || *end != 0 || domid > 0x7fef)
            return ca_fail(CA_E_ARGUMENT, "'%s' is no number of a domain", target);
        domain = &domid;
    }
    uint32_t mode = kind == CA_LIBVMI_FILE ? CA_VMI_FILE : CA_VMI_XEN;
    uint64_t flags = kind == CA_LIBVMI_XEN_ID ? CA_VMI_INIT_ID : CA_VMI_INIT_NAME;
    /* Not always written. */
    uint32_t stage = 0;
    void *vmi = NULL;
    enter(v);
    if (v->lib->init(&vmi, mode, domain, flags, NULL, &stage) == 0 && vmi != NULL) {
        v->vmi = vmi;
        return CA_OK;
    }
    char said[200];
    ca_vmi_said(said, sizeof said);
    leave(v);
    return ca_fail(CA_E_OPEN, "LibVMI does not open '%s' (stage %u)%s%s", target, stage, said[0] == 0 ? "" : ": ", said);
}

int32_t ca_libvmi_open(const void *library, uint32_t kind, const void *target) {
    if (library == NULL || target == NULL || kind > CA_LIBVMI_XEN_ID)
        return ca_fail(CA_E_ARGUMENT, "library, kind or target are wrong");
    const struct ca_vmi *lib;
    int32_t result = ca_vmi_load(library, &lib);
    if (result != CA_OK) return result;
    struct ca_mem *mem = calloc(1, sizeof *mem);
    struct libvmi *v = calloc(1, sizeof *v);
    if (mem == NULL || v == NULL) {
        result = ca_fail(CA_E_NOMEM, "out of memory");
        goto failed;
    }
    v->lib = lib;
    result = init(v, kind, target);
    if (result != CA_OK) goto failed;
    mem->ops = &libvmi_backend;
    mem->state = v;
    mem->end = lib->get_max_physical_address(v->vmi);
    v->vcpus = kind == CA_LIBVMI_FILE ? 0 : lib->get_num_vcpus(v->vmi);
    leave(v);
    if (mem->end == 0 || mem->end > MAX_PHYSICAL || v->vcpus > 4096) {
        result = ca_fail(CA_E_SOURCE, "LibVMI tells of 0x%" PRIx64 " bytes of memory and %u vCPUs", mem->end, v->vcpus);
        goto failed;
    }
    v->runs = (mem->end + (1ull << RUN_SHIFT) - 1) >> RUN_SHIFT;
    if (v->runs > MAX_RUNS) v->runs = MAX_RUNS;
    v->ram = calloc((v->runs + 63) / 64, 8);
    if (v->ram == NULL) {
        result = ca_fail(CA_E_NOMEM, "out of memory");
        goto failed;
    }
    survey(mem);
    leave(v);
    result = ca_mem_register(mem);
    if (result > 0) return result;
failed:
    if (v != NULL) {
        destroy(v);
        free(v->ram);
    }
    free(v);
    free(mem);
    return result;
}

static int32_t own(int32_t handle, struct ca_mem **mem) {
    int32_t result = ca_enter(handle, CA_KEEP, mem);
    if (result != CA_OK || (*mem)->ops == &libvmi_backend) return result;
    ca_leave(*mem);
    return ca_fail(CA_E_ARGUMENT, "the handle is none of LibVMI");
}

int32_t ca_libvmi_vcpus(int32_t handle) {
    struct ca_mem *mem;
    int32_t result = own(handle, &mem);
    if (result != CA_OK) return result;
    result = (int32_t)((struct libvmi *)mem->state)->vcpus;
    ca_leave(mem);
    return result;
}

int32_t ca_libvmi_vcpu(int32_t handle, uint32_t vcpu, void *out) {
    /* RIP, RSP, RFLAGS, CR0, CR3, CR4, MSR_EFER, GS_BASE, SHADOW_GS, IDTR_BASE, IDTR_LIMIT, GDTR_BASE, MSR_LSTAR of libvmi.h. */
    static const uint8_t numbers[CA_LIBVMI_VCPU_WORDS - 1] = {8, 7, 9, 18, 20, 21, 74, 51, 68, 55, 45, 56, 71};
    if (out == NULL || ((uintptr_t)out & 7) != 0) return ca_fail(CA_E_ARGUMENT, "the buffer is missing");
    struct ca_mem *mem;
    int32_t result = own(handle, &mem);
    if (result != CA_OK) return result;
    struct libvmi *v = mem->state;
    uint64_t words[CA_LIBVMI_VCPU_WORDS] = {0};
    if (vcpu >= v->vcpus) {
        result = ca_fail(CA_E_ARGUMENT, "there is no vCPU %u of %u", vcpu, v->vcpus);
    } else {
        enter(v);
        for (uint32_t i = 0; i < CA_LIBVMI_VCPU_WORDS - 1; i++)
            if (v->lib->get_vcpureg(v->vmi, &words[i], numbers[i], vcpu) == 0)
                words[CA_LIBVMI_VCPU_WORDS - 1] |= 1ull << i;
        memcpy(out, words, sizeof words);
    }
    ca_leave(mem);
    return result;
}
