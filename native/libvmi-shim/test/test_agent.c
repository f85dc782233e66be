/*
 * What the agent does to a domain and how it is undone, over a domain of our own whose state survives the process that
 * changes it: recovery is cut short at each of its calls to Xen, and whoever comes next must still bring all to its end.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "session.h"
#include "test.h"

#define FRAMES 80u
#define RING_FRAME 70u
#define CODE 0x15000u /* of the instruction with a breakpoint */
#define DOMID 7u

static const uint8_t nop5[] = {0x0f, 0x1f, 0x44, 0x00, 0x00}, sldt[] = {0x0f, 0x00, 0xc0};

/* Shared with the processes that are killed. */
static struct {
    int pauses, enabled, armed, readonly, resumed, injected, steps, limit;
    bool gone, restored_first, answered_first, ran_first;
    uint32_t waiting; /* vCPUs that wait for their answer */
    uint32_t unrun;   /* how often to ask until they have run since */
    uint64_t ran;
} *x;
static int file;
static uint8_t *ram;

static void step(void) {
    if (x->limit != 0 && ++x->steps == x->limit) _exit(9);
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
    if (x->gone) {
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
    if (first > DOMID || x->gone) return 0;
    uint32_t *words = rows;
    *(uint16_t *)rows = DOMID;
    words[1] = CA_XEN_HVM | (x->pauses > 0 ? CA_XEN_PAUSED : 0);
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
    if (x->gone) {
        errno = ESRCH;
        return -1;
    }
    x->pauses++;
    step();
    return 0;
}
static int unpause_one(void *control, uint32_t domid) {
    (void)control, (void)domid;
    step();
    if (x->gone || x->pauses == 0) {
        errno = x->gone ? ESRCH : EINVAL;
        return -1;
    }
    x->pauses--;
    step();
    return 0;
}
static const struct ca_xen fake = {.foreign_open = open_any, .foreign_close = close_any, .foreign_map = map, .foreign_unmap = unmap,
                                   .domain_list = list, .last_frame = last, .domain_pause = pause_one, .domain_unpause = unpause_one};

static struct vm_event_ring *ring(void) { return (struct vm_event_ring *)(void *)(ram + RING_FRAME * CA_PAGE); }
static int parameter(void *control, uint32_t domid, uint32_t number, uint64_t *value) {
    (void)control, (void)domid;
    CHECK_EQUAL(number, HVM_PARAM_MONITOR_RING_PFN);
    *value = RING_FRAME;
    return x->gone ? -1 : 0;
}
static int page_type(void *control, uint32_t domid, int type, uint64_t first, uint64_t pages) {
    (void)control, (void)domid, (void)pages;
    CHECK_EQUAL(first, RING_FRAME);
    step();
    x->readonly = type == HVMMEM_ram_ro;
    return 0;
}
static int vm_event(void *control, uint32_t domid, unsigned operation, unsigned mode, uint32_t *port) {
    (void)control, (void)domid, (void)mode, (void)port;
    step();
    if (x->gone) {
        errno = ESRCH;
        return -1;
    }
    x->restored_first &= memcmp(ram + CODE, nop5, sizeof nop5) == 0;
    if (operation == XEN_VM_EVENT_RESUME && x->enabled) {
        x->resumed++;
        if (ring()->rsp_prod == ring()->req_prod) {
            if (x->waiting > 0) x->unrun = 5;
            x->waiting = 0;
        }
    }
    if (operation == XEN_VM_EVENT_DISABLE) {
        x->answered_first &= x->waiting == 0;
        x->ran_first &= x->unrun == 0;
        x->enabled = 0;
    }
    step();
    return 0;
}
/* vCPU 0 is blocked, vCPU 1 waits for its turn. */
static int vcpu(void *control, uint32_t domid, uint32_t number, struct ca_xen_vcpu *info) {
    (void)control, (void)domid;
    CHECK(number < 2);
    if (number == 1 && x->unrun > 0 && x->pauses == 0 && --x->unrun == 0) x->ran++;
    *info = (struct ca_xen_vcpu){.vcpu = number, .online = 1, .blocked = number == 0, .cpu_time = 1000 + x->ran};
    if (number == 1 && x->unrun == 0 && x->pauses == 0) x->ran++;
    return 0;
}
static int arm1(void *control, uint32_t domid, bool enable) {
    (void)control, (void)domid;
    step();
    CHECK(!enable);
    x->armed = 0;
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
    x->injected++;
    return 0;
}
static const struct ca_xen_events fake_events = {.parameter = parameter, .page_type = page_type, .vm_event = vm_event, .vcpu = vcpu, .on_cpuid = arm1,
                                                 .on_descriptor = arm1, .on_breakpoint = arm1, .on_register = arm_register,
                                                 .on_msr = arm_msr, .on_request = arm_request, .inject = inject};

static void registers(struct vm_event *event, uint64_t rip) {
    event->data.registers = (struct vm_event_registers){.rip = rip, .cr0 = 1ull << 31, .cr3 = ROOT4, .efer = 1ull << 10, .rax = 0x1234};
}

/* What an agent leaves that is killed with three vCPUs waiting, one answer half written, and a pause of its client's. */
static void leave(struct ca_session *s) {
    struct ca_ledger *ledger = s->file.ledger;
    memcpy(ram + CODE, nop5, sizeof nop5);
    CHECK_EQUAL(ca_session_pause(s), CA_OK);
    atomic_store(&ledger->monitor, 1);
    struct ca_patch *p = ca_ledger_prepare(ledger, CODE, VIRT(CODE), sldt, nop5, sizeof sldt);
    CHECK(p != NULL);
    memcpy(ram + CODE, sldt, sizeof sldt);
    atomic_store(&p->state, CA_PATCH_LIVE);
    ledger->msrs = 1;
    ledger->msr[0] = 0xc0000082;
    struct vm_event_ring *r = ring();
    memset(r, 0, CA_PAGE);
    r->rsp_prod = 0xfffffffe; /* indexes wrap */
    r->req_prod = 1;
    struct vm_event event[3];
    memset(event, 0, sizeof event);
    for (uint32_t i = 0; i < 3; i++) {
        event[i].version = VM_EVENT_INTERFACE_VERSION;
        event[i].flags = VM_EVENT_FLAG_VCPU_PAUSED;
        event[i].vcpu = i;
    }
    event[0].reason = VM_EVENT_REASON_CPUID;
    event[0].u.cpuid.length = 2;
    registers(&event[0], 0x400000);
    event[1].reason = VM_EVENT_REASON_DESCRIPTOR_ACCESS; /* our own */
    registers(&event[1], VIRT(CODE));
    event[2].reason = VM_EVENT_REASON_DESCRIPTOR_ACCESS; /* the guest's */
    registers(&event[2], VIRT(0x16000));
    memcpy(ram + 0x16000, "\x0f\x01\x0d", 3); /* SIDT */
    for (uint32_t i = 0; i < 3; i++) r->slot[(0xfffffffe + i) & 7] = event[i];
    /* Killed while it wrote the answer to the first. */
    ledger->event = event[0];
    atomic_store(&ledger->answering, 0xfffffffe + 1);
    memset(&r->slot[6].data, 0xee, 200);
    x->enabled = x->armed = x->readonly = 1;
    x->waiting = 3;
    x->resumed = 0;
    x->restored_first = x->answered_first = x->ran_first = true;
}

static void undone(const struct ca_ledger *ledger) {
    const struct vm_event_ring *r = ring();
    CHECK(memcmp(ram + CODE, nop5, sizeof nop5) == 0);
    CHECK_EQUAL(r->rsp_prod, 1);
    CHECK_EQUAL(x->waiting, 0);
    CHECK_EQUAL(x->enabled, 0);
    CHECK_EQUAL(x->armed, 0);
    CHECK_EQUAL(x->readonly, 0);
    CHECK_EQUAL(x->pauses, 0);
    CHECK(x->restored_first && x->answered_first && x->ran_first && x->resumed > 0);
    CHECK_EQUAL(r->slot[6].flags, VM_EVENT_FLAG_VCPU_PAUSED | VM_EVENT_FLAG_SET_REGISTERS);
    CHECK_EQUAL(r->slot[6].data.registers.rip, 0x400002);
    CHECK_EQUAL(r->slot[6].data.registers.rax, 0x1234);
    CHECK_EQUAL(r->slot[7].flags, VM_EVENT_FLAG_VCPU_PAUSED);
    CHECK_EQUAL(r->slot[0].flags, VM_EVENT_FLAG_VCPU_PAUSED | VM_EVENT_FLAG_EMULATE);
    CHECK_EQUAL(ledger->live, 0);
    CHECK_EQUAL(ledger->monitor, 0);
    for (uint32_t i = 0; i < CA_PAUSERS; i++) CHECK_EQUAL(ledger->pauser[i].owed | ledger->pauser[i].intent, 0);
}

static void open_session(struct ca_session *s) {
    CHECK_EQUAL(ca_session_open(s, DOMID), CA_OK);
    CHECK_EQUAL(ca_session_attach(s, false), CA_OK);
}

static void recovers(void) {
    struct ca_session s;
    for (int limit = 1;; limit++) {
        open_session(&s);
        leave(&s);
        /* Its locks go with it, as when it is killed. */
        ca_session_close(&s);
        x->steps = 0;
        x->limit = limit;
        pid_t child = fork();
        if (child == 0) {
            open_session(&s);
            ca_recover(&s);
            _exit(0);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status));
        x->limit = 0;
        open_session(&s);
        CHECK_EQUAL(ca_recover(&s), CA_OK);
        undone(s.file.ledger);
        ca_session_close(&s);
        if (WEXITSTATUS(status) == 0) {
            CHECK(limit > 20);
            break;
        }
        CHECK_EQUAL(WEXITSTATUS(status), 9);
    }
}

