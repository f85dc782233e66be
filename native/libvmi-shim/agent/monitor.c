/*
 * The monitor of a domain. libxenctrl's xc_monitor_enable() would do, but takes the ring's page out of the domain's memory
 * for good, so that nobody could answer in place of a process that was killed, and pauses the domain meanwhile, a pause
 * nobody undoes if it is killed. So: the same steps, the pause written in the ledger, and the page stays where it is, of
 * a type the domain can not write (HVMMEM_ram_ro).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>

#include "agent.h"

#define STALE_NS 5000000000ull

static int32_t fail(const char *what, uint32_t domid) {
    int error = errno;
    if (error == EBUSY || error == EEXIST)
        return ca_fail(CA_E_OPEN, "another program has the monitor of domain %u: Xen gives it to one at a time", domid);
    if (error == EOPNOTSUPP || error == ENOSYS || error == ENODEV)
        return ca_fail(CA_E_UNSUPPORTED, "this host can not %s domain %u: %s", what, domid, strerror(error));
    errno = error;
    return ca_xen_failed(what, domid);
}

/* The domain is paused: nothing it wrote to the page before can be taken for an event. */
static int32_t make_ring(struct ca_agent *agent, uint32_t *port) {
    struct ca_session *s = &agent->session;
    struct ca_monitor *m = &agent->monitor;
    void *control = s->xen->control;
    if (s->events->parameter(control, s->domid, HVM_PARAM_MONITOR_RING_PFN, &m->frame) != 0) return fail("find the ring of", s->domid);
    m->ring = (struct vm_event_ring *)(void *)ca_session_map(s, m->frame);
    if (m->ring == NULL) {
        /* Another tool has taken it out. */
        uint64_t frame = m->frame;
        if (s->events->populate(control, s->domid, 1, 0, 0, &frame) == 0)
            m->ring = (struct vm_event_ring *)(void *)ca_session_map(s, m->frame);
    }
    if (m->ring == NULL) return fail("map the ring of", s->domid);
    s->events->page_type(control, s->domid, HVMMEM_ram_rw, m->frame, 1);
    memset(m->ring, 0, CA_PAGE);
    m->ring->req_event = m->ring->rsp_event = 1;
    m->next = 0;
    if (s->events->vm_event(control, s->domid, XEN_VM_EVENT_ENABLE, XEN_DOMCTL_VM_EVENT_OP_MONITOR, port) != 0)
        return fail("monitor", s->domid);
    if (s->events->page_type(control, s->domid, HVMMEM_ram_ro, m->frame, 1) != 0) return fail("protect the ring of", s->domid);
    return CA_OK;
}

int32_t ca_monitor_start(struct ca_agent *agent) {
    struct ca_session *s = &agent->session;
    struct ca_monitor *m = &agent->monitor;
    struct ca_ledger *ledger = s->file.ledger;
    if (m->on) return CA_OK;
    if (!ca_ledger_lock(&s->file, CA_LOCK_MONITOR))
        return ca_fail(CA_E_OPEN, "another event agent serves domain %u: share its client", s->domid);
    /* What an agent left that was killed. */
    int32_t result = ca_detach(s);
    if (result != CA_OK) goto unlock;
    m->mem = ca_xen_open(s->domid, 0, 0);
    if (m->mem < 0) {
        result = m->mem;
        goto unlock;
    }
    m->invalidated = ca_now();
    m->channel = s->events->channel_open(NULL, 0);
    if (m->channel == NULL) {
        result = ca_fail(CA_E_UNSUPPORTED, "event channels can not be opened (%s): modprobe xen-evtchn", strerror(errno));
        ca_mem_close(m->mem);
        goto unlock;
    }
    result = ca_session_pause(s);
    if (result == CA_OK) {
        uint32_t port = 0;
        atomic_store(&ledger->monitor, 1);
        result = make_ring(agent, &port);
        if (result == CA_E_OPEN) atomic_store(&ledger->monitor, 0); /* not ours, and not to be undone */
        if (result == CA_OK) {
            m->port = s->events->channel_bind(m->channel, s->domid, port);
            if (m->port < 0) result = fail("bind the event channel of", s->domid);
            /* Looked at in between as well, where there may be nothing. */
            int fd = s->events->channel_fd(m->channel);
            fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
        }
        ca_session_unpause(s);
    }
    m->traps = (struct ca_traps){0};
    m->on = true;
    if (result != CA_OK) ca_monitor_stop(agent);
    return result;
unlock:
    ca_ledger_unlock(&s->file, CA_LOCK_MONITOR);
    return result;
}

