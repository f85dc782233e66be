/* A domain of our own whose vCPUs are traced: its state is shared with the processes that are killed while they change it. */
#ifndef CA_TEST_TRACED_DOMAIN_H
#define CA_TEST_TRACED_DOMAIN_H

#include "session.h"
#include "test.h"

#define CODE 0x15000u /* of the instruction with a breakpoint */
#define DOMID 7u

struct traced {
    int pauses, enabled, armed, readonly, resumed, injected, steps;
    int limit; /* the process ends at so many steps; 0: never */
    bool gone, restored_first, answered_first, ran_first;
    uint32_t waiting; /* vCPUs that wait for their answer */
    uint32_t unrun;   /* how often to ask until they have run since */
    uint64_t ran;
};
extern struct traced *traced;
extern uint8_t *traced_ram;
/* The kernel's own bytes at CODE, and a breakpoint's. */
extern const uint8_t traced_nop5[5], traced_sldt[3];

struct vm_event_ring *traced_ring(void);
/* Puts it in place of Xen. */
void traced_new(void);
void traced_end(void);

#endif
