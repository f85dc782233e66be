// What the benchmark of events compares with: CR3 writes of a domain straight from Xen's ring, in plain C through Xen's own
// libraries, with the same captures.
//
//   bench-events DOMID MS       prints the events of so long, the nanoseconds it took, and the last root
#include <dlfcn.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

// xen/vm_event.h and xen/io/ring.h of Xen 4.17: one page, eight events of 400 bytes.
enum { SLOTS = 8, REASON_WRITE_CTRLREG = 4, VCPU_PAUSED = 1, CR3 = 1 };
struct event {
    uint32_t version, flags, reason, vcpu;
    uint16_t altp2m, pad[3];
    uint32_t index, pad2;
    uint64_t new_value, old_value, rest[1];
    uint64_t rax, others[17], dr7, rip, cr0, cr2, cr3, cr4;
    uint8_t more[400 - 56 - 24 * 8];
};
_Static_assert(sizeof(struct event) == 400, "as in xen/vm_event.h");
struct ring {
    uint32_t req_prod, req_event, rsp_prod, rsp_event;
    uint8_t pad[48];
    struct event slot[SLOTS];
};

static void die(const char *what)
{
    fprintf(stderr, "bench-events: %s\n", what);
    exit(1);
}

static void *library(const char *name)
{
    void *opened = dlopen(name, RTLD_NOW);
    if (opened == NULL) die(name);
    return opened;
}

static void bind(void *from, const char *name, void *to)
{
    void *found = dlsym(from, name);
    if (found == NULL) die(name);
    memcpy(to, &found, sizeof found);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

struct kept {
    uint64_t time, vcpu, serial, cr3, rip, from, to;
};

int main(int count, char **words)
{
    if (count != 3) return 2;
    const uint32_t domid = (uint32_t)atoi(words[1]);
    void *(*open_control)(void *, void *, unsigned);
    void *(*enable)(void *, uint32_t, uint32_t *);
    int (*disable)(void *, uint32_t), (*pause)(void *, uint32_t), (*unpause)(void *, uint32_t);
    int (*write_register)(void *, uint32_t, uint16_t, _Bool, _Bool, uint64_t, _Bool);
    void *(*open_channels)(void *, unsigned);
    int (*bind_channel)(void *, uint32_t, uint32_t), (*fd_of)(void *), (*pending)(void *), (*unmask)(void *, uint32_t);
    int (*notify)(void *, uint32_t);
    void *xc = library("libxenctrl.so.4.17"), *xe = library("libxenevtchn.so.1");
    bind(xc, "xc_interface_open", &open_control);
    bind(xc, "xc_monitor_enable", &enable);
    bind(xc, "xc_monitor_disable", &disable);
    bind(xc, "xc_domain_pause", &pause);
    bind(xc, "xc_domain_unpause", &unpause);
    bind(xc, "xc_monitor_write_ctrlreg", &write_register);
    bind(xe, "xenevtchn_open", &open_channels);
    bind(xe, "xenevtchn_bind_interdomain", &bind_channel);
    bind(xe, "xenevtchn_fd", &fd_of);
    bind(xe, "xenevtchn_pending", &pending);
    bind(xe, "xenevtchn_unmask", &unmask);
    bind(xe, "xenevtchn_notify", &notify);
    void *control = open_control(NULL, NULL, 0), *channels = open_channels(NULL, 0);
    uint32_t far = 0, next = 0;
    struct ring *ring = control == NULL || channels == NULL ? NULL : enable(control, domid, &far);
    if (ring == NULL) die("the monitor is not to be had");
    // The page may be one the domain had before, with the indexes of the ring it was; and the channel is signalled once when it
    // is bound, before there is an event.
    ring->req_prod = ring->rsp_prod = 0;
    ring->req_event = ring->rsp_event = 1;
    const int port = bind_channel(channels, domid, far);
    if (port < 0) die("the event channel");
    static struct kept kept[1 << 16];
    uint64_t events = 0;
    if (write_register(control, domid, CR3, 1, 1, 0, 0) != 0) die("CR3 can not be trapped");
    const double began = now(), until = began + atof(words[2]) * 1e6;
    while (now() < until) {
        struct pollfd wait = {fd_of(channels), POLLIN, 0};
        if (poll(&wait, 1, 100) <= 0) continue;
        const int fired = pending(channels);
        if (fired >= 0) unmask(channels, (uint32_t)fired);
        const uint32_t end = __atomic_load_n(&ring->req_prod, __ATOMIC_ACQUIRE), first = next;
        for (; next != end; next++) {
            struct event event = ring->slot[next % SLOTS];
            if (event.reason == REASON_WRITE_CTRLREG) {
                kept[events % (1 << 16)] = (struct kept){(uint64_t)now(), event.vcpu, events, event.cr3, event.rip,
                                                        event.old_value, event.new_value};
                events++;
            }
            event.flags &= VCPU_PAUSED;
            ring->slot[next % SLOTS] = event;
        }
        ring->req_event = next + 1;
        __atomic_store_n(&ring->rsp_prod, next, __ATOMIC_RELEASE);
        if (next != first) notify(channels, (uint32_t)port);
    }
    const double took = now() - began;
    // Off before the last answers: then none comes that nobody answers.
    pause(control, domid);
    write_register(control, domid, CR3, 0, 1, 0, 0);
    for (const uint32_t end = __atomic_load_n(&ring->req_prod, __ATOMIC_ACQUIRE); next != end; next++) {
        struct event event = ring->slot[next % SLOTS];
        event.flags &= VCPU_PAUSED;
        ring->slot[next % SLOTS] = event;
        __atomic_store_n(&ring->rsp_prod, next + 1, __ATOMIC_RELEASE);
    }
    notify(channels, (uint32_t)port);
    unpause(control, domid);
    // Xen forgets a write to CR3 whose vCPU has not run before the monitor is gone.
    nanosleep(&(struct timespec){.tv_nsec = 300000000}, NULL);
    munmap(ring, 4096);
    disable(control, domid);
    printf("%" PRIu64 " %.0f %" PRIx64 "\n", events, took, events == 0 ? 0 : kept[(events - 1) % (1 << 16)].to);
    return 0;
}
