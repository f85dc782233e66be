#include "agent.h"

void ca_deliver(struct ca_agent *agent, uint32_t number, const struct ca_event *event, struct ca_mem *mem, uint64_t now) {
    struct ca_subscriber *s = &agent->subscriber[number];
    const struct ca_program_data *p = &s->program;
    if (!ca_program_matches(p, event, mem)) return;
    uint64_t *to = ca_rate_take(&s->rate, p->rate, now) ? ca_producer_reserve(&agent->ring, p->bytes) : NULL;
    if (to != NULL) {
        const uint32_t head[2] = {p->bytes / 8, number}, vcpu[2] = {event->vcpu, 0};
        memcpy(&to[CA_RECORD_HEAD], head, 8);
        to[CA_RECORD_TIME] = now;
        memcpy(&to[CA_RECORD_VCPU], vcpu, 8);
        to[CA_RECORD_SERIAL] = agent->ring.matched[number];
        to[CA_RECORD_CR3] = event->registers[CA_REG_CR3];
        to[CA_RECORD_RIP] = event->registers[CA_REG_RIP];
        ca_program_capture(p, event, mem, to + CA_RECORD_WORDS);
    }
    /* Counted before it can be seen, so that no consumer finds a record that the counts do not know. */
    ca_producer_count(&agent->ring, number, to == NULL);
    if (to != NULL && ca_producer_publish(&agent->ring, p->bytes)) agent->control.wake = true;
}
