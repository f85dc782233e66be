/*
 * Breakpoints: an instruction that exits to Xen in place of the guest's. INT3 where it exits, else SLDT %eax, which exits
 * by the descriptor-access trap. Ours has to fit into the one instruction it replaces: otherwise a thread that was
 * preempted between two of them would come back into the middle of ours.
 */
#define _GNU_SOURCE
#include <errno.h>

#include "agent.h"

static const uint8_t INT3[] = {0xcc};
static const uint8_t SLDT[] = {0x0f, 0x00, 0xc0};

static int32_t load_instruction(struct ca_agent *agent, const struct ca_program_data *p, uint64_t *gpa, uint8_t bytes[16]) {
    struct ca_mem *mem;
    struct ca_mapping map;
    struct ca_fault fault;
    int32_t result = ca_enter(agent->monitor.mem, 0, &mem);
    if (result != CA_OK) return result;
    memset(bytes, 0, 16);
    bool there = ca_translate(mem, p->space, p->argument, &map, &fault) && ca_load(mem, p->space, p->argument, bytes, 1, &fault);
    /* The next page may be missing: then the instruction ends before, or is not one. */
    for (uint32_t i = 1; i < 16 && there && ca_load(mem, p->space, p->argument + i, bytes + i, 1, &fault); i++) continue;
    ca_leave(mem);
    if (!there) return ca_fail(CA_E_ARGUMENT, "there is no memory at 0x%llx (reason %u)", (unsigned long long)p->argument, fault.reason);
    if ((map.flags & CA_PAGE_EXECUTE) == 0) return ca_fail(CA_E_ARGUMENT, "nothing can execute at 0x%llx", (unsigned long long)p->argument);
    *gpa = map.physical;
    return CA_OK;
}

static int32_t check(struct ca_agent *agent, uint64_t va, uint64_t gpa, const uint8_t bytes[16], uint32_t length, struct ca_answer *answer) {
    struct ca_instruction instruction = ca_instruction_decode(bytes);
    if (instruction.length == 0)
        return ca_fail(CA_E_UNSUPPORTED, "no breakpoint at 0x%llx: what lies there (%02x %02x %02x %02x) is not an instruction it could stand in for",
                       (unsigned long long)va, bytes[0], bytes[1], bytes[2], bytes[3]);
    if (instruction.length < length)
        return ca_fail(CA_E_UNSUPPORTED, "no breakpoint at 0x%llx: the instruction has %u bytes, and this host needs %u for one",
                       (unsigned long long)va, instruction.length, length);
    if (gpa % CA_PAGE + length > CA_PAGE)
        return ca_fail(CA_E_UNSUPPORTED, "no breakpoint at 0x%llx: the instruction lies across two pages", (unsigned long long)va);
    for (uint32_t i = 0; i < CA_BREAKPOINTS_MAX; i++) {
        const struct ca_breakpoint *b = &agent->breakpoint[i];
        if (b->users != 0 && gpa < b->gpa + sizeof SLDT && b->gpa < gpa + length)
            return ca_fail(CA_E_ARGUMENT, "no breakpoint at 0x%llx: the one at 0x%llx overlaps it", (unsigned long long)va, (unsigned long long)b->va);
    }
    *answer = (struct ca_answer){instruction.nop ? CA_ANSWER_SKIP : CA_ANSWER_INSTEAD, instruction.length, {0}};
    memcpy(answer->bytes, bytes, sizeof answer->bytes);
    return CA_OK;
}

/* Readers have time to see the ledger; events are answered meanwhile. */
static void grace(struct ca_agent *agent) {
    uint64_t until = ca_now() + 5000000ull;
    while (ca_now() < until) {
        struct pollfd wait = {ca_monitor_fd(agent), POLLIN, 0};
        if (poll(&wait, 1, 1) > 0) ca_monitor_run(agent);
    }
}

/* A vCPU within the instruction runs code that overlaps it; the domain is paused. */
static bool entered(const struct ca_session *s, uint64_t va, uint32_t length) {
    for (uint32_t i = 0; i < s->vcpus; i++) {
        uint64_t words[CA_XEN_VCPU_WORDS];
        if (ca_xen_vcpu(s->domid, i, words) == CA_OK && words[0] > va && words[0] < va + length) return true;
    }
    return false;
}

