/* Private to the Xen parts: the libraries, as far as they are used. */
#ifndef CA_XEN_H
#define CA_XEN_H

#include "cloudapp_xen.h"
#include "shim.h"

/*
 * xenforeignmemory.h, xenstore.h, xenctrl.h of Xen 4.17. The first two have a stable ABI; libxenctrl belongs to one release
 * of Xen, so of it as little as possible is used.
 */
struct ca_xen {
    void *control;
    void *(*foreign_open)(void *logger, unsigned flags);
    int (*foreign_close)(void *foreign);
    void *(*foreign_map)(void *foreign, uint32_t domid, int prot, size_t pages, const uint64_t *gfns, int *errors);
    int (*foreign_unmap)(void *foreign, void *at, size_t pages);
    void *(*store_open)(unsigned long flags);
    void (*store_close)(void *store);
    void *(*store_read)(void *store, uint32_t transaction, const char *path, unsigned *length);
    void *(*control_open)(void *logger, void *build_logger, unsigned flags);
    int (*control_close)(void *control);
    int (*domain_list)(void *control, uint32_t first, unsigned count, void *rows);
    int (*version)(void *control, int command, void *answer);
    int (*domain_pause)(void *control, uint32_t domid);
    int (*domain_unpause)(void *control, uint32_t domid);
    int (*last_frame)(void *control, uint32_t domid, uint64_t *frame);
    int (*hvm_context)(void *control, uint32_t domid, uint16_t type, uint16_t instance, void *out, uint32_t size);
};

/* struct xen_domctl_getvcpuinfo (xen/domctl.h), which libxenctrl gives as it is. */
struct ca_xen_vcpu {
    uint32_t vcpu;
    uint8_t online, blocked, running;
    uint64_t cpu_time; /* ns */
    uint32_t cpu;
};

/* What the event agent needs besides: xenevtchn.h, xenctrl.h, xenstore.h, and of libxenctrl xc_vm_event_control(). */
struct ca_xen_events {
    void *(*channel_open)(void *logger, unsigned flags);
    int (*channel_close)(void *channel);
    int (*channel_fd)(void *channel);
    int (*channel_bind)(void *channel, uint32_t domid, uint32_t port);
    int (*channel_notify)(void *channel, uint32_t port);
    int (*channel_pending)(void *channel);
    int (*channel_unmask)(void *channel, uint32_t port);
    int (*parameter)(void *control, uint32_t domid, uint32_t number, uint64_t *value);
    int (*populate)(void *control, uint32_t domid, unsigned long pages, unsigned order, unsigned flags, uint64_t *frames);
    int (*page_type)(void *control, uint32_t domid, int type, uint64_t first, uint64_t pages);
    int (*vm_event)(void *control, uint32_t domid, unsigned operation, unsigned mode, uint32_t *port);
    int (*capabilities)(void *control, uint32_t domid, uint32_t *bits);
    int (*vcpu)(void *control, uint32_t domid, uint32_t vcpu, struct ca_xen_vcpu *info);
    int (*on_register)(void *control, uint32_t domid, uint16_t index, bool enable, bool sync, uint64_t mask, bool change);
    int (*on_msr)(void *control, uint32_t domid, uint32_t msr, bool enable, bool change);
    int (*on_cpuid)(void *control, uint32_t domid, bool enable);
    int (*on_descriptor)(void *control, uint32_t domid, bool enable);
    int (*on_breakpoint)(void *control, uint32_t domid, bool enable);
    int (*on_request)(void *control, uint32_t domid, bool enable, bool sync, bool user);
    int (*inject)(void *control, uint32_t domid, int vcpu, uint8_t vector, uint8_t type, uint32_t error, uint8_t length,
                  uint64_t cr2);
    bool (*store_watch)(void *store, const char *path, const char *token);
    int (*store_fd)(void *store);
    char **(*store_check)(void *store);
};

/* What a domain is, of struct xen_domctl_getdomaininfo (xen/domctl.h). */
struct ca_xen_domain {
    uint32_t domid, flags;
    uint64_t pages;
    uint32_t online, highest;
    uint8_t uuid[16];
};

/* xen_load.c. Loads once; fails with a text that says what to do. Calls through it are serialised by the caller's lock. */
int32_t ca_xen_load(const struct ca_xen **xen);
/* After fork(): libxenctrl's buffers are not inherited, so a handle of the parent's is of no use. */
int32_t ca_xen_reopen(void);
int32_t ca_xen_load_events(const struct ca_xen_events **events);
/* For tests: these functions in place of Xen's, until NULL. */
void ca_xen_use(const struct ca_xen *xen);
void ca_xen_use_events(const struct ca_xen_events *events);
void ca_xen_lock(void);
void ca_xen_unlock(void);
/* The error for a hypercall that failed with errno. */
int32_t ca_xen_failed(const char *what, uint32_t domid);

/* xen.c: one domain; CA_E_OPEN if there is none. Under the lock. */
int32_t ca_xen_find(const struct ca_xen *xen, uint32_t domid, struct ca_xen_domain *domain);

/* xen_extent.c. Under the lock: the last frame of a domain and its uuid, as a domain with all rights asks Xen for them. */
int32_t ca_xen_measure(const struct ca_xen *xen, uint32_t domid, uint8_t uuid[16], uint64_t *last);
/* The same of a domain that lets us map it, and perhaps nothing else. */
int32_t ca_xen_measure_direct(const struct ca_xen *xen, void *foreign, uint32_t domid, uint64_t *last);
/* The errno, if it says that mapping is not allowed: by FLASK (EACCES), or by the kernel's own xen-privcmd (EPERM). */
int ca_xen_refusal(int error);

#endif