void ca_monitor_stop(struct ca_agent *agent) {
    struct ca_session *s = &agent->session;
    struct ca_monitor *m = &agent->monitor;
    if (!m->on) return;
    m->on = false;
    char kept[512];
    ca_last_error(kept, sizeof kept);
    for (uint32_t i = 0; i < CA_BREAKPOINTS_MAX; i++) {
        if (agent->breakpoint[i].page != NULL) ca_session_unmap(s, agent->breakpoint[i].page);
        agent->breakpoint[i] = (struct ca_breakpoint){0};
    }
    ca_detach(s);
    s->events->channel_close(m->channel);
    if (m->ring != NULL) ca_session_unmap(s, (uint8_t *)m->ring);
    m->ring = NULL;
    ca_mem_close(m->mem);
    ca_ledger_unlock(&s->file, CA_LOCK_MONITOR);
    ca_fail(CA_OK, "%s", kept);
}

int ca_monitor_fd(const struct ca_agent *agent) {
    return agent->monitor.on ? agent->session.events->channel_fd(agent->monitor.channel) : -1;
}

static bool wants(const struct ca_agent *agent, uint32_t number, const struct ca_event *event, uint64_t argument, uint32_t breakpoint) {
    const struct ca_subscriber *s = &agent->subscriber[number];
    const struct ca_program_data *p = &s->program;
    if (!s->used || p->trap != event->trap) return false;
    switch (p->trap) {
    case CA_TRAP_REGISTER:
        if ((p->flags & CA_PROGRAM_ON_CHANGE) != 0 && event->fields[CA_FIELD_NEW_VALUE] == event->fields[CA_FIELD_OLD_VALUE])
            return false;
        return p->argument == argument;
    case CA_TRAP_MSR: return p->argument == argument;
    case CA_TRAP_BREAKPOINT:
        /* A lower-half address is of one process; the kernel's two tables of one differ in bit 12 (page-table isolation). */
        return s->breakpoint == breakpoint &&
               (p->argument >> 63 != 0 || (event->registers[CA_REG_RIP] == p->argument &&
                                           ((event->registers[CA_REG_CR3] ^ p->space) & CA_SPACE_ROOT & ~0x1000ull) == 0));
    default: return true;
    }
}

static struct ca_answer evaluate(struct ca_agent *agent, const struct vm_event *request, struct ca_mem *mem) {
    static const uint64_t registers[] = {0, 3, 4};
    struct ca_event event;
    uint64_t argument = 0, now = ca_now();
    uint32_t breakpoint = CA_NONE;
    ca_event_from(&event, request);
    if (request->reason == VM_EVENT_REASON_WRITE_CTRLREG && request->u.register_write.index < 3)
        argument = registers[request->u.register_write.index];
    if (request->reason == VM_EVENT_REASON_MOV_TO_MSR) argument = request->u.msr.msr;
    if (event.trap == CA_TRAP_BREAKPOINT || event.trap == CA_TRAP_DESCRIPTOR) breakpoint = ca_breakpoint_find(agent, &event, mem);
    struct ca_answer answer;
    if (breakpoint != CA_NONE) {
        event.trap = CA_TRAP_BREAKPOINT;
        memset(event.fields, 0, sizeof event.fields);
        answer = agent->breakpoint[breakpoint].answer;
    } else {
        answer = ca_answer_own(&agent->session, request, mem);
        /* A breakpoint that was taken out while this was on its way, or the guest's own INT3. */
        if (event.trap == CA_TRAP_BREAKPOINT || (event.trap == CA_TRAP_DESCRIPTOR && answer.kind == CA_ANSWER_PASS)) return answer;
    }
    for (uint32_t i = 0; i < CA_PROGRAMS_MAX; i++)
        if (wants(agent, i, &event, argument, breakpoint)) ca_deliver(agent, i, &event, mem, now);
    return answer;
}

void ca_monitor_run(struct ca_agent *agent) {
    struct ca_session *s = &agent->session;
    struct ca_monitor *m = &agent->monitor;
    if (!m->on) return;
    int port = s->events->channel_pending(m->channel);
    if (port >= 0) s->events->channel_unmask(m->channel, (uint32_t)port);
    /* At most one ring's worth: the client's frames have their turn too. */
    for (uint32_t done = 0; done < VM_EVENT_SLOTS * 4; done++) {
        if (m->next == __atomic_load_n(&m->ring->req_prod, __ATOMIC_ACQUIRE)) return;
        struct vm_event request = m->ring->slot[m->next & (VM_EVENT_SLOTS - 1)];
        struct ca_mem *mem = NULL;
        if (ca_enter(m->mem, CA_ARMED, &mem) != CA_OK) mem = NULL;
        struct ca_answer answer = evaluate(agent, &request, mem);
        if (mem != NULL) ca_leave(mem);
        ca_answer_put(s->file.ledger, m->ring, m->next, &request, &answer);
        m->next++;
        s->events->channel_notify(m->channel, (uint32_t)m->port);
    }
}

void ca_monitor_tick(struct ca_agent *agent) {
    struct ca_monitor *m = &agent->monitor;
    if (!m->on || !m->faulted || ca_now() - m->invalidated < STALE_NS) return;
    /* A page the guest gave back and got again is another one than we have mapped. */
    ca_mem_invalidate(m->mem);
    m->faulted = false;
    m->invalidated = ca_now();
}
