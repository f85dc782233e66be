/* The agent's loop: the client's frames, the domain's events, signals. It waits for nothing else, least of all the client. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"

#define TICK_US 500000

/* Xen's tools ask a domain to suspend by this key, before they look at its memory. */
static void watch(struct ca_agent *agent) {
    char path[64];
    snprintf(path, sizeof path, "/local/domain/%u/control/shutdown", agent->domid);
    agent->store = agent->session.xen->store_open(0);
    if (agent->store != NULL && !agent->session.events->store_watch(agent->store, path, "shutdown")) {
        agent->session.xen->store_close(agent->store);
        agent->store = NULL;
    }
}

static void look(struct ca_agent *agent) {
    char **fired;
    while ((fired = agent->session.events->store_check(agent->store)) != NULL) {
        unsigned length = 0;
        char *value = agent->session.xen->store_read(agent->store, 0, fired[0], &length);
        if (value != NULL && length == 7 && memcmp(value, "suspend", 7) == 0)
            agent->gone = "the domain is being saved or migrated: its bytes were restored first";
        free(value);
        free(fired);
    }
}

static void tick(struct ca_agent *agent) {
    if (agent->gone == NULL) agent->gone = ca_session_fate(&agent->session);
    ca_monitor_tick(agent);
}

/* ns to some ms: unlike ca_now() no system call where the clock of a machine can not be read without, as in dom0. */
static uint64_t about_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static int32_t begin(struct ca_agent *agent) {
    int32_t result = ca_producer_open(&agent->ring, CA_RING_FD);
    if (result != CA_OK || agent->synthetic_only) return result;
    /* Once: nobody else in this process takes the signal. */
    result = ca_guard_arm();
    if (result == CA_OK) result = ca_session_attach(&agent->session, true);
    if (result != CA_OK) return result;
    watch(agent);
    return CA_OK;
}

int ca_worker(struct ca_agent *agent) {
    ca_control_open(&agent->control, CA_CONTROL_FD);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    sigprocmask(SIG_BLOCK, &set, NULL);
    int signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    int32_t result = signals < 0 ? ca_fail(CA_E_NOMEM, "signalfd: %s", strerror(errno)) : begin(agent);
    ca_control_reply(&agent->control, 0, result);
    ca_control_flush(&agent->control);
    bool signalled = false;
    uint64_t ticked = about_now();
    while (result == CA_OK && !agent->control.closed && !signalled && agent->gone == NULL) {
        struct pollfd fds[4] = {{agent->control.fd, ca_control_events(&agent->control), 0},
                                {signals, POLLIN, 0},
                                {ca_monitor_fd(agent), POLLIN, 0},
                                {agent->store == NULL ? -1 : agent->session.events->store_fd(agent->store), POLLIN, 0}};
        int64_t wait = ca_synthetic_wait(agent);
        if (wait < 0 || wait > TICK_US) wait = TICK_US;
        const struct timespec timeout = {wait / 1000000, wait % 1000000 * 1000};
        if (ppoll(fds, 4, &timeout, NULL) < 0 && errno != EINTR) break;
        signalled = fds[1].revents != 0;
        /* The vCPUs first: the client is woken when they run. */
        ca_monitor_run(agent);
        if (fds[3].revents != 0) look(agent);
        if (fds[0].revents != 0) ca_control_run(&agent->control, agent);
        ca_synthetic_run(agent);
        ca_control_flush(&agent->control);
        if (!agent->synthetic_only && about_now() - ticked >= TICK_US * 1000ull) {
            tick(agent);
            ticked = about_now();
        }
    }
    if (!agent->synthetic_only) {
        /* In this order: the monitor is given up only when the vCPUs have run. */
        ca_settle_pauses(&agent->session);
        ca_monitor_stop(agent);
        if (agent->gone != NULL && ca_session_fate(&agent->session) != NULL) ca_ledger_remove(agent->domid);
    }
    if (agent->gone != NULL) ca_control_gone(&agent->control, agent->gone);
    ca_producer_close(&agent->ring);
    return result == CA_OK ? 0 : 1;
}
