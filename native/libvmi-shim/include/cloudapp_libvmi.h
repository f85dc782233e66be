/*
 * libcloudapp_shim: memory and registers through LibVMI (libvmi.so.0), which is loaded at run time from a path the caller
 * names. The rules of cloudapp.h hold. LibVMI is asked for physical pages and registers only: page tables are walked here,
 * so neither its cache of translations nor its lack of 5-level paging shows.
 */
#ifndef CLOUDAPP_LIBVMI_H
#define CLOUDAPP_LIBVMI_H

#include "cloudapp.h"

/* What LibVMI looks at. */
enum ca_libvmi_kind {
    CA_LIBVMI_FILE = 0,     /* `target` is the path of a file of physical memory */
    CA_LIBVMI_XEN_NAME = 1, /* the name of a Xen domain */
    CA_LIBVMI_XEN_ID = 2    /* its number, in decimal */
};

/* u64 words of ca_libvmi_vcpu: 13 registers, then a bit for each that LibVMI gave. */
#define CA_LIBVMI_VCPU_WORDS 14

/*
 * Opens `target` (NUL-terminated) through the LibVMI at `library` (a path, or a name the loader finds; NUL-terminated). The
 * handle is one of the verbs of cloudapp.h, and read only. CA_E_UNSUPPORTED: no such library, or one of another ABI;
 * CA_E_OPEN: LibVMI does not open the target; the text has the end of what it said.
 *
 * LibVMI writes to the process's standard output and error. While a call is inside it, both lead elsewhere.
 */
CA_API int32_t ca_libvmi_open(const void *library, uint32_t kind, const void *target);

/* Number of vCPUs, 0 for a file. */
CA_API int32_t ca_libvmi_vcpus(int32_t mem);

/*
 * Registers of a vCPU: u64 { rip, rsp, rflags, cr0, cr3, cr4, efer, gs base, kernel gs base, idt base, idt limit, gdt base,
 * lstar, mask of those that are there }.
 */
CA_API int32_t ca_libvmi_vcpu(int32_t mem, uint32_t vcpu, void *out);

#endif
