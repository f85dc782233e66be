/*
 * Finds Xen's libraries at run time. They are never linked: the same shim runs on machines without Xen, and on hosts of
 * different Xen releases.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <unistd.h>

#include "xen.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct ca_xen libraries;
static struct ca_xen_events libraries_events;
static bool loaded, loaded_events;

void ca_xen_lock(void) { pthread_mutex_lock(&lock); }
void ca_xen_unlock(void) { pthread_mutex_unlock(&lock); }

struct wanted {
    const char *name;
    void *to;
};

static int32_t bind(void *library, const char *file, const struct wanted *wanted, size_t count) {
    for (size_t i = 0; i < count; i++) {
        void *found = dlsym(library, wanted[i].name);
        if (found == NULL)
            return ca_fail(CA_E_UNSUPPORTED, "%s has no %s: it is of a Xen release this library does not know", file,
                           wanted[i].name);
        /* ISO C has no cast from an object pointer to a function pointer; POSIX wants this one to work. */
        memcpy(wanted[i].to, &found, sizeof found);
    }
    return CA_OK;
}

static void *open_library(const char *file, const char *package) {
    void *library = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) ca_fail(CA_E_UNSUPPORTED, "%s can not be loaded: on Debian, apt-get install %s", file, package);
    return library;
}

/* libxenctrl's soname is the release of Xen it drives, which sysfs tells. */
static int32_t release(char *file, size_t size) {
    unsigned major = 0, minor = 0;
    FILE *version = fopen("/sys/hypervisor/version/major", "re");
    bool known = version != NULL && fscanf(version, "%u", &major) == 1;
    if (version != NULL) fclose(version);
    version = known ? fopen("/sys/hypervisor/version/minor", "re") : NULL;
    known = version != NULL && fscanf(version, "%u", &minor) == 1;
    if (version != NULL) fclose(version);
    if (!known)
        return ca_fail(CA_E_UNSUPPORTED, "this machine does not run under Xen (no /sys/hypervisor/version): boot it with Xen "
                                         "and run this in its control domain");
    snprintf(file, size, "libxenctrl.so.%u.%u", major, minor);
    return CA_OK;
}

static int32_t device(void) {
    if (access("/dev/xen/privcmd", R_OK | W_OK) == 0) return CA_OK;
    if (errno == EACCES)
        return ca_fail(CA_E_UNSUPPORTED, "/dev/xen/privcmd may not be opened by this user: run as root in the control domain");
    return ca_fail(CA_E_UNSUPPORTED, "/dev/xen/privcmd is missing: modprobe xen-privcmd (in a guest without control over "
                                     "others there is nothing to look at)");
}

static int32_t load(void) {
    char file[64];
    int32_t result = release(file, sizeof file);
    if (result != CA_OK) return result;
    result = device();
    if (result != CA_OK) return result;
    struct ca_xen x = {0};
    const struct wanted foreign[] = {{"xenforeignmemory_open", &x.foreign_open},
                                     {"xenforeignmemory_close", &x.foreign_close},
                                     {"xenforeignmemory_map", &x.foreign_map},
                                     {"xenforeignmemory_unmap", &x.foreign_unmap}};
    const struct wanted store[] = {
        {"xs_open", &x.store_open}, {"xs_close", &x.store_close}, {"xs_read", &x.store_read}};
    const struct wanted control[] = {{"xc_interface_open", &x.control_open},
                                     {"xc_interface_close", &x.control_close},
                                     {"xc_domain_getinfolist", &x.domain_list},
                                     {"xc_version", &x.version},
                                     {"xc_domain_pause", &x.domain_pause},
                                     {"xc_domain_unpause", &x.domain_unpause},
                                     {"xc_domain_maximum_gpfn", &x.last_frame},
                                     {"xc_domain_hvm_getcontext_partial", &x.hvm_context}};
    void *libraries_open[3] = {0};
    const char *names[3] = {"libxenforeignmemory.so.1", "libxenstore.so.4", file};
    const char *packages[3] = {"libxenforeignmemory1", "libxenstore4", "libxenmisc4.17 (of the release that runs)"};
    const struct wanted *tables[3] = {foreign, store, control};
    const size_t counts[3] = {sizeof foreign / sizeof *foreign, sizeof store / sizeof *store,
                              sizeof control / sizeof *control};
    for (int i = 0; i < 3; i++) {
        libraries_open[i] = open_library(names[i], packages[i]);
        result = libraries_open[i] == NULL ? CA_E_UNSUPPORTED
                                           : bind(libraries_open[i], names[i], tables[i], counts[i]);
        if (result != CA_OK) goto failed;
    }
    x.control = x.control_open(NULL, NULL, 0);
    if (x.control == NULL) {
        result = ca_fail(CA_E_UNSUPPORTED, "the interface to Xen can not be opened (%s): run as root in the control domain",
                         strerror(errno));
        goto failed;
    }
    libraries = x;
    loaded = true;
    return CA_OK;
failed:
    for (int i = 0; i < 3; i++)
        if (libraries_open[i] != NULL) dlclose(libraries_open[i]);
    return result;
}

