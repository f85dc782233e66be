/*
 * What the agent does to a domain and how it is undone, over a domain of our own whose state survives the process that
 * changes it: recovery is cut short at each of its calls to Xen, and whoever comes next must still bring all to its end.
 */
#define _GNU_SOURCE
#include <sys/wait.h>
#include <unistd.h>

#include "traced_domain.h"

static void registers(struct vm_event *event, uint64_t rip) {
    event->data.registers = (struct vm_event_registers){.rip = rip, .cr0 = 1ull << 31, .cr3 = ROOT4, .efer = 1ull << 10, .rax = 0x1234};
}

/* What an agent leaves that is killed with three vCPUs waiting, one answer half written, and a pause of its client's. */
static void leave(struct ca_session *s) {
    struct ca_ledger *ledger = s->file.ledger;
    memcpy(traced_ram + CODE, traced_nop5, sizeof traced_nop5);
    CHECK_EQUAL(ca_session_pause(s), CA_OK);
    atomic_store(&ledger->monitor, 1);
    struct ca_patch *p = ca_ledger_prepare(ledger, CODE, VIRT(CODE), traced_sldt, traced_nop5, sizeof traced_sldt);
    CHECK(p != NULL);
    memcpy(traced_ram + CODE, traced_sldt, sizeof traced_sldt);
    atomic_store(&p->state, CA_PATCH_LIVE);
    ledger->msrs = 1;
    ledger->msr[0] = 0xc0000082;
    struct vm_event_ring *r = traced_ring();
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
    memcpy(traced_ram + 0x16000, "\x0f\x01\x0d", 3); /* SIDT */
    for (uint32_t i = 0; i < 3; i++) r->slot[(0xfffffffe + i) & 7] = event[i];
    /* Killed while it wrote the answer to the first. */
    ledger->event = event[0];
    atomic_store(&ledger->answering, 0xfffffffe + 1);
    memset(&r->slot[6].data, 0xee, 200);
    traced->enabled = traced->armed = traced->readonly = 1;
    traced->waiting = 3;
    traced->resumed = 0;
    traced->restored_first = traced->answered_first = traced->ran_first = true;
}

static void is_undone(const struct ca_ledger *ledger) {
    const struct vm_event_ring *r = traced_ring();
    CHECK(memcmp(traced_ram + CODE, traced_nop5, sizeof traced_nop5) == 0);
    CHECK_EQUAL(r->rsp_prod, 1);
    CHECK_EQUAL(traced->waiting, 0);
    CHECK_EQUAL(traced->enabled, 0);
    CHECK_EQUAL(traced->armed, 0);
    CHECK_EQUAL(traced->readonly, 0);
    CHECK_EQUAL(traced->pauses, 0);
    CHECK(traced->restored_first && traced->answered_first && traced->ran_first && traced->resumed > 0);
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
        traced->steps = 0;
        traced->limit = limit;
        pid_t child = fork();
        if (child == 0) {
            open_session(&s);
            ca_recover(&s);
            _exit(0);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status));
        traced->limit = 0;
        open_session(&s);
        CHECK_EQUAL(ca_recover(&s), CA_OK);
        is_undone(s.file.ledger);
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
    CHECK_EQUAL(traced->enabled, 1);
    CHECK_EQUAL(traced->pauses, 1);
    CHECK(memcmp(traced_ram + CODE, traced_sldt, sizeof traced_sldt) == 0);
    /* Its own supervisor may; also when the worker died between Xen's pause and the account of it. */
    atomic_store(&one.file.ledger->pauser[one.pauser].intent, CA_PAUSE_TAKING);
    traced->pauses++;
    CHECK_EQUAL(ca_recover(&one), CA_OK);
    is_undone(one.file.ledger);
    ca_session_close(&one);
    ca_session_close(&two);
    /* A domain that goes meanwhile leaves nothing to do, and no error. */
    open_session(&one);
    leave(&one);
    traced->gone = true;
    CHECK_EQUAL(ca_recover(&one), CA_OK);
    CHECK_EQUAL(one.file.ledger->monitor, 0);
    CHECK_EQUAL(one.file.ledger->live, 0);
    CHECK(ca_session_fate(&one) != NULL);
    CHECK_EQUAL(ca_session_open(&two, DOMID), CA_E_OPEN);
    traced->gone = false;
    traced->pauses = 0;
    ca_session_close(&one);
}

/* Whoever starts after all have died at once, and knows no domain. */
static void is_undone_by_who_finds_it(void) {
    struct ca_session s;
    struct ca_left undone;
    uint32_t domids[4];
    open_session(&s);
    leave(&s);
    CHECK_EQUAL(ca_ledger_domains(domids, 4), 1);
    CHECK_EQUAL(domids[0], DOMID);
    CHECK_EQUAL(ca_ledger_domains(domids, 0), 0);
    /* Nothing of one that lives. */
    CHECK(ca_ledger_lock(&s.file, CA_LOCK_MONITOR));
    CHECK_EQUAL(ca_recover_domain(DOMID, &undone), CA_OK);
    CHECK_EQUAL(undone.breakpoints + undone.monitor + undone.pauses, 0);
    CHECK_EQUAL(traced->pauses, 1);
    ca_session_close(&s);
    CHECK_EQUAL(ca_recover_domain(DOMID, &undone), CA_OK);
    CHECK_EQUAL(undone.breakpoints, 1);
    CHECK_EQUAL(undone.monitor, 1);
    CHECK_EQUAL(undone.pauses, 1);
    CHECK_EQUAL(ca_recover_domain(DOMID, &undone), CA_OK);
    CHECK_EQUAL(undone.breakpoints + undone.monitor + undone.pauses, 0);
    open_session(&s);
    is_undone(s.file.ledger);
    ca_session_close(&s);
    traced->gone = true;
    CHECK_EQUAL(ca_recover_domain(DOMID, &undone), CA_OK);
    CHECK_EQUAL(ca_ledger_domains(domids, 4), 0);
    traced->gone = false;
}

