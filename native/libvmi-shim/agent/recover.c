/*
 * Undoing, in the one order that loses nothing: bytes first, so that what a vCPU tries again is its own instruction; then
 * the pauses of the dead; then the answers; then, when every vCPU has run, the monitor, which Xen would give up without
 * them, leaving the vCPUs paused.
 * The worker ends by this, the supervisor runs it when the worker was killed, and the next agent when both were.
 *
 * It needs nothing of the process that died: the ring lies in the domain's own memory, in the page that
 * HVM_PARAM_MONITOR_RING_PFN names, which the domain can read but not write (monitor.c).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include "session.h"

#define PATIENCE_NS 10000000000ull

static void restore_patches(struct ca_session *s) {
    struct ca_ledger *ledger = s->file.ledger;
    for (uint32_t i = 0; i < CA_BREAKPOINTS_MAX; i++) {
        struct ca_patch *p = &ledger->patch[i];
        uint32_t state = atomic_load(&p->state);
        if (state != CA_PATCH_PREPARED && state != CA_PATCH_LIVE) continue;
        uint8_t *page = (atomic_load(&p->sequence) & 1) != 0 ? NULL : ca_session_map(s, p->gpa / CA_PAGE);
        if (page != NULL) {
            uint8_t *at = page + p->gpa % CA_PAGE;
            /* If the guest has put something else there meanwhile, it stays. */
            if (memcmp(at, p->patch, p->length) == 0) memcpy(at, p->original, p->length);
            ca_session_unmap(s, page);
        }
        atomic_store(&p->state, CA_PATCH_RESTORED);
    }
}

static void free_patches(struct ca_session *s) {
    struct ca_ledger *ledger = s->file.ledger;
    bool any = false;
    for (uint32_t i = 0; i < CA_BREAKPOINTS_MAX; i++) any |= atomic_load(&ledger->patch[i].state) != CA_PATCH_FREE;
    if (any) ca_ledger_grace();
    for (uint32_t i = 0; i < CA_BREAKPOINTS_MAX; i++)
        if (atomic_load(&ledger->patch[i].state) != CA_PATCH_FREE) ca_ledger_free(ledger, &ledger->patch[i]);
    atomic_store(&ledger->highest, 0);
}

static void disarm(struct ca_session *s) {
    const struct ca_xen_events *e = s->events;
    void *control = s->xen->control;
    const struct ca_ledger *ledger = s->file.ledger;
    /* Each is refused where it is not on, which is as good. */
    e->on_register(control, s->domid, VM_EVENT_X86_CR0, false, false, 0, false);
    e->on_register(control, s->domid, VM_EVENT_X86_CR3, false, false, 0, false);
    e->on_register(control, s->domid, VM_EVENT_X86_CR4, false, false, 0, false);
    e->on_cpuid(control, s->domid, false);
    e->on_descriptor(control, s->domid, false);
    e->on_breakpoint(control, s->domid, false);
    e->on_request(control, s->domid, false, false, false);
    for (uint32_t i = 0; i < ledger->msrs && i < CA_PROGRAMS_MAX; i++) e->on_msr(control, s->domid, ledger->msr[i], false, false);
}

/* How many it answered. */
static uint32_t answer_all(struct ca_session *s, struct vm_event_ring *ring, struct ca_mem *mem) {
    struct ca_ledger *ledger = s->file.ledger;
    uint32_t index = __atomic_load_n(&ring->rsp_prod, __ATOMIC_SEQ_CST);
    uint32_t end = __atomic_load_n(&ring->req_prod, __ATOMIC_SEQ_CST);
    uint32_t count = end - index;
    if (count > VM_EVENT_SLOTS) return 0; /* no ring: it was not made yet */
    for (; index != end; index++) {
        struct vm_event request = ring->slot[index & (VM_EVENT_SLOTS - 1)];
        if (atomic_load(&ledger->answering) == index + 1) request = ledger->event;
        struct ca_answer answer = ca_answer_own(s, &request, mem);
        ca_answer_put(ledger, ring, index, &request, &answer);
    }
    uint32_t port = 0;
    s->events->vm_event(s->xen->control, s->domid, XEN_VM_EVENT_RESUME, XEN_DOMCTL_VM_EVENT_OP_MONITOR, &port);
    return count;
}

