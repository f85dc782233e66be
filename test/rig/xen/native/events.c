/*
 * What the tests of the event agent run in dom0, without Node, whose start there takes seconds.
 *
 *   events run AGENT DOMID MS PROGRAM...    subscribes, drains for so long, says what came
 *   events raw|masked DOMID VA BYTES        hash of the guest's words as they are, or as readers get them
 *   events storm AGENT DOMID KILLS SEED VA BYTES PROGRAM...
 *       kills an agent that runs the programs again and again, and looks each time whether the guest has its own bytes
 *       and each of its vCPUs goes on
 *
 * PROGRAM: cr3, cr3-change, cpuid, descriptor, msr:N, request, bp:VA. Linked with the library's sources.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cloudapp_events.h"
#include "ledger.h"
#include "xen.h"

static void fail(const char *what) {
    char text[512] = "";
    ca_last_error(text, sizeof text);
    printf("FAILED %s: %s\n", what, text);
    exit(1);
}

static void sleep_us(uint64_t us) {
    const struct timespec wait = {(time_t)(us / 1000000), (long)(us % 1000000) * 1000};
    nanosleep(&wait, NULL);
}

static uint64_t space_of(uint32_t domid) {
    uint64_t words[CA_XEN_VCPU_WORDS];
    if (ca_xen_vcpu(domid, 0, words) != CA_OK) fail("the vCPU");
    return (words[4] & CA_SPACE_ROOT) | ((words[5] >> 12 & 1) != 0 ? 5 : 4);
}

/* ---- The client's side of an agent. ---- */

struct client {
    int socket;
    int32_t ring;
    pid_t agent;
    uint32_t id;
    uint8_t in[65536];
    uint32_t bytes;
    bool gone;
};

static void start(struct client *c, const char *agent, uint32_t domid) {
    int pair[2], fd, failed = 0;
    memset(c, 0, sizeof *c);
    c->ring = ca_ring_create(1 << 20, &fd);
    if (c->ring < 0) fail("the ring");
    failed |= socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair);
    c->socket = pair[0];
    c->agent = fork();
    if (failed != 0 || c->agent < 0) fail("fork");
    if (c->agent == 0) {
        char number[16];
        int control = fcntl(pair[1], F_DUPFD, 10), memory = fcntl(fd, F_DUPFD, 10);
        snprintf(number, sizeof number, "%u", domid);
        dup2(control, 3);
        dup2(memory, 4);
        execl(agent, agent, number, NULL);
        _exit(127);
    }
    close(pair[1]);
    close(fd);
}

/* One frame; false at the end of the connection, or after `ms`. */
static bool frame(struct client *c, int ms, uint32_t head[3], uint8_t payload[CA_FRAME_MAX]) {
    uint64_t until = ca_now() + (uint64_t)ms * 1000000;
    for (;;) {
        if (c->bytes >= CA_FRAME_HEADER) {
            memcpy(head, c->in, 12);
            if (c->bytes >= 12 + head[0]) {
                memcpy(payload, c->in + 12, head[0]);
                c->bytes -= 12 + head[0];
                memmove(c->in, c->in + 12 + head[0], c->bytes);
                if (head[1] == CA_FRAME_GONE) {
                    printf("gone: %.*s\n", (int)head[0], payload);
                    c->gone = true;
                }
                return true;
            }
        }
        uint64_t now = ca_now();
        struct pollfd wait = {c->socket, POLLIN, 0};
        if (now >= until || poll(&wait, 1, (int)((until - now) / 1000000) + 1) < 0) return false;
        if (wait.revents == 0) continue;
        ssize_t got = read(c->socket, c->in + c->bytes, sizeof c->in - c->bytes);
        if (got <= 0) return false;
        c->bytes += (uint32_t)got;
    }
}

