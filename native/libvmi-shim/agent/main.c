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

static int recover_only(struct ca_agent *agent) {
    struct ca_session *s = &agent->session;
    int32_t result = ca_session_open(s, agent->domid);
    if (result == CA_E_OPEN) {
        /* No domain, nothing to undo. */
        ca_ledger_remove(agent->domid);
        return 0;
    }
    if (result == CA_OK) result = ca_session_attach(s, false);
    if (result == CA_OK) result = ca_recover(s);
    if (result == CA_OK) return 0;
    char text[512];
    ca_last_error(text, sizeof text);
    fprintf(stderr, "cloudapp-event-agent: %s\n", text);
    return 1;
}

int main(int count, char **words) {
    bool synthetic = count == 3 && strcmp(words[2], "--synthetic") == 0;
    bool recover = count == 3 && strcmp(words[2], "--recover") == 0;
    char *end = NULL;
    unsigned long domid = count >= 2 ? strtoul(words[1], &end, 10) : 0;
    if (count < 2 || count > 3 || (count == 3 && !synthetic && !recover) || end == words[1] || *end != 0 || domid >= 0x7ff0)
        return usage();
    /* Too large for a stack, and there is one. */
    static struct ca_agent agent;
    agent.domid = (uint32_t)domid;
    agent.synthetic_only = synthetic;
    /* Out of the client's process group: what ends that one must not end us both at once. */
    setsid();
    if (recover) return recover_only(&agent);
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
