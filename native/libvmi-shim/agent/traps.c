#define _GNU_SOURCE
#include <cpuid.h>
#include <errno.h>
#include <stdlib.h>

#include "agent.h"

static int32_t refused(struct ca_agent *agent, const char *what, uint32_t event) {
    int error = errno;
    uint32_t bits = 0;
    const struct ca_session *s = &agent->session;
    if (s->events->capabilities(s->xen->control, s->domid, &bits) == 0 && (bits >> event & 1) == 0)
        return ca_fail(CA_E_UNSUPPORTED, "this host can not trap %s in domain %u (its processor, or this release of Xen, lacks it)", what, s->domid);
    errno = error;
    return ca_xen_failed(what, s->domid);
}

static struct ca_traps needed(const struct ca_agent *agent) {
    struct ca_traps want = {.change = {true, true, true}};
    for (uint32_t i = 0; i < CA_PROGRAMS_MAX; i++) {
        const struct ca_subscriber *s = &agent->subscriber[i];
        if (!s->used) continue;
        uint32_t index, at = 0;
        switch (s->program.trap) {
        case CA_TRAP_REGISTER:
            index = s->program.argument == 0 ? VM_EVENT_X86_CR0 : s->program.argument == 3 ? VM_EVENT_X86_CR3 : VM_EVENT_X86_CR4;
            want.control[index] = true;
            want.change[index] &= (s->program.flags & CA_PROGRAM_ON_CHANGE) != 0;
            break;
        case CA_TRAP_CPUID: want.cpuid = true; break;
        case CA_TRAP_DESCRIPTOR: want.descriptor = true; break;
        case CA_TRAP_GUEST_REQUEST: want.request = true; break;
        case CA_TRAP_MSR:
            while (at < want.msrs && want.msr[at] != s->program.argument) at++;
            if (at == want.msrs) want.msr[want.msrs++] = (uint32_t)s->program.argument;
            break;
        case CA_TRAP_BREAKPOINT:
            if ((ca_traps_probe((struct ca_agent *)(uintptr_t)agent) & CA_SUPPORT_INT3) != 0) want.breakpoint = true;
            else want.descriptor = true;
            break;
        default: break;
        }
    }
    return want;
}

static bool has(const struct ca_traps *traps, uint32_t msr) {
    for (uint32_t i = 0; i < traps->msrs; i++)
        if (traps->msr[i] == msr) return true;
    return false;
}

static int32_t apply_msrs(struct ca_agent *agent, const struct ca_traps *want) {
    struct ca_session *s = &agent->session;
    struct ca_traps *have = &agent->monitor.traps;
    void *control = s->xen->control;
    for (uint32_t i = 0; i < have->msrs; i++)
        if (!has(want, have->msr[i])) s->events->on_msr(control, s->domid, have->msr[i], false, false);
    struct ca_traps before = *have;
    have->msrs = 0;
    for (uint32_t i = 0; i < want->msrs; i++)
        if (has(&before, want->msr[i])) have->msr[have->msrs++] = want->msr[i];
    /* In the ledger before it is done. */
    memcpy(s->file.ledger->msr, want->msr, sizeof want->msr);
    s->file.ledger->msrs = want->msrs;
    for (uint32_t i = 0; i < want->msrs; i++) {
        if (has(have, want->msr[i])) continue;
        if (s->events->on_msr(control, s->domid, want->msr[i], true, false) != 0)
            return refused(agent, "writes of this MSR", XEN_DOMCTL_MONITOR_EVENT_MOV_TO_MSR);
        have->msr[have->msrs++] = want->msr[i];
    }
    return CA_OK;
}

