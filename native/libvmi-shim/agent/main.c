/*
 * cloudapp-event-agent: two processes. The worker (worker.c) serves; this one, the supervisor, does nothing but wait, so
 * that whatever ends the worker, somebody is there at once to undo what it did to the domain.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent.h"

static int usage(void) {
    fputs("usage: cloudapp-event-agent DOMID [--recover | --synthetic]\n"
          "       cloudapp-event-agent --recover\n"
          "Started by @cloudapp/sdk with a control socket as descriptor 3 and a ring as descriptor 4; see cloudapp_events.h.\n",
          stderr);
    return 2;
}

/* Signals ask for a clean end, which only the worker can make. */
static int supervise(struct ca_agent *agent, pid_t worker, const sigset_t *set) {
    for (;;) {
        int signal = sigwaitinfo(set, NULL);
        if (signal < 0 && errno != EINTR) return 1;
        if (signal > 0 && signal != SIGCHLD) kill(worker, SIGTERM);
        int status;
        if (waitpid(worker, &status, WNOHANG) != worker) continue;
        if (agent->synthetic_only) return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
        /* Also after a clean end, which leaves nothing to do: looking costs nothing. The client sees its socket close
         * only after this, as we hold it too. */
        int32_t result = ca_recover(&agent->session);
        return WIFEXITED(status) && result == CA_OK ? WEXITSTATUS(status) : 1;
    }
}

/* A line for each domain in which something was undone: its number, breakpoints, monitor (0 or 1), pauses. */
static int recover_only(const uint32_t *domids, uint32_t count) {
    int failed = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct ca_left undone;
        if (ca_recover_domain(domids[i], &undone) != CA_OK) {
            char text[512];
            ca_last_error(text, sizeof text);
            fprintf(stderr, "cloudapp-event-agent: %s\n", text);
            failed = 1;
        }
        if (undone.breakpoints + undone.monitor + undone.pauses != 0)
            printf("%u %u %u %u\n", domids[i], undone.breakpoints, undone.monitor, undone.pauses);
    }
    return failed;
}

int main(int count, char **words) {
    bool synthetic = count == 3 && strcmp(words[2], "--synthetic") == 0;
    bool recover = count == 3 && strcmp(words[2], "--recover") == 0;
    if (count == 2 && strcmp(words[1], "--recover") == 0) {
        static uint32_t domids[CA_DOMAINS];
        setsid();
        /* Without Xen there are no domains. */
        if (access("/sys/hypervisor/version", F_OK) != 0) return 0;
        return recover_only(domids, ca_ledger_domains(domids, CA_DOMAINS));
    }
    char *end = NULL;
    unsigned long domid = count >= 2 ? strtoul(words[1], &end, 10) : 0;
    if (count < 2 || count > 3 || (count == 3 && !synthetic && !recover) || end == words[1] || *end != 0 || domid >= CA_DOMAINS)
        return usage();
    /* Too large for a stack, and there is one. */
    static struct ca_agent agent;
    agent.domid = (uint32_t)domid;
    agent.synthetic_only = synthetic;
    /* Out of the client's process group: what ends that one must not end us both at once. */
    setsid();
    if (recover) return recover_only(&agent.domid, 1);
    close_range(CA_RING_FD + 1, ~0u, 0);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, NULL);
    int32_t result = synthetic ? CA_OK : ca_session_open(&agent.session, agent.domid);
    if (result != CA_OK) {
        ca_control_open(&agent.control, CA_CONTROL_FD);
        ca_control_reply(&agent.control, 0, result);
        ca_control_flush(&agent.control);
        return 1;
    }
    /* What an agent left that was killed; and what this process needs when its worker is. */
    if (!synthetic && ca_session_attach(&agent.session, false) == CA_OK) ca_recover(&agent.session);
    pid_t supervisor = getpid(), worker = fork();
    if (worker < 0) return 1;
    if (worker == 0) {
        prctl(PR_SET_PDEATHSIG, SIGTERM);
        if (getppid() != supervisor) return 1;
        return ca_worker(&agent);
    }
    return supervise(&agent, worker, &set);
}
