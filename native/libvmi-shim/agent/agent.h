/* Private to the event agent: one domain, one client, one thread. */
#ifndef CA_AGENT_H
#define CA_AGENT_H

#include <poll.h>

#include "events_program.h"
#include "events_ring.h"
#include "session.h"

#define CA_CONTROL_FD 3
#define CA_RING_FD 4
#define CA_OUT_BYTES 16384u

struct ca_agent;

/* control.c: frames to and from the client. Nothing here blocks; a client that does not read is not read from. */
struct ca_control {
    int fd;
    bool closed; /* the client has gone, or spoke nonsense */
    bool wake;   /* a wake is owed and did not fit */
    uint32_t in_bytes, out_bytes;
    uint8_t in[CA_FRAME_HEADER + CA_FRAME_MAX];
    uint8_t out[CA_OUT_BYTES];
};
void ca_control_open(struct ca_control *control, int fd);
short ca_control_events(const struct ca_control *control);
/* Reads, runs each whole frame by ca_agent_request(), and writes. */
void ca_control_run(struct ca_control *control, struct ca_agent *agent);
void ca_control_flush(struct ca_control *control);
void ca_control_reply(struct ca_control *control, uint32_t id, int64_t value);
/* The last frame: waits until it is out, for a second at most. */
void ca_control_gone(struct ca_control *control, const char *text);

#define CA_NONE UINT32_MAX

struct ca_subscriber {
    bool used;
    uint32_t breakpoint; /* index, or CA_NONE */
    struct ca_program_data program;
    struct ca_rate rate;
};

struct ca_synthetic {
    uint32_t program;
    uint64_t events, done, rate, started;
    bool behind;
};

/* An instruction of the guest that has ours in its place. */
struct ca_breakpoint {
    uint32_t users; /* 0: free */
    uint64_t gpa, va;
    struct ca_patch *patch;
    uint8_t *page;
    struct ca_answer answer; /* how the instruction is done without taking ours out */
};

/* What Xen traps for us now. */
struct ca_traps {
    bool control[3], change[3]; /* by VM_EVENT_X86_CR* */
    bool cpuid, descriptor, breakpoint, request;
    uint32_t msrs;
    uint32_t msr[CA_PROGRAMS_MAX];
};

struct ca_monitor {
    bool on;
    int32_t mem; /* the domain's memory, for what programs read */
    void *channel;
    int port;
    uint64_t frame;
    struct vm_event_ring *ring;
    uint32_t next; /* index of the next request */
    struct ca_traps traps;
    bool faulted;         /* a read failed since the mappings were made */
    uint64_t invalidated; /* when they were made */
};

struct ca_agent {
    uint32_t domid;
    bool synthetic_only;
    struct ca_session session;
    struct ca_monitor monitor;
    uint32_t pauses; /* of the client */
    struct ca_breakpoint breakpoint[CA_BREAKPOINTS_MAX];
    const char *gone; /* what became of the domain */
    void *store;      /* watched for the domain's suspension; NULL if it can not be */
    struct ca_control control;
    struct ca_producer ring;
    struct ca_subscriber subscriber[CA_PROGRAMS_MAX];
    struct ca_synthetic synthetic;
};

/* requests.c: runs one frame of the client and replies to it. */
void ca_agent_request(struct ca_agent *agent, uint32_t type, uint32_t id, const uint8_t *payload, uint32_t bytes);

/* deliver.c: evaluates one subscriber's program on an event and puts the record on the ring. */
void ca_deliver(struct ca_agent *agent, uint32_t number, const struct ca_event *event, struct ca_mem *mem, uint64_t now);

/* synthetic.c: how long poll() may wait, in us; and the events that are due. */
int32_t ca_synthetic_start(struct ca_agent *agent, uint64_t program, uint64_t events, uint64_t rate);
int64_t ca_synthetic_wait(const struct ca_agent *agent);
void ca_synthetic_run(struct ca_agent *agent);

/* monitor.c: Xen's ring. */
int32_t ca_monitor_start(struct ca_agent *agent);
/* Restores, answers and gives up the monitor. */
void ca_monitor_stop(struct ca_agent *agent);
int ca_monitor_fd(const struct ca_agent *agent);
/* Takes, evaluates and answers what is on the ring. */
void ca_monitor_run(struct ca_agent *agent);
/* Once in a while: mappings that may be stale. */
void ca_monitor_tick(struct ca_agent *agent);

/* traps.c: has Xen trap what the subscribers need, no more. */
int32_t ca_traps_apply(struct ca_agent *agent);
/* Bits of enum ca_trap_support. */
int64_t ca_traps_probe(struct ca_agent *agent);

/* breakpoint.c */
int32_t ca_breakpoint_add(struct ca_agent *agent, uint32_t number);
void ca_breakpoint_remove(struct ca_agent *agent, uint32_t number);
/* The breakpoint an event is of, or CA_NONE. */
uint32_t ca_breakpoint_find(struct ca_agent *agent, const struct ca_event *event, struct ca_mem *mem);

/* worker.c: serves until the client or the domain has gone, or a signal says so. Returns the exit status. */
int ca_worker(struct ca_agent *agent);

#endif