static void leaves_the_living_alone(void) {
    struct ca_session one, two;
    open_session(&one);
    CHECK(ca_ledger_lock(&one.file, CA_LOCK_MONITOR));
    leave(&one);
    open_session(&two);
    CHECK(two.pauser != one.pauser);
    CHECK_EQUAL(ca_recover(&two), CA_OK);
    CHECK_EQUAL(x->enabled, 1);
    CHECK_EQUAL(x->pauses, 1);
    CHECK(memcmp(ram + CODE, sldt, sizeof sldt) == 0);
    /* Its own supervisor may; also when the worker died between Xen's pause and the account of it. */
    atomic_store(&one.file.ledger->pauser[one.pauser].intent, CA_PAUSE_TAKING);
    x->pauses++;
    CHECK_EQUAL(ca_recover(&one), CA_OK);
    undone(one.file.ledger);
    ca_session_close(&one);
    ca_session_close(&two);
    /* A domain that goes meanwhile leaves nothing to do, and no error. */
    open_session(&one);
    leave(&one);
    x->gone = true;
    CHECK_EQUAL(ca_recover(&one), CA_OK);
    CHECK_EQUAL(one.file.ledger->monitor, 0);
    CHECK_EQUAL(one.file.ledger->live, 0);
    CHECK(ca_session_fate(&one) != NULL);
    CHECK_EQUAL(ca_session_open(&two, DOMID), CA_E_OPEN);
    x->gone = false;
    x->pauses = 0;
    ca_session_close(&one);
}