static void hides(void) {
    struct ca_session s;
    uint64_t status[CA_STATUS_WORDS];
    uint8_t bytes[CA_PAGE], raw[16];
    int32_t before = ca_xen_open(DOMID, CA_OPEN_WRITE, 0);
    open_session(&s);
    memcpy(traced_ram + CODE, traced_nop5, sizeof traced_nop5);
    struct ca_patch *p = ca_ledger_prepare(s.file.ledger, CODE, VIRT(CODE), traced_sldt, traced_nop5, sizeof traced_sldt);
    /* Prepared only: the guest has its own bytes, and so have readers. */
    CHECK_EQUAL(read_at(before, SPACE4, VIRT(CODE), raw, 5, NULL), 0);
    CHECK(memcmp(raw, traced_nop5, 5) == 0);
    memcpy(traced_ram + CODE, traced_sldt, sizeof traced_sldt);
    atomic_store(&p->state, CA_PATCH_LIVE);
    int32_t after = ca_xen_open(DOMID, CA_OPEN_WRITE, 0);
    const int32_t both[] = {before, after};
    for (int i = 0; i < 2; i++) {
        CHECK_EQUAL(read_at(both[i], SPACE4, VIRT(CODE), raw, 5, NULL), 0);
        CHECK(memcmp(raw, traced_nop5, 5) == 0);
        /* Across its page, from before and behind. */
        CHECK_EQUAL(read_at(both[i], 0, CODE - 2000, bytes, sizeof bytes, NULL), 0);
        CHECK(memcmp(bytes + 2000, traced_nop5, 5) == 0 && memcmp(bytes, traced_ram + CODE - 2000, 2000) == 0);
        CHECK(memcmp(bytes + 2005, traced_ram + CODE + 5, sizeof bytes - 2005) == 0);
        CHECK_EQUAL(read_at(both[i], 0, CODE + 1, raw, 4, NULL), 0);
        CHECK(memcmp(raw, traced_nop5 + 1, 4) == 0);
        /* Nor does a walk's column hold ours. */
        struct {
            uint64_t words[12], column[10];
        } plan = {{CA_WALK_ARRAY, SPACE4, VIRT(CODE), 0, 1, 1, 8, 0, 0, 0, 0, 1}, {5, 1}};
        uint64_t row[2];
        struct cursor walk = {{0}};
        CHECK_EQUAL(ca_walk(both[i], 0, 1000, &plan, sizeof plan, row, sizeof row, 1, &walk, status), CA_MORE);
        CHECK(memcmp(&row[1], traced_nop5, 5) == 0);
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
    CHECK(memcmp(traced_ram + CODE, traced_sldt, sizeof traced_sldt) == 0 && traced_ram[CODE - 1] == 0x55);
    cursor = (struct cursor){{0}};
    CHECK_EQUAL(ca_write(after, 0, 1000, 0, CODE + 3, bytes, 4, &cursor, status), CA_OK);
    CHECK_EQUAL(status[0], 4);
    memcpy(traced_ram + CODE, traced_nop5, sizeof traced_nop5);
    memcpy(traced_ram + CODE, traced_sldt, sizeof traced_sldt);
    /* What the guest wrote over ours is the guest's, for readers and at the end. */
    memcpy(traced_ram + CODE, "\x90\x90\x90", 3);
    CHECK_EQUAL(read_at(after, 0, CODE, raw, 3, NULL), 0);
    CHECK_EQUAL(raw[0], 0x90);
    CHECK_EQUAL(ca_recover(&s), CA_OK);
    CHECK_EQUAL(traced_ram[CODE], 0x90);
    ca_mem_close(before);
    ca_mem_close(after);
    /* All its places, and one more. */
    for (uint32_t i = 0; i < CA_BREAKPOINTS_MAX; i++) CHECK(ca_ledger_prepare(s.file.ledger, i * 64, 0, traced_sldt, traced_nop5, 3) != NULL);
    CHECK(ca_ledger_prepare(s.file.ledger, 9, 0, traced_sldt, traced_nop5, 3) == NULL);
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
    traced_ram[0x16000] = 0x90;
    CHECK_EQUAL(ca_answer_own(&s, &event, mem).kind, CA_ANSWER_PASS);
    CHECK_EQUAL(traced->injected, 0);
    traced_ram[0x16000] = 0xcc;
    CHECK_EQUAL(ca_answer_own(&s, &event, mem).kind, CA_ANSWER_PASS);
    CHECK_EQUAL(traced->injected, 1);
    ca_leave(mem);
    ca_mem_close(handle);
    ca_session_close(&s);
}

void test_agent(void) {
    char folder[] = "/tmp/cloudapp-ledger-XXXXXX", path[64];
    CHECK(mkdtemp(folder) != NULL);
    snprintf(path, sizeof path, "%s/a/b", folder);
    ca_ledger_use(path);
    traced_new();
    hides();
    recovers();
    leaves_the_living_alone();
    is_undone_by_who_finds_it();
    answers_int3();
    traced_end();
    ca_ledger_use("/proc/none");
    snprintf(path, sizeof path, "rm -r %s", folder);
    CHECK(system(path) == 0);
}
