/* Events without a guest: what the way from here to the consumer costs, where emulated exits would hide it. */
#include "agent.h"

#define CHUNK 2048u
#define TICK_US 250

int32_t ca_synthetic_start(struct ca_agent *agent, uint64_t program, uint64_t events, uint64_t rate) {
    if (!agent->synthetic_only) return ca_fail(CA_E_UNSUPPORTED, "synthetic events need an agent started with --synthetic");
    if (program >= CA_PROGRAMS_MAX || !agent->subscriber[program].used) return ca_fail(CA_E_ARGUMENT, "there is no such program");
    if (agent->synthetic.done < agent->synthetic.events) return ca_fail(CA_E_ARGUMENT, "synthetic events are under way");
    if (rate > 1000000000ull || events > 1ull << 40) return ca_fail(CA_E_ARGUMENT, "that many events would never end");
    agent->synthetic = (struct ca_synthetic){(uint32_t)program, events, 0, rate, ca_now(), false};
    return CA_OK;
}

int64_t ca_synthetic_wait(const struct ca_agent *agent) {
    const struct ca_synthetic *s = &agent->synthetic;
    if (s->done >= s->events) return -1;
    return s->rate == 0 || s->behind ? 0 : TICK_US;
}

void ca_synthetic_run(struct ca_agent *agent) {
    struct ca_synthetic *s = &agent->synthetic;
    if (s->done >= s->events) return;
    if (!agent->subscriber[s->program].used) {
        s->done = s->events;
        return;
    }
    uint64_t now = ca_now(), due = s->done + CHUNK;
    if (s->rate != 0) {
        uint64_t passed = now - s->started;
        uint64_t by_now = passed / 1000000000ull * s->rate + passed % 1000000000ull * s->rate / 1000000000ull;
        s->behind = by_now > due;
        if (!s->behind) due = by_now;
    }
    if (due > s->events) due = s->events;
    for (; s->done < due; s->done++) {
        struct ca_event event = {.trap = agent->subscriber[s->program].program.trap};
        event.registers[CA_REG_RAX] = s->done;
        ca_deliver(agent, s->program, &event, NULL, ca_now());
    }
}
