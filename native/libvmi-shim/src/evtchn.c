/* Event channels through /dev/xen/evtchn, and how Node comes to poll a device. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "evtchn.h"

/* include/uapi/xen/evtchn.h of Linux. */
#define EVTCHN_BIND_INTERDOMAIN _IOC(_IOC_NONE, 'E', 1, 8)
#define EVTCHN_BIND_UNBOUND_PORT _IOC(_IOC_NONE, 'E', 2, 4)
#define EVTCHN_NOTIFY _IOC(_IOC_NONE, 'E', 4, 4)

int32_t ca_device_open(const char *path, const char *module) {
    int fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (fd >= 0) return fd;
    if (errno == EACCES || errno == EPERM)
        return ca_fail(CA_E_UNSUPPORTED, "%s may not be opened by this user: run as root, or give the user the device", path);
    if (errno == ENOENT || errno == ENODEV)
        return ca_fail(CA_E_UNSUPPORTED, "%s is missing: in a domain of Xen, modprobe %s", path, module);
    return ca_fail(CA_E_UNSUPPORTED, "%s can not be opened: %s", path, strerror(errno));
}

#define MS 1000000ll

static int64_t clock_ns(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec * 1000 * MS + now.tv_nsec;
}

/* For how long this system has stood still since its start, saved or asleep, in ns: to some 10 ms at worst. */
static int64_t stood(void) {
    int64_t best = INT64_MAX, still = 0;
    for (int i = 0; i < 8 && best > MS; i++) {
        int64_t before = clock_ns(CLOCK_MONOTONIC), boot = clock_ns(CLOCK_BOOTTIME), after = clock_ns(CLOCK_MONOTONIC);
        if (after - before >= best) continue;
        best = after - before;
        still = boot - before;
    }
    return still;
}

/* stood() when a descriptor was opened. Those beyond are taken for ones of a system that never stands still. */
static int64_t opened[4096];
#define KNOWN(fd) ((size_t)(fd) < sizeof opened / sizeof *opened)

/*
 * A domain that was saved and restored has lost its event channels, and Linux does not know: it takes the closing of a
 * descriptor from before for a bug (drivers/xen/events/events_base.c, evtchn_unbind_from_user) and kills who closes. So
 * such a descriptor stays open until the process ends.
 */
static bool lost(int32_t fd) { return KNOWN(fd) && stood() - opened[fd] > 20 * MS; }

int32_t ca_evtchn_open(uint32_t domid, uint32_t remote, void *port) {
    if (port == NULL || domid > 0x7fef) return ca_fail(CA_E_ARGUMENT, "%u is no number of a domain", domid);
    int32_t fd = ca_device_open("/dev/xen/evtchn", "xen-evtchn");
    if (fd < 0) return fd;
    uint32_t bind[2] = {domid, remote};
    int local = remote == CA_EVTCHN_UNBOUND ? ioctl(fd, EVTCHN_BIND_UNBOUND_PORT, bind)
                                            : ioctl(fd, EVTCHN_BIND_INTERDOMAIN, bind);
    if (local < 0) {
        int error = errno;
        close(fd);
        if (error == ESRCH) return ca_fail(CA_E_OPEN, "there is no domain %u", domid);
        if (remote != CA_EVTCHN_UNBOUND && error == EINVAL)
            return ca_fail(CA_E_OPEN, "domain %u has no event channel %u for this domain to bind", domid, remote);
        return ca_fail(CA_E_SOURCE, "no event channel with domain %u could be had: %s", domid, strerror(error));
    }
    uint32_t number = (uint32_t)local;
    memcpy(port, &number, sizeof number);
    if (KNOWN(fd)) opened[fd] = stood();
    return fd;
}

int32_t ca_domain_lives(uint32_t domid) {
    if (domid > 0x7fef) return ca_fail(CA_E_ARGUMENT, "%u is no number of a domain", domid);
    int32_t fd = ca_device_open("/dev/xen/evtchn", "xen-evtchn");
    if (fd < 0) return fd;
    /* Port 0 is reserved in every domain, so this always fails: ESRCH where there is no domain to look into. */
    uint32_t bind[2] = {domid, 0};
    int lives = ioctl(fd, EVTCHN_BIND_INTERDOMAIN, bind) >= 0 || errno != ESRCH;
    close(fd);
    return lives;
}

int32_t ca_evtchn_notify(int32_t fd, uint32_t port) {
    if (ioctl(fd, EVTCHN_NOTIFY, &port) == 0) return CA_OK;
    return ca_fail(CA_E_SOURCE, "event channel %u could not be notified: %s", port, strerror(errno));
}

int32_t ca_evtchn_unmask(int32_t fd, uint32_t port) {
    if (write(fd, &port, sizeof port) == (ssize_t)sizeof port) return CA_OK;
    return ca_fail(CA_E_SOURCE, "event channel %u could not be unmasked: %s", port, strerror(errno));
}

int32_t ca_evtchn_close(int32_t fd) {
    if (fd >= 0 && lost(fd)) return CA_OK;
    return close(fd) == 0 ? CA_OK : ca_fail(CA_E_HANDLE, "descriptor %d is not open", (int)fd);
}

int32_t ca_poll_new(void) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) return ca_fail(CA_E_NOMEM, "no pipe: %s", strerror(errno));
    /* Only a place in the table of descriptors, of a kind that Node takes; nothing goes through it. */
    close(ends[1]);
    return ends[0];
}

int32_t ca_poll_join(int32_t fd, int32_t source) {
    if (fd < 0 || fd == source || dup3(source, fd, O_CLOEXEC) != fd)
        return ca_fail(CA_E_HANDLE, "descriptor %d can not be polled as %d: %s", (int)source, (int)fd, strerror(errno));
    return CA_OK;
}
