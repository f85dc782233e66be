#define _GNU_SOURCE
#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#include "traced_domain.h"

#define FRAMES 80u
#define RING_FRAME 70u

const uint8_t traced_nop5[5] = {0x0f, 0x1f, 0x44, 0x00, 0x00}, traced_sldt[3] = {0x0f, 0x00, 0xc0};
struct traced *traced;
uint8_t *traced_ram;
static int file;

static void step(void) {
    if (traced->limit != 0 && ++traced->steps == traced->limit) _exit(9);
}

static void *open_any(void *logger, unsigned flags) {
    (void)logger, (void)flags;
    return &file;
}
static int close_any(void *handle) {
    (void)handle;
    return 0;
}
static void *map(void *handle, uint32_t domid, int prot, size_t pages, const uint64_t *frames, int *errors) {
    (void)handle;
    CHECK_EQUAL(domid, DOMID);
    step();
    if (traced->gone) {
        errno = ESRCH;
        return NULL;
    }
    uint8_t *base = mmap(NULL, pages * CA_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (size_t i = 0; i < pages; i++) {
        errors[i] = frames[i] >= FRAMES ? EINVAL : 0;
        if (errors[i] == 0) CHECK(mmap(base + i * CA_PAGE, CA_PAGE, prot, MAP_SHARED | MAP_FIXED, file, (off_t)(frames[i] * CA_PAGE)) != MAP_FAILED);
    }
    return base;
}
static int unmap(void *handle, void *at, size_t pages) {
    (void)handle;
    return munmap(at, pages * CA_PAGE);
}
static int list(void *control, uint32_t first, unsigned count, void *rows) {
    (void)control, (void)count;
    if (first > DOMID || traced->gone) return 0;
    uint32_t *words = rows;
    *(uint16_t *)rows = DOMID;
    words[1] = CA_XEN_HVM | (traced->pauses > 0 ? CA_XEN_PAUSED : 0);
    words[16] = 2;
    words[17] = 1;
    memset((uint8_t *)rows + 76, 0xab, 16);
    return 1;
}
static int last(void *control, uint32_t domid, uint64_t *frame) {
    (void)control, (void)domid;
    *frame = FRAMES - 1;
    return 0;
}
static int pause_one(void *control, uint32_t domid) {
    (void)control, (void)domid;
    step();
    if (traced->gone) {
        errno = ESRCH;
        return -1;
    }
    traced->pauses++;
    step();
    return 0;
}
static int unpause_one(void *control, uint32_t domid) {
    (void)control, (void)domid;
    step();
    if (traced->gone || traced->pauses == 0) {
        errno = traced->gone ? ESRCH : EINVAL;
        return -1;
    }
    traced->pauses--;
    step();
    return 0;
}
static const struct ca_xen traced_xen = {.foreign_open = open_any, .foreign_close = close_any, .foreign_map = map, .foreign_unmap = unmap,
                                   .domain_list = list, .last_frame = last, .domain_pause = pause_one, .domain_unpause = unpause_one};

struct vm_event_ring *traced_ring(void) { return (struct vm_event_ring *)(void *)(traced_ram + RING_FRAME * CA_PAGE); }
static int parameter(void *control, uint32_t domid, uint32_t number, uint64_t *value) {
    (void)control, (void)domid;
    CHECK_EQUAL(number, HVM_PARAM_MONITOR_RING_PFN);
    *value = RING_FRAME;
    return traced->gone ? -1 : 0;
}
static int page_type(void *control, uint32_t domid, int type, uint64_t first, uint64_t pages) {
    (void)control, (void)domid, (void)pages;
    CHECK_EQUAL(first, RING_FRAME);
    step();
    traced->readonly = type == HVMMEM_ram_ro;
    return 0;
}
static int vm_event(void *control, uint32_t domid, unsigned operation, unsigned mode, uint32_t *port) {
    (void)control, (void)domid, (void)mode, (void)port;
    step();
    if (traced->gone) {
        errno = ESRCH;
        return -1;
    }
    traced->restored_first &= memcmp(traced_ram + CODE, traced_nop5, sizeof traced_nop5) == 0;
    if (operation == XEN_VM_EVENT_RESUME && traced->enabled) {
        traced->resumed++;
        if (traced_ring()->rsp_prod == traced_ring()->req_prod) {
            if (traced->waiting > 0) traced->unrun = 5;
            traced->waiting = 0;
        }
    }
    if (operation == XEN_VM_EVENT_DISABLE) {
        traced->answered_first &= traced->waiting == 0;
        traced->ran_first &= traced->unrun == 0;
        traced->enabled = 0;
    }
    step();
    return 0;
}
/* vCPU 0 is blocked, vCPU 1 waits for its turn. */
static int vcpu(void *control, uint32_t domid, uint32_t number, struct ca_xen_vcpu *info) {
    (void)control, (void)domid;
    CHECK(number < 2);
    if (number == 1 && traced->unrun > 0 && traced->pauses == 0 && --traced->unrun == 0) traced->ran++;
    *info = (struct ca_xen_vcpu){.vcpu = number, .online = 1, .blocked = number == 0, .cpu_time = 1000 + traced->ran};
    if (number == 1 && traced->unrun == 0 && traced->pauses == 0) traced->ran++;
    return 0;
}
static int arm1(void *control, uint32_t domid, bool enable) {
    (void)control, (void)domid;
    step();
    CHECK(!enable);
    traced->armed = 0;
    return 0;
}
static int arm_register(void *control, uint32_t domid, uint16_t index, bool enable, bool sync, uint64_t mask, bool change) {
    (void)index, (void)sync, (void)mask, (void)change;
    return arm1(control, domid, enable);
}
static int arm_msr(void *control, uint32_t domid, uint32_t msr, bool enable, bool change) {
    (void)msr, (void)change;
    return arm1(control, domid, enable);
}
static int arm_request(void *control, uint32_t domid, bool enable, bool sync, bool user) {
    (void)sync, (void)user;
    return arm1(control, domid, enable);
}
static int inject(void *control, uint32_t domid, int vcpu, uint8_t vector, uint8_t type, uint32_t error, uint8_t length, uint64_t cr2) {
    (void)control, (void)domid, (void)vcpu, (void)error, (void)cr2;
    CHECK(vector == 3 && type == 6 && length == 1);
    traced->injected++;
    return 0;
}
static const struct ca_xen_events traced_events = {.parameter = parameter, .page_type = page_type, .vm_event = vm_event, .vcpu = vcpu, .on_cpuid = arm1,
                                                 .on_descriptor = arm1, .on_breakpoint = arm1, .on_register = arm_register,
                                                 .on_msr = arm_msr, .on_request = arm_request, .inject = inject};

void traced_new(void) {
    ca_xen_use(&traced_xen);
    ca_xen_use_events(&traced_events);
    traced = mmap(NULL, sizeof *traced, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    file = memfd_create("domain", 0);
    CHECK(ftruncate(file, FRAMES * CA_PAGE) == 0);
    traced_ram = mmap(NULL, FRAMES * CA_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    guest_fill(traced_ram);
}

void traced_end(void) {
    munmap(traced_ram, FRAMES * CA_PAGE);
    munmap(traced, sizeof *traced);
    close(file);
    ca_xen_use(NULL);
    ca_xen_use_events(NULL);
}