/* Loaded by the agent only, and after the others. */
static int32_t load_events(void) {
    char file[64];
    int32_t result = release(file, sizeof file);
    if (result != CA_OK) return result;
    struct ca_xen_events e = {0};
    const struct wanted channel[] = {{"xenevtchn_open", &e.channel_open},
                                     {"xenevtchn_close", &e.channel_close},
                                     {"xenevtchn_fd", &e.channel_fd},
                                     {"xenevtchn_bind_interdomain", &e.channel_bind},
                                     {"xenevtchn_notify", &e.channel_notify},
                                     {"xenevtchn_pending", &e.channel_pending},
                                     {"xenevtchn_unmask", &e.channel_unmask}};
    const struct wanted control[] = {{"xc_hvm_param_get", &e.parameter},
                                     {"xc_domain_populate_physmap_exact", &e.populate},
                                     {"xc_hvm_set_mem_type", &e.page_type},
                                     {"xc_vm_event_control", &e.vm_event},
                                     {"xc_monitor_get_capabilities", &e.capabilities},
                                     {"xc_vcpu_getinfo", &e.vcpu},
                                     {"xc_monitor_write_ctrlreg", &e.on_register},
                                     {"xc_monitor_mov_to_msr", &e.on_msr},
                                     {"xc_monitor_cpuid", &e.on_cpuid},
                                     {"xc_monitor_descriptor_access", &e.on_descriptor},
                                     {"xc_monitor_software_breakpoint", &e.on_breakpoint},
                                     {"xc_monitor_guest_request", &e.on_request},
                                     {"xc_hvm_inject_trap", &e.inject}};
    const struct wanted store[] = {
        {"xs_watch", &e.store_watch}, {"xs_fileno", &e.store_fd}, {"xs_check_watch", &e.store_check}};
    const char *names[3] = {"libxenevtchn.so.1", file, "libxenstore.so.4"};
    const char *packages[3] = {"libxenevtchn1", "libxenmisc4.17 (of the release that runs)", "libxenstore4"};
    const struct wanted *tables[3] = {channel, control, store};
    const size_t counts[3] = {sizeof channel / sizeof *channel, sizeof control / sizeof *control,
                              sizeof store / sizeof *store};
    void *opened[3] = {0};
    for (int i = 0; i < 3 && result == CA_OK; i++) {
        opened[i] = open_library(names[i], packages[i]);
        result = opened[i] == NULL ? CA_E_UNSUPPORTED : bind(opened[i], names[i], tables[i], counts[i]);
    }
    if (result == CA_OK) {
        libraries_events = e;
        loaded_events = true;
        return CA_OK;
    }
    for (int i = 0; i < 3; i++)
        if (opened[i] != NULL) dlclose(opened[i]);
    return result;
}

int32_t ca_xen_reopen(void) {
    if (!loaded || libraries.control_open == NULL) return CA_OK;
    void *control = libraries.control_open(NULL, NULL, 0);
    if (control == NULL) return ca_fail(CA_E_UNSUPPORTED, "the interface to Xen can not be opened (%s)", strerror(errno));
    libraries.control = control;
    return CA_OK;
}

int32_t ca_xen_load_events(const struct ca_xen_events **events) {
    ca_xen_lock();
    int32_t result = loaded_events ? CA_OK : load_events();
    ca_xen_unlock();
    *events = &libraries_events;
    return result;
}

void ca_xen_use_events(const struct ca_xen_events *events) {
    ca_xen_lock();
    loaded_events = events != NULL;
    if (loaded_events) libraries_events = *events;
    ca_xen_unlock();
}

void ca_xen_use(const struct ca_xen *xen) {
    ca_xen_lock();
    loaded = xen != NULL;
    if (loaded) libraries = *xen;
    ca_xen_unlock();
}

int32_t ca_xen_load(const struct ca_xen **xen) {
    ca_xen_lock();
    int32_t result = loaded ? CA_OK : load();
    ca_xen_unlock();
    *xen = &libraries;
    return result;
}

int32_t ca_xen_failed(const char *what, uint32_t domid) {
    int error = errno;
    switch (error) {
    case ESRCH: return ca_fail(CA_E_OPEN, "there is no domain %u", domid);
    /* The kernel's own xen-privcmd says EPERM in a domain that is no control domain (XSA-482), and FLASK EACCES. */
    case EPERM:
        return ca_fail(CA_E_UNSUPPORTED,
                       "this domain may not %s domain %u (%s): run in the control domain; a service domain needs xen-privcmd "
                       "loaded with unrestricted=1, and rights by FLASK",
                       what, domid, strerror(error));
    case EACCES:
        return ca_fail(CA_E_UNSUPPORTED, "Xen does not let this domain %s domain %u: its FLASK policy gives no such right", what,
                       domid);
    default: return ca_fail(CA_E_SOURCE, "Xen could not %s domain %u: %s", what, domid, strerror(error));
    }
}