static int64_t reply(struct client *c, uint32_t id, bool quiet) {
    uint32_t head[3];
    uint8_t payload[CA_FRAME_MAX];
    while (frame(c, 60000, head, payload)) {
        int64_t value;
        if (head[1] != CA_FRAME_REPLY || head[2] != id) continue;
        memcpy(&value, payload, 8);
        if (value < 0 && !quiet) printf("refused %lld: %.*s\n", (long long)value, (int)head[0] - 8, payload + 8);
        return value;
    }
    return INT32_MIN;
}

static int64_t ask(struct client *c, uint32_t type, const void *payload, uint32_t bytes, bool quiet) {
    const uint32_t head[3] = {bytes, type, ++c->id};
    uint8_t buffer[CA_FRAME_MAX + 12];
    memcpy(buffer, head, 12);
    memcpy(buffer + 12, payload, bytes);
    if (send(c->socket, buffer, 12 + bytes, MSG_NOSIGNAL) < 0) return INT32_MIN;
    return reply(c, c->id, quiet);
}

static int64_t subscribe(struct client *c, uint32_t domid, const char *what, bool quiet) {
    uint64_t w[CA_PROGRAM_WORDS + 3 * CA_CAPTURE_WORDS] = {CA_EVENTS_VERSION, 0, 0, 0, 0, 3, 0, 0};
    uint64_t *capture = w + CA_PROGRAM_WORDS;
    capture[0] = CA_CAPTURE_REGISTER, capture[1] = CA_REG_RDI;
    capture[CA_CAPTURE_WORDS] = CA_CAPTURE_MEMORY, capture[CA_CAPTURE_WORDS + 1] = CA_REG_RSP, capture[CA_CAPTURE_WORDS + 2] = 8;
    capture[2 * CA_CAPTURE_WORDS] = CA_CAPTURE_MEMORY, capture[2 * CA_CAPTURE_WORDS + 1] = CA_REG_RIP;
    capture[2 * CA_CAPTURE_WORDS + 2] = 8;
    if (strcmp(what, "cr3") == 0 || strcmp(what, "cr3-change") == 0) {
        w[1] = CA_TRAP_REGISTER, w[2] = 3;
        if (what[3] != 0) w[7] = CA_PROGRAM_ON_CHANGE;
    } else if (strcmp(what, "cpuid") == 0) {
        w[1] = CA_TRAP_CPUID;
    } else if (strcmp(what, "descriptor") == 0) {
        w[1] = CA_TRAP_DESCRIPTOR;
    } else if (strcmp(what, "request") == 0) {
        w[1] = CA_TRAP_GUEST_REQUEST;
    } else if (strncmp(what, "msr:", 4) == 0) {
        w[1] = CA_TRAP_MSR, w[2] = strtoull(what + 4, NULL, 0);
    } else if (strncmp(what, "bp:", 3) == 0) {
        w[1] = CA_TRAP_BREAKPOINT, w[2] = strtoull(what + 3, NULL, 16), w[3] = space_of(domid);
    } else {
        fail(what);
    }
    return ask(c, CA_FRAME_SUBSCRIBE, w, sizeof w, quiet);
}

struct seen {
    uint64_t records, lost, next, first[9];
};

static void drain(struct client *c, struct seen seen[CA_PROGRAMS_MAX]) {
    static _Alignas(8) uint8_t buffer[1 << 20];
    int32_t got;
    while ((got = ca_ring_drain(c->ring, buffer, sizeof buffer)) > 0) {
        for (uint8_t *at = buffer; at < buffer + got;) {
            const uint64_t *words = (const uint64_t *)(const void *)at;
            uint32_t head[2];
            memcpy(head, at, 8);
            struct seen *s = &seen[head[1]];
            if (s->records++ == 0) memcpy(s->first, words + 3, sizeof s->first);
            s->lost += words[CA_RECORD_SERIAL] - s->next;
            s->next = words[CA_RECORD_SERIAL] + 1;
            at += head[0] * 8u;
        }
    }
    if (got < 0) fail("the ring");
}