static int32_t put(struct ca_agent *agent, struct ca_breakpoint *b, const uint8_t *bytes, uint32_t length) {
    struct ca_session *s = &agent->session;
    b->page = ca_session_map(s, b->gpa / CA_PAGE);
    if (b->page == NULL) return ca_xen_failed("write to", s->domid);
    uint8_t *at = b->page + b->gpa % CA_PAGE;
    b->patch = ca_ledger_prepare(s->file.ledger, b->gpa, b->va, bytes, b->answer.bytes, length);
    if (b->patch == NULL) return ca_fail(CA_E_NOMEM, "there are %d breakpoints in domain %u", CA_BREAKPOINTS_MAX, s->domid);
    grace(agent);
    int32_t result = ca_session_pause(s);
    if (result != CA_OK) return result;
    if (memcmp(at, b->answer.bytes, length) != 0)
        result = ca_fail(CA_E_SOURCE, "the instruction at 0x%llx has changed meanwhile", (unsigned long long)b->va);
    else if (entered(s, b->va, length))
        result = ca_fail(CA_E_UNSUPPORTED, "no breakpoint at 0x%llx: a vCPU executes within the instruction", (unsigned long long)b->va);
    else {
        memcpy(at, bytes, length);
        atomic_store(&b->patch->state, CA_PATCH_LIVE);
    }
    ca_session_unpause(s);
    return result;
}

static void drop(struct ca_agent *agent, struct ca_breakpoint *b) {
    struct ca_session *s = &agent->session;
    if (b->patch != NULL) {
        uint8_t *at = b->page + b->gpa % CA_PAGE;
        bool paused = ca_session_pause(s) == CA_OK;
        if (memcmp(at, b->patch->patch, b->patch->length) == 0) memcpy(at, b->patch->original, b->patch->length);
        if (paused) ca_session_unpause(s);
        atomic_store(&b->patch->state, CA_PATCH_RESTORED);
    }
    /* No longer found; an event of it that is on its way is tried again. */
    b->users = 0;
    if (b->patch != NULL) {
        grace(agent);
        ca_ledger_free(s->file.ledger, b->patch);
    }
    /* Unmapping a page that was written marks it dirty, for a migration under way. */
    if (b->page != NULL) ca_session_unmap(s, b->page);
    *b = (struct ca_breakpoint){0};
}

int32_t ca_breakpoint_add(struct ca_agent *agent, uint32_t number) {
    struct ca_subscriber *s = &agent->subscriber[number];
    const struct ca_program_data *p = &s->program;
    bool int3 = agent->monitor.traps.breakpoint;
    uint8_t bytes[16];
    uint64_t gpa = 0;
    int32_t result = load_instruction(agent, p, &gpa, bytes);
    if (result != CA_OK) return result;
    uint32_t free = CA_NONE;
    for (uint32_t i = 0; i < CA_BREAKPOINTS_MAX; i++) {
        if (agent->breakpoint[i].users == 0) {
            if (free == CA_NONE) free = i;
        } else if (agent->breakpoint[i].gpa == gpa) {
            agent->breakpoint[i].users++;
            s->breakpoint = i;
            return CA_OK;
        }
    }
    if (free == CA_NONE) return ca_fail(CA_E_NOMEM, "there are %d breakpoints in domain %u", CA_BREAKPOINTS_MAX, agent->domid);
    struct ca_answer answer;
    uint32_t length = int3 ? sizeof INT3 : sizeof SLDT;
    result = check(agent, p->argument, gpa, bytes, length, &answer);
    if (result != CA_OK) return result;
    struct ca_breakpoint *b = &agent->breakpoint[free];
    /* In use before the bytes are: their first event can come at once. */
    *b = (struct ca_breakpoint){.users = 1, .gpa = gpa, .va = p->argument, .answer = answer};
    s->breakpoint = free;
    result = put(agent, b, int3 ? INT3 : SLDT, length);
    if (result != CA_OK) {
        char kept[512];
        ca_last_error(kept, sizeof kept);
        drop(agent, b);
        s->breakpoint = CA_NONE;
        ca_fail(result, "%s", kept);
    }
    return result;
}

void ca_breakpoint_remove(struct ca_agent *agent, uint32_t number) {
    struct ca_subscriber *s = &agent->subscriber[number];
    if (s->breakpoint == CA_NONE) return;
    struct ca_breakpoint *b = &agent->breakpoint[s->breakpoint];
    s->breakpoint = CA_NONE;
    if (b->users > 1) b->users--;
    else if (b->users == 1) drop(agent, b);
}

uint32_t ca_breakpoint_find(struct ca_agent *agent, const struct ca_event *event, struct ca_mem *mem) {
    uint64_t rip = event->registers[CA_REG_RIP], space;
    bool any = false;
    for (uint32_t i = 0; i < CA_BREAKPOINTS_MAX; i++) {
        const struct ca_breakpoint *b = &agent->breakpoint[i];
        if (b->users == 0) continue;
        any = true;
        /* The kernel's addresses mean the same in every space. */
        if (b->va == rip && rip >> 63 != 0) return i;
    }
    struct ca_mapping map;
    struct ca_fault fault;
    if (!any || mem == NULL || !ca_event_space(event, &space) || !ca_translate(mem, space, rip, &map, &fault)) return CA_NONE;
    for (uint32_t i = 0; i < CA_BREAKPOINTS_MAX; i++)
        if (agent->breakpoint[i].users != 0 && agent->breakpoint[i].gpa == map.physical) return i;
    return CA_NONE;
}
