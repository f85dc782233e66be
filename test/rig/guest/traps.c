// Does once, in a guest, things that Xen's monitor can trap and that a program can bring about: prctl(PR_SET_TSC), for which Linux
// writes CR4; a write of EFER to what it is, by the msr driver; and HVMOP_guest_request_vm_event, by an unrestricted xen-privcmd.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <unistd.h>

// xen/include/public/xen.h, hvm/hvm_op.h; include/uapi/xen/privcmd.h of Linux.
enum { HYPERVISOR_HVM_OP = 34, HVMOP_GUEST_REQUEST = 24 };
struct hypercall {
    uint64_t op, arg[5];
};
#define HYPERCALL _IOC(_IOC_NONE, 'P', 0, sizeof(struct hypercall))
// Intel SDM vol. 4. The guest reads the bit of SVM that is Xen's own, and may not write it.
#define EFER 0xc0000080
#define SVME (1u << 12)

int main(void)
{
    const int off = prctl(PR_SET_TSC, PR_TSC_SIGSEGV, 0, 0, 0), on = prctl(PR_SET_TSC, PR_TSC_ENABLE, 0, 0, 0);
    printf("tsc %d %d\n", off, on);

    uint64_t efer = 0;
    const int msr = open("/dev/cpu/0/msr", O_RDWR);
    const ssize_t got = pread(msr, &efer, sizeof efer, EFER);
    efer &= ~(uint64_t)SVME;
    const ssize_t put = pwrite(msr, &efer, sizeof efer, EFER);
    printf("efer %zd %zd\n", got, put);

    struct hypercall call = {HYPERVISOR_HVM_OP, {HVMOP_GUEST_REQUEST}};
    const int xen = open("/dev/xen/privcmd", O_RDWR);
    printf("request %d\n", ioctl(xen, HYPERCALL, &call));
    return 0;
}