static void hides(void) {
    struct ca_session s;
    uint64_t status[CA_STATUS_WORDS];
    uint8_t bytes[CA_PAGE], raw[16];
    int32_t before = ca_xen_open(DOMID, CA_OPEN_WRITE, 0);
    open_session(&s);
    memcpy(ram + CODE, nop5, sizeof nop5);
    struct ca_patch *p = ca_ledger_prepare(s.file.ledger, CODE, VIRT(CODE), sldt, nop5, sizeof sldt);
    /* Prepared only: the guest has its own bytes, and so have readers. */
    CHECK_EQUAL(read_at(before, SPACE4, VIRT(CODE), raw, 5, NULL), 0);
    CHECK(memcmp(raw, nop5, 5) == 0);
    memcpy(ram + CODE, sldt, sizeof sldt);
    atomic_store(&p->state, CA_PATCH_LIVE);
    int32_t after = ca_xen_open(DOMID, CA_OPEN_WRITE, 0);
    const int32_t both[] = {before, after};
    for (int i = 0; i < 2; i++) {
        CHECK_EQUAL(read_at(both[i], SPACE4, VIRT(CODE), raw, 5, NULL), 0);
        CHECK(memcmp(raw, nop5, 5) == 0);
        /* Across its page, from before and behind. */
        CHECK_EQUAL(read_at(both[i], 0, CODE - 2000, bytes, sizeof bytes, NULL), 0);
        CHECK(memcmp(bytes + 2000, nop5, 5) == 0 && memcmp(bytes, ram + CODE - 2000, 2000) == 0);
        CHECK(memcmp(bytes + 2005, ram + CODE + 5, sizeof bytes - 2005) == 0);
        CHECK_EQUAL(read_at(both[i], 0, CODE + 1, raw, 4, NULL), 0);
        CHECK(memcmp(raw, nop5 + 1, 4) == 0);
        /* Nor does a search find ours. */
        struct {
            uint32_t length, zero;
            uint8_t bytes[256];
        } pattern = {3, 0, {0x0f, 0x00, 0xc0}};
        uint64_t rows[32], matches = 0;
        struct cursor cursor = {{0}};
        int32_t code;
        do {
            code = ca_search(both[i], 0, 1000, 0, CODE, CODE + CA_PAGE - 1, &pattern, 1, 1, 0, 4, rows, 16, &cursor, status);
            CHECK(code >= 0);
            matches += status[0];
        } while (code == CA_MORE);
        CHECK_EQUAL(matches, 0);
    }
    /* Writing: up to it, and not over it. */
    memset(bytes, 0x55, sizeof bytes);
    struct cursor cursor = {{0}};
    CHECK_EQUAL(ca_write(after, 0, 1000, 0, CODE - 8, bytes, 16, &cursor, status), CA_OK);
    CHECK_EQUAL(status[0], 8);
    CHECK_EQUAL(status[1], CA_F_PATCHED);
    CHECK_EQUAL(status[3], CODE);
    CHECK(memcmp(ram + CODE, sldt, sizeof sldt) == 0 && ram[CODE - 1] == 0x55);
    cursor = (struct cursor){{0}};
    CHECK_EQUAL(ca_write(after, 0, 1000, 0, CODE + 3, bytes, 4, &cursor, status), CA_OK);
    CHECK_EQUAL(status[0], 4);
    memcpy(ram + CODE, nop5, sizeof nop5);
    memcpy(ram + CODE, sldt, sizeof sldt);
    /* What the guest wrote over ours is the guest's, for readers and at the end. */
    memcpy(ram + CODE, "\x90\x90\x90", 3);
    CHECK_EQUAL(read_at(after, 0, CODE, raw, 3, NULL), 0);
    CHECK_EQUAL(raw[0], 0x90);
    CHECK_EQUAL(ca_recover(&s), CA_OK);
    CHECK_EQUAL(ram[CODE], 0x90);
    ca_mem_close(before);
    ca_mem_close(after);
    /* All its places, and one more. */
    for (uint32_t i = 0; i < CA_BREAKPOINTS_MAX; i++) CHECK(ca_ledger_prepare(s.file.ledger, i * 64, 0, sldt, nop5, 3) != NULL);
    CHECK(ca_ledger_prepare(s.file.ledger, 9, 0, sldt, nop5, 3) == NULL);
    CHECK_EQUAL(ca_recover(&s), CA_OK);
    CHECK_EQUAL(s.file.ledger->live, 0);
    ca_session_close(&s);
}