static int run(const char *agent, uint32_t domid, uint64_t ms, char **programs) {
    static struct client c;
    static struct seen seen[CA_PROGRAMS_MAX];
    int64_t number[CA_PROGRAMS_MAX];
    uint32_t count = 0, head[3];
    uint8_t payload[CA_FRAME_MAX];
    start(&c, agent, domid);
    if (reply(&c, 0, false) != CA_OK) return 1;
    printf("support 0x%llx\n", (long long)ask(&c, CA_FRAME_PROBE, NULL, 0, false));
    for (; programs[count] != NULL; count++) number[count] = subscribe(&c, domid, programs[count], false);
    printf("subscribed\n");
    fflush(stdout);
    uint64_t until = ca_now() + ms * 1000000;
    while (ca_now() < until && !c.gone) {
        drain(&c, seen);
        frame(&c, 50, head, payload);
    }
    for (uint32_t i = 0; i < count; i++) {
        if (number[i] < 0) continue;
        uint64_t counts[2];
        ca_ring_counts(c.ring, (uint32_t)number[i], counts);
        const struct seen *s = &seen[number[i]];
        printf("%s: %llu records, %llu lost, counts %llu of %llu; first cr3 %llx rip %llx rdi %llx stack %llx code %llx\n", programs[i],
               (unsigned long long)s->records, (unsigned long long)s->lost, (unsigned long long)counts[0], (unsigned long long)counts[1],
               (unsigned long long)s->first[1], (unsigned long long)s->first[2], (unsigned long long)s->first[3],
               (unsigned long long)s->first[5], (unsigned long long)s->first[7]);
    }
    close(c.socket);
    int status;
    waitpid(c.agent, &status, 0);
    printf("ended %d\n", status);
    return 0;
}

/* ---- Looking at the guest. ---- */

static uint64_t hash(uint32_t domid, uint64_t space, uint64_t va, uint64_t bytes, bool masked) {
    uint64_t page[512];
    uint64_t value = 0xcbf29ce484222325ull;
    /* No folder can be made there, so no ledger is found. */
    if (!masked) ca_ledger_use("/proc/none");
    int32_t mem = ca_xen_open(domid, 0, 0);
    struct ca_mem *entered;
    if (mem < 0 || ca_enter(mem, 0, &entered) != CA_OK) fail("the memory");
    for (uint64_t at = 0; at < bytes; at += sizeof page) {
        struct ca_fault fault;
        uint64_t part = bytes - at < sizeof page ? bytes - at : sizeof page;
        /* The kernel is mapped the same in every address space, and the one we began with may have ended. */
        for (int tries = 0; !ca_load(entered, space, va + at, page, part, &fault); tries++) {
            if (tries == 1000) fail("a page");
            space = space_of(domid);
        }
        for (uint64_t i = 0; i < part / 8; i++) value = ((value ^ page[i]) * 0x100000001b3ull) ^ value >> 29;
    }
    ca_leave(entered);
    ca_mem_close(mem);
    ca_ledger_use(NULL);
    return value;
}

/* struct xen_domctl_getvcpuinfo (xen/domctl.h). */
struct vcpu_info {
    uint32_t vcpu;
    uint8_t online, blocked, running;
    uint64_t time;
    uint32_t cpu;
};
static int (*vcpu_info)(void *control, uint32_t domid, uint32_t vcpu, struct vcpu_info *info);

/* Each vCPU is blocked, or gets on; a paused one does neither. The domain is not paused. */
static const char *stuck(const struct ca_xen *xen, uint32_t domid) {
    struct ca_xen_domain domain;
    if (ca_xen_find(xen, domid, &domain) != CA_OK) return "the domain has gone";
    if ((domain.flags & CA_XEN_PAUSED) != 0) return "the domain is paused";
    for (uint32_t v = 0; v <= domain.highest; v++) {
        struct vcpu_info before, now;
        memset(&before, 0, sizeof before);
        if (vcpu_info(xen->control, domid, v, &before) != 0) return "a vCPU can not be looked at";
        bool good = before.blocked != 0;
        for (int i = 0; i < 400 && !good; i++) {
            sleep_us(25000);
            memset(&now, 0, sizeof now);
            vcpu_info(xen->control, domid, v, &now);
            good = now.blocked != 0 || now.time > before.time;
        }
        if (!good) return "a vCPU stands still";
    }
    return NULL;
}