int32_t ca_traps_apply(struct ca_agent *agent) {
    struct ca_session *s = &agent->session;
    const struct ca_xen_events *e = s->events;
    struct ca_traps want = needed(agent), *have = &agent->monitor.traps;
    void *control = s->xen->control;
    for (uint16_t i = 0; i < 3; i++) {
        if (have->control[i] == want.control[i] && (!want.control[i] || have->change[i] == want.change[i])) continue;
        if (have->control[i]) e->on_register(control, s->domid, i, false, false, 0, false);
        have->control[i] = false;
        if (want.control[i] && e->on_register(control, s->domid, i, true, true, 0, want.change[i]) != 0)
            return refused(agent, "register writes", XEN_DOMCTL_MONITOR_EVENT_WRITE_CTRLREG);
        have->control[i] = want.control[i];
        have->change[i] = want.change[i];
    }
    if (have->cpuid != want.cpuid && e->on_cpuid(control, s->domid, want.cpuid) != 0 && want.cpuid)
        return refused(agent, "CPUID", XEN_DOMCTL_MONITOR_EVENT_CPUID);
    have->cpuid = want.cpuid;
    if (have->descriptor != want.descriptor && e->on_descriptor(control, s->domid, want.descriptor) != 0 && want.descriptor)
        return refused(agent, "descriptor-table access", XEN_DOMCTL_MONITOR_EVENT_DESC_ACCESS);
    have->descriptor = want.descriptor;
    if (have->breakpoint != want.breakpoint && e->on_breakpoint(control, s->domid, want.breakpoint) != 0 && want.breakpoint)
        return refused(agent, "breakpoints", XEN_DOMCTL_MONITOR_EVENT_SOFTWARE_BREAKPOINT);
    have->breakpoint = want.breakpoint;
    if (have->request != want.request && e->on_request(control, s->domid, want.request, want.request, false) != 0 && want.request)
        return refused(agent, "guest requests", XEN_DOMCTL_MONITOR_EVENT_GUEST_REQUEST);
    have->request = want.request;
    return apply_msrs(agent, &want);
}

/*
 * Whether INT3 leaves the guest can not be tried on a guest: where it does not, the guest gets an exception it does not
 * expect. Every processor Xen runs on can intercept it; what can not is QEMU's software emulation of SVM (TCG raises the
 * intercepts of exceptions, and takes INT3 for an interrupt). That one says who it is: in the hypervisor leaf of CPUID, which
 * a PV control domain reads from the processor itself, or in the processor's name. Another nested hypervisor with the same
 * fault would have to be named by hand.
 */
static bool int3_exits(void) {
    const char *said = getenv("CLOUDAPP_BREAKPOINT");
    if (said != NULL && strcmp(said, "int3") == 0) return true;
    if (said != NULL && strcmp(said, "descriptor") == 0) return false;
    uint32_t words[12] = {0};
    uint32_t highest, unused;
    __cpuid(0x40000000, unused, words[0], words[1], words[2]);
    if (memcmp(words, "TCGTCGTCGTCG", 12) == 0) return false;
    __cpuid(0x80000000, highest, words[0], words[1], words[2]);
    if (highest >= 0x80000004)
        for (uint32_t i = 0; i < 3; i++)
            __cpuid(0x80000002 + i, words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]);
    return memmem(words, sizeof words, "QEMU TCG", 8) == NULL;
}

int64_t ca_traps_probe(struct ca_agent *agent) {
    struct ca_session *s = &agent->session;
    uint32_t bits = 0;
    if (agent->synthetic_only) return ca_fail(CA_E_UNSUPPORTED, "an agent with --synthetic has no domain");
    if (s->events->capabilities(s->xen->control, s->domid, &bits) != 0) return ca_xen_failed("ask what can be trapped in", s->domid);
    int64_t answer = 0;
    if (bits >> XEN_DOMCTL_MONITOR_EVENT_WRITE_CTRLREG & 1) answer |= 1 << CA_TRAP_REGISTER;
    if (bits >> XEN_DOMCTL_MONITOR_EVENT_CPUID & 1) answer |= 1 << CA_TRAP_CPUID;
    if (bits >> XEN_DOMCTL_MONITOR_EVENT_MOV_TO_MSR & 1) answer |= 1 << CA_TRAP_MSR;
    if (bits >> XEN_DOMCTL_MONITOR_EVENT_DESC_ACCESS & 1) answer |= 1 << CA_TRAP_DESCRIPTOR;
    if (bits >> XEN_DOMCTL_MONITOR_EVENT_GUEST_REQUEST & 1) answer |= 1 << CA_TRAP_GUEST_REQUEST;
    if ((bits >> XEN_DOMCTL_MONITOR_EVENT_SOFTWARE_BREAKPOINT & 1) != 0 && int3_exits())
        answer |= 1 << CA_TRAP_BREAKPOINT | CA_SUPPORT_INT3;
    else if (bits >> XEN_DOMCTL_MONITOR_EVENT_DESC_ACCESS & 1)
        answer |= 1 << CA_TRAP_BREAKPOINT | CA_SUPPORT_DESCRIPTOR;
    return answer;
}