/*
 * What an answer lets through, a write to a control register or an MSR, Xen does when the vCPU runs again, and never if the
 * monitor is gone by then (hvm_vm_event_do_resume(), vm_event_cleanup_domain()): the guest would go on with the page tables
 * of the process before. So the monitor is given up only when every vCPU has run since its last answer, or is blocked, which
 * it can be of itself only.
 */
static bool have_run(struct ca_session *s, uint64_t *since, bool first) {
    struct ca_xen_domain domain;
    /* A domain that has ended runs no more, and loses nothing. */
    if (ca_xen_find(s->xen, s->domid, &domain) != CA_OK || (domain.flags & (CA_XEN_DYING | CA_XEN_SHUTDOWN)) != 0) return true;
    bool all = true;
    for (uint32_t i = 0; i < s->vcpus; i++) {
        struct ca_xen_vcpu vcpu = {0};
        if (s->events->vcpu(s->xen->control, s->domid, i, &vcpu) != 0 || !vcpu.online || vcpu.blocked) continue;
        if (first) since[i] = vcpu.cpu_time;
        all &= vcpu.cpu_time > since[i];
    }
    return all;
}

/* Answers and gives up the monitor; a vCPU that waited for room on the ring comes with its event only now. */
static int32_t give_up(struct ca_session *s) {
    uint64_t frame = 0, until = ca_now() + PATIENCE_NS;
    uint64_t *since = calloc(s->vcpus, sizeof *since);
    if (since == NULL) return ca_fail(CA_E_NOMEM, "out of memory");
    int32_t handle = ca_xen_open(s->domid, 0, 0);
    uint8_t *ring = NULL;
    if (s->events->parameter(s->xen->control, s->domid, HVM_PARAM_MONITOR_RING_PFN, &frame) == 0) ring = ca_session_map(s, frame);
    int failed = -1, error = EBUSY;
    for (bool first = true;; first = false) {
        struct ca_mem *mem = NULL;
        uint32_t port = 0, answered = 0;
        if (handle > 0 && ca_enter(handle, 0, &mem) != CA_OK) mem = NULL;
        if (ring != NULL) answered = answer_all(s, (struct vm_event_ring *)(void *)ring, mem);
        if (mem != NULL) ca_leave(mem);
        if (have_run(s, since, first || answered > 0)) {
            failed = s->events->vm_event(s->xen->control, s->domid, XEN_VM_EVENT_DISABLE, XEN_DOMCTL_VM_EVENT_OP_MONITOR, &port);
            error = errno;
        }
        if (failed == 0 || error != EBUSY || ca_now() > until) break;
        const struct timespec wait = {0, 1000000};
        nanosleep(&wait, NULL);
    }
    free(since);
    bool late = failed != 0 && error == EBUSY;
    if (!late && ring != NULL) s->events->page_type(s->xen->control, s->domid, HVMMEM_ram_rw, frame, 1);
    if (ring != NULL) ca_session_unmap(s, ring);
    if (handle > 0) ca_mem_close(handle);
    if (late)
        return ca_fail(CA_E_SOURCE, "vCPUs of domain %u have not run since their last event, and would lose what it did (is it paused?)", s->domid);
    return CA_OK;
}

static bool is_paused(const struct ca_session *s) {
    struct ca_xen_domain domain;
    return ca_xen_find(s->xen, s->domid, &domain) == CA_OK && (domain.flags & CA_XEN_PAUSED) != 0;
}

/*
 * Xen tells that a domain is paused, not how often. A pause or unpause that a kill cut short is undone if the domain is
 * paused, as a domain that stands still for ever is worse than one that somebody else must pause again.
 */
static void settle(struct ca_session *s, uint32_t pauser) {
    struct ca_pauser *p = &s->file.ledger->pauser[pauser];
    uint32_t owed = atomic_load(&p->owed) + (atomic_load(&p->intent) == CA_PAUSE_TAKING ? 1 : 0);
    for (; owed > 0 && is_paused(s); owed--) {
        s->xen->domain_unpause(s->xen->control, s->domid);
        /* After it: killed between the two, whoever comes next unpauses once more, if the domain is still paused. */
        atomic_store(&p->owed, owed - 1);
    }
    atomic_store(&p->owed, 0);
    atomic_store(&p->intent, CA_PAUSE_NONE);
}

