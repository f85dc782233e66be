/* The agent's loop: the client's frames, the domain's events, signals. It waits for nothing else, least of all the client. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"

#define TICK_US 500000

int ca_worker(struct ca_agent *agent) {
    ca_control_open(&agent->control, CA_CONTROL_FD);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    sigprocmask(SIG_BLOCK, &set, NULL);
    int signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    int32_t result = signals < 0 ? ca_fail(CA_E_NOMEM, "signalfd: %s", strerror(errno)) : ca_producer_open(&agent->ring, CA_RING_FD);
    ca_control_reply(&agent->control, 0, result);
    ca_control_flush(&agent->control);
    bool signalled = false;
    while (result == CA_OK && !agent->control.closed && !signalled) {
        struct pollfd fds[2] = {{agent->control.fd, ca_control_events(&agent->control), 0}, {signals, POLLIN, 0}};
        int64_t wait = ca_synthetic_wait(agent);
        if (wait < 0 || wait > TICK_US) wait = TICK_US;
        const struct timespec timeout = {wait / 1000000, wait % 1000000 * 1000};
        if (ppoll(fds, 2, &timeout, NULL) < 0 && errno != EINTR) break;
        signalled = fds[1].revents != 0;
        if (fds[0].revents != 0) ca_control_run(&agent->control, agent);
        ca_synthetic_run(agent);
    }
    ca_producer_close(&agent->ring);
    return result == CA_OK ? 0 : 1;
}