static void answers_int3(void) {
    struct ca_session s;
    struct vm_event event = {.reason = VM_EVENT_REASON_SOFTWARE_BREAKPOINT, .flags = VM_EVENT_FLAG_VCPU_PAUSED};
    struct ca_mem *mem;
    open_session(&s);
    int32_t handle = ca_xen_open(DOMID, 0, 0);
    CHECK_EQUAL(ca_enter(handle, 0, &mem), CA_OK);
    registers(&event, VIRT(0x16000));
    event.u.breakpoint.length = 1;
    ram[0x16000] = 0x90;
    CHECK_EQUAL(ca_answer_own(&s, &event, mem).kind, CA_ANSWER_PASS);
    CHECK_EQUAL(x->injected, 0);
    ram[0x16000] = 0xcc;
    CHECK_EQUAL(ca_answer_own(&s, &event, mem).kind, CA_ANSWER_PASS);
    CHECK_EQUAL(x->injected, 1);
    ca_leave(mem);
    ca_mem_close(handle);
    ca_session_close(&s);
}

void test_agent(void) {
    char folder[] = "/tmp/cloudapp-ledger-XXXXXX", path[64];
    CHECK(mkdtemp(folder) != NULL);
    snprintf(path, sizeof path, "%s/a/b", folder);
    ca_ledger_use(path);
    ca_xen_use(&fake);
    ca_xen_use_events(&fake_events);
    x = mmap(NULL, sizeof *x, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    file = memfd_create("domain", 0);
    CHECK(ftruncate(file, FRAMES * CA_PAGE) == 0);
    ram = mmap(NULL, FRAMES * CA_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    guest_fill(ram);
    hides();
    recovers();
    leaves_the_living_alone();
    answers_int3();
    munmap(ram, FRAMES * CA_PAGE);
    munmap(x, sizeof *x);
    close(file);
    ca_xen_use(NULL);
    ca_xen_use_events(NULL);
    ca_ledger_use("/proc/none");
    snprintf(path, sizeof path, "rm -r %s", folder);
    CHECK(system(path) == 0);
}