void ca_settle_pauses(struct ca_session *s) { settle(s, s->pauser); }

/* What dead processes owed; `own`: also those of our own place, which our own worker had. */
static void settle_dead(struct ca_session *s, bool own) {
    for (uint32_t i = 0; i < CA_PAUSERS; i++) {
        const struct ca_pauser *p = &s->file.ledger->pauser[i];
        if ((atomic_load(&p->owed) | atomic_load(&p->intent)) == 0) continue;
        if (i == s->pauser) {
            if (own) settle(s, i);
        } else if (ca_ledger_lock(&s->file, CA_LOCK_PAUSER + i)) {
            settle(s, i);
            ca_ledger_unlock(&s->file, CA_LOCK_PAUSER + i);
        }
    }
}

static int32_t detach(struct ca_session *s, bool own) {
    struct ca_ledger *ledger = s->file.ledger;
    int32_t result = CA_OK;
    bool any = atomic_load(&ledger->monitor) != 0;
    for (uint32_t i = 0; i < CA_BREAKPOINTS_MAX; i++) any |= atomic_load(&ledger->patch[i].state) != CA_PATCH_FREE;
    if (!any) return CA_OK;
    bool paused = ca_session_pause(s) == CA_OK;
    restore_patches(s);
    if (paused) {
        if (atomic_load(&ledger->monitor) != 0) disarm(s);
        ca_session_unpause(s);
    }
    /* A domain that stands still by a dead agent's pause would never do what its answers let through. */
    settle_dead(s, own);
    if (atomic_load(&ledger->monitor) != 0) result = give_up(s);
    if (result == CA_OK) {
        ledger->msrs = 0;
        atomic_store(&ledger->answering, 0);
        atomic_store(&ledger->monitor, 0);
    }
    free_patches(s);
    return result;
}

int32_t ca_detach(struct ca_session *s) { return detach(s, false); }

int32_t ca_recover(struct ca_session *s) {
    int32_t result = CA_OK;
    /* A worker that was killed has its supervisor's place. */
    ca_session_inherit(s);
    if (ca_ledger_lock(&s->file, CA_LOCK_MONITOR)) {
        result = detach(s, true);
        ca_ledger_unlock(&s->file, CA_LOCK_MONITOR);
    }
    settle_dead(s, true);
    return result;
}

static struct ca_left left_in(const struct ca_ledger *ledger) {
    struct ca_left left = {atomic_load(&ledger->live), atomic_load(&ledger->monitor), 0};
    for (uint32_t i = 0; i < CA_PAUSERS; i++)
        left.pauses += atomic_load(&ledger->pauser[i].owed) + (atomic_load(&ledger->pauser[i].intent) == CA_PAUSE_TAKING);
    return left;
}

int32_t ca_recover_domain(uint32_t domid, struct ca_left *undone) {
    struct ca_session s;
    *undone = (struct ca_left){0, 0, 0};
    int32_t result = ca_session_open(&s, domid);
    if (result == CA_E_OPEN) {
        ca_ledger_remove(domid);
        return CA_OK;
    }
    if (result != CA_OK) return result;
    const struct ca_left before = left_in(s.file.ledger);
    /* With nothing to undo, nobody who begins to trace just now finds the monitor taken. */
    if (before.breakpoints + before.monitor + before.pauses != 0) {
        result = ca_session_attach(&s, false);
        if (result == CA_OK) result = ca_recover(&s);
    }
    /* What stays is of agents that live, and may have become more meanwhile. */
    const struct ca_left after = left_in(s.file.ledger);
    if (after.breakpoints < before.breakpoints) undone->breakpoints = before.breakpoints - after.breakpoints;
    if (after.monitor < before.monitor) undone->monitor = 1;
    if (after.pauses < before.pauses) undone->pauses = before.pauses - after.pauses;
    ca_session_close(&s);
    return result;
}