/* ---- Killing. ---- */

static uint64_t seed;
static uint32_t random_below(uint32_t n) {
    seed = seed * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(seed >> 33) % n;
}

static pid_t child_of(pid_t parent) {
    char path[64];
    int pid = 0;
    snprintf(path, sizeof path, "/proc/%d/task/%d/children", (int)parent, (int)parent);
    FILE *file = fopen(path, "re");
    if (file != NULL) {
        if (fscanf(file, "%d", &pid) != 1) pid = 0;
        fclose(file);
    }
    return pid;
}

static void await_end(pid_t pid) {
    for (int i = 0; i < 3000 && kill(pid, 0) == 0; i++) sleep_us(10000);
    if (kill(pid, 0) == 0) {
        char line[256] = "";
        snprintf(line, sizeof line, "/proc/%d/stat", (int)pid);
        FILE *file = fopen(line, "re");
        if (file == NULL || fgets(line, sizeof line, file) == NULL) line[0] = 0;
        printf("FAILED process does not end: %s\n", line);
        exit(1);
    }
}

enum victim { WORKER, SUPERVISOR, BOTH, CLIENT, ALL, VICTIMS };
static const char *const victims[] = {"worker", "supervisor", "both", "client", "all"};

/* A client of its own, which can be killed; says its agent's pid, and then that all is subscribed. */
static pid_t fork_client(const char *agent, uint32_t domid, char **programs, int *said) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) fail("pipe");
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        static struct client c;
        static struct seen seen[CA_PROGRAMS_MAX];
        uint32_t head[3];
        uint8_t payload[CA_FRAME_MAX];
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        start(&c, agent, domid);
        if (write(ends[1], &c.agent, sizeof c.agent) < 0) _exit(1);
        if (reply(&c, 0, false) != CA_OK) _exit(1);
        for (uint32_t i = 0; programs[i] != NULL; i++)
            if (subscribe(&c, domid, programs[i], true) < 0) _exit(1);
        if (ask(&c, CA_FRAME_PAUSE, NULL, 0, true) == CA_OK) ask(&c, CA_FRAME_UNPAUSE, NULL, 0, true);
        if (write(ends[1], "y", 1) < 0) _exit(1);
        for (;;) {
            drain(&c, seen);
            /* Pauses belong to what is to be undone. */
            if (ask(&c, CA_FRAME_PAUSE, NULL, 0, true) == INT32_MIN) _exit(0);
            sleep_us(2000);
            if (ask(&c, CA_FRAME_UNPAUSE, NULL, 0, true) == INT32_MIN) _exit(0);
            frame(&c, 20, head, payload);
        }
    }
    close(ends[1]);
    *said = ends[0];
    return pid;
}

static void recover(const char *agent, uint32_t domid) {
    char number[16];
    snprintf(number, sizeof number, "%u", domid);
    int status = 0;
    pid_t pid = fork();
    if (pid == 0) {
        execl(agent, agent, number, "--recover", NULL);
        _exit(127);
    }
    if (waitpid(pid, &status, 0) != pid || status != 0) printf("FAILED --recover ended with %d\n", status);
}

