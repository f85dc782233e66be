/* What the client asks for. Each frame is checked here; the payload is at most CA_FRAME_MAX bytes, unaligned. */
#include "agent.h"

/* Xen counts to 255 and other tools pause too. */
#define PAUSES_MAX 64u

static bool any(const struct ca_agent *agent) {
    for (uint32_t i = 0; i < CA_PROGRAMS_MAX; i++)
        if (agent->subscriber[i].used) return true;
    return false;
}

/*
 * Takes a program out again, and the monitor with the last one: unless the client has the domain paused, as the monitor is
 * given up only when the vCPUs have run.
 */
static void drop(struct ca_agent *agent, uint32_t number) {
    char kept[512];
    ca_last_error(kept, sizeof kept);
    if (agent->monitor.on) ca_breakpoint_remove(agent, number);
    agent->subscriber[number].used = false;
    if (agent->monitor.on && (any(agent) || agent->pauses > 0)) ca_traps_apply(agent);
    else ca_monitor_stop(agent);
    ca_fail(CA_OK, "%s", kept);
}

static int64_t subscribe(struct ca_agent *agent, const uint8_t *payload, uint32_t bytes) {
    struct ca_program_data program;
    int32_t result = ca_program_parse(&program, payload, bytes);
    if (result != CA_OK) return result;
    uint32_t number = 0;
    while (number < CA_PROGRAMS_MAX && agent->subscriber[number].used) number++;
    if (number == CA_PROGRAMS_MAX) return ca_fail(CA_E_NOMEM, "there are %d programs already", CA_PROGRAMS_MAX);
    if (!agent->synthetic_only) {
        result = ca_monitor_start(agent);
        if (result != CA_OK) return result;
    }
    ca_producer_reset(&agent->ring, number);
    agent->subscriber[number] = (struct ca_subscriber){.used = true, .breakpoint = CA_NONE, .program = program};
    if (!agent->synthetic_only) {
        result = ca_traps_apply(agent);
        if (result == CA_OK && program.trap == CA_TRAP_BREAKPOINT) result = ca_breakpoint_add(agent, number);
    }
    if (result == CA_OK) return number;
    drop(agent, number);
    return result;
}

static int64_t unsubscribe(struct ca_agent *agent, uint32_t number) {
    if (number >= CA_PROGRAMS_MAX || !agent->subscriber[number].used) return ca_fail(CA_E_ARGUMENT, "there is no such program");
    drop(agent, number);
    return CA_OK;
}

static int64_t pause_or_not(struct ca_agent *agent, bool pause) {
    if (agent->synthetic_only) return ca_fail(CA_E_UNSUPPORTED, "an agent with --synthetic has no domain");
    if (pause ? agent->pauses == PAUSES_MAX : agent->pauses == 0)
        return ca_fail(CA_E_ARGUMENT, "this client has paused domain %u %u times", agent->domid, agent->pauses);
    int32_t result = pause ? ca_session_pause(&agent->session) : ca_session_unpause(&agent->session);
    if (result == CA_OK || !pause) agent->pauses += pause ? 1 : -1u;
    if (agent->pauses == 0 && !any(agent)) ca_monitor_stop(agent);
    return result;
}

static int64_t run(struct ca_agent *agent, uint32_t type, const uint8_t *payload, uint32_t bytes) {
    uint64_t words[3] = {0};
    uint32_t number;
    switch (type) {
    case CA_FRAME_SUBSCRIBE: return subscribe(agent, payload, bytes);
    case CA_FRAME_UNSUBSCRIBE:
        if (bytes != 4) break;
        memcpy(&number, payload, 4);
        return unsubscribe(agent, number);
    case CA_FRAME_PAUSE:
    case CA_FRAME_UNPAUSE:
        if (bytes != 0) break;
        return pause_or_not(agent, type == CA_FRAME_PAUSE);
    case CA_FRAME_PROBE:
        if (bytes != 0) break;
        return ca_traps_probe(agent);
    case CA_FRAME_SYNTHETIC:
        if (bytes != 24) break;
        memcpy(words, payload, 24);
        return ca_synthetic_start(agent, words[0], words[1], words[2]);
    default: return ca_fail(CA_E_ARGUMENT, "there is no frame of type %u", type);
    }
    return ca_fail(CA_E_ARGUMENT, "a frame of type %u can not have %u bytes", type, bytes);
}

void ca_agent_request(struct ca_agent *agent, uint32_t type, uint32_t id, const uint8_t *payload, uint32_t bytes) {
    ca_control_reply(&agent->control, id, run(agent, type, payload, bytes));
}
