/* Private to the LibVMI parts: the library, as far as it is used. */
#ifndef CA_LIBVMI_H
#define CA_LIBVMI_H

#include <stddef.h>

#include "cloudapp_libvmi.h"
#include "shim.h"

/* libvmi.h of version 0.14, events version 9, x86-64. A status is 0 when it went well. */
#define CA_VMI_XEN 0u
#define CA_VMI_FILE 2u
#define CA_VMI_INIT_NAME 1u
#define CA_VMI_INIT_ID 2u
#define CA_VMI_EVENTS_VERSION 9u

struct ca_vmi {
    int (*init)(void **vmi, uint32_t mode, const void *domain, uint64_t flags, void *data, uint32_t *error);
    int (*destroy)(void *vmi);
    int (*read_pa)(void *vmi, uint64_t at, size_t bytes, void *to, size_t *done);
    int (*get_vcpureg)(void *vmi, uint64_t *value, uint64_t reg, unsigned long vcpu);
    uint64_t (*get_max_physical_address)(void *vmi);
    unsigned (*get_num_vcpus)(void *vmi);
    void (*v2pcache_flush)(void *vmi, uint64_t table);
    void (*pagecache_flush)(void *vmi);
    uint32_t (*events_version)(void);
};

/* libvmi_load.c. Loads `path` once; one LibVMI for a process. */
int32_t ca_vmi_load(const char *path, const struct ca_vmi **vmi);

/*
 * One call into LibVMI at a time, from whatever thread: it and glib below it are not made for more. In between, standard
 * output and error lead to a file without a name. Do not nest.
 */
void ca_vmi_enter(void);
void ca_vmi_leave(void);
/* The end of what LibVMI said since ca_vmi_enter(), printable; between enter and leave. */
void ca_vmi_said(char *text, size_t size);

#endif
