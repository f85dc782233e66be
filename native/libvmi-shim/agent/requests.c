/* What the client asks for. Each frame is checked here; the payload is at most CA_FRAME_MAX bytes, unaligned. */
#include "agent.h"

static int64_t subscribe(struct ca_agent *agent, const uint8_t *payload, uint32_t bytes) {
    struct ca_program_data program;
    int32_t result = ca_program_parse(&program, payload, bytes);
    if (result != CA_OK) return result;
    uint32_t number = 0;
    while (number < CA_PROGRAMS_MAX && agent->subscriber[number].used) number++;
    if (number == CA_PROGRAMS_MAX) return ca_fail(CA_E_NOMEM, "there are %d programs already", CA_PROGRAMS_MAX);
    ca_producer_reset(&agent->ring, number);
    agent->subscriber[number] = (struct ca_subscriber){.used = true, .program = program};
    return number;
}

static int64_t unsubscribe(struct ca_agent *agent, uint32_t number) {
    if (number >= CA_PROGRAMS_MAX || !agent->subscriber[number].used) return ca_fail(CA_E_ARGUMENT, "there is no such program");
    agent->subscriber[number].used = false;
    return CA_OK;
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