static int storm(const char *agent, uint32_t domid, uint32_t kills, uint64_t va, uint64_t bytes, char **programs) {
    const struct ca_xen *xen;
    if (ca_xen_load(&xen) != CA_OK) fail("Xen");
    void *library = dlopen("libxenctrl.so.4.17", RTLD_NOW), *found = library == NULL ? NULL : dlsym(library, "xc_vcpu_getinfo");
    if (found == NULL) fail("xc_vcpu_getinfo");
    memcpy(&vcpu_info, &found, sizeof found);
    uint64_t space = space_of(domid), original = hash(domid, space, va, bytes, false);
    uint32_t ready = 0, failed = 0, changed = 0, by[VICTIMS] = {0};
    for (uint32_t i = 0; i < kills; i++) {
        enum victim victim = random_below(VICTIMS);
        int said;
        pid_t client = fork_client(agent, domid, programs, &said), supervisor = 0;
        if (read(said, &supervisor, sizeof supervisor) != sizeof supervisor) fail("the client");
        /* A third dies while it starts; the others at some moment after. */
        char yes = 0;
        if (random_below(3) != 0) {
            if (read(said, &yes, 1) != 1) printf("the client could not subscribe\n");
            else ready++;
        }
        sleep_us(random_below(150000));
        if (yes != 0 && hash(domid, space, va, bytes, false) != original) changed++;
        pid_t worker = child_of(supervisor);
        if (victim == ALL) kill(client, SIGKILL);
        if (worker > 0 && (victim == WORKER || victim == BOTH || victim == ALL)) kill(worker, SIGKILL);
        if (victim == SUPERVISOR || victim == BOTH || victim == ALL) kill(supervisor, SIGKILL);
        if (victim == CLIENT) kill(client, SIGKILL);
        by[victim]++;
        if (i % 10 == 9) printf("kill %u\n", i + 1);
        /* The client goes with its agent; an agent with its client. */
        if (worker > 0) await_end(worker);
        if (victim == WORKER && worker > 0) await_end(supervisor);
        kill(client, SIGKILL);
        waitpid(client, NULL, 0);
        await_end(supervisor);
        close(said);
        /* By hand, or by the agent that starts next. */
        bool by_hand = random_below(2) == 0;
        if (victim == BOTH || victim == ALL || worker == 0) {
            if (by_hand) {
                recover(agent, domid);
            } else {
                pid_t other = fork_client(agent, domid, programs, &said);
                if (read(said, &supervisor, sizeof supervisor) != sizeof supervisor || read(said, &yes, 1) != 1)
                    printf("FAILED the next agent does not start\n"), failed++;
                kill(other, SIGKILL);
                waitpid(other, NULL, 0);
                await_end(supervisor);
                close(said);
            }
        }
        const char *why = stuck(xen, domid);
        uint64_t now = why == NULL ? hash(domid, space, va, bytes, false) : original;
        if (why == NULL && now != original) why = "its text is not the original";
        if (why != NULL) {
            printf("FAILED kill %u of the %s: %s\n", i, victims[victim], why);
            failed++;
            break;
        }
    }
    printf("kills %u, ready %u, text changed in %u, failed %u; worker %u supervisor %u both %u client %u all %u\n", kills, ready, changed,
           failed, by[0], by[1], by[2], by[3], by[4]);
    return failed != 0;
}

int main(int count, char **words) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (count >= 5 && strcmp(words[1], "run") == 0)
        return run(words[2], (uint32_t)atoi(words[3]), strtoull(words[4], NULL, 0), words + 5);
    if (count == 5 && (strcmp(words[1], "raw") == 0 || strcmp(words[1], "masked") == 0)) {
        uint32_t domid = (uint32_t)atoi(words[2]);
        printf("%016llx\n", (unsigned long long)hash(domid, space_of(domid), strtoull(words[3], NULL, 16), strtoull(words[4], NULL, 0),
                                                     words[1][0] == 'm'));
        return 0;
    }
    if (count >= 9 && strcmp(words[1], "storm") == 0) {
        seed = strtoull(words[5], NULL, 0);
        return storm(words[2], (uint32_t)atoi(words[3]), (uint32_t)atoi(words[4]), strtoull(words[6], NULL, 16), strtoull(words[7], NULL, 0),
                     words + 8);
    }
    return 2;
}
