/* Private: xen/vm_event.h and xen/io/ring.h of Xen 4.17, as far as they are used; only tools of that ABI version take part. */
#ifndef CA_VM_EVENT_H
#define CA_VM_EVENT_H

#include <stddef.h>
#include <stdint.h>

#define VM_EVENT_INTERFACE_VERSION 7

#define VM_EVENT_FLAG_VCPU_PAUSED (1u << 0)
#define VM_EVENT_FLAG_EMULATE (1u << 2)
#define VM_EVENT_FLAG_SET_REGISTERS (1u << 8)
#define VM_EVENT_FLAG_SET_EMUL_INSN_DATA (1u << 9)

#define VM_EVENT_REASON_WRITE_CTRLREG 4
#define VM_EVENT_REASON_MOV_TO_MSR 5
#define VM_EVENT_REASON_SOFTWARE_BREAKPOINT 6
#define VM_EVENT_REASON_GUEST_REQUEST 8
#define VM_EVENT_REASON_CPUID 10
#define VM_EVENT_REASON_DESCRIPTOR_ACCESS 13

#define VM_EVENT_X86_CR0 0
#define VM_EVENT_X86_CR3 1
#define VM_EVENT_X86_CR4 2

/* struct vm_event_regs_x86 */
struct vm_event_registers {
    uint64_t rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15;
    uint64_t rflags, dr6, dr7, rip, cr0, cr2, cr3, cr4, sysenter[3], efer, star, lstar, gdtr_base, npt_base, vmtrace_pos;
    uint32_t bases[4];
    uint64_t fs_base, gs_base;
    uint32_t selectors[6];
    uint64_t shadow_gs;
    uint16_t rest[8];
};
_Static_assert(sizeof(struct vm_event_registers) == 344, "as in xen/vm_event.h");

/* vm_event_request_t and vm_event_response_t */
struct vm_event {
    uint32_t version, flags, reason, vcpu;
    uint16_t altp2m, pad[3];
    union {
        struct {
            uint32_t index, pad;
            uint64_t new_value, old_value;
        } register_write;
        struct {
            uint64_t msr, new_value, old_value;
        } msr;
        struct {
            uint64_t gfn, pending;
            uint32_t length;
            uint8_t type, pad[3];
        } breakpoint;
        struct {
            uint64_t info[2];
            uint8_t descriptor, is_write, pad[6];
        } descriptor;
        struct {
            uint32_t length, leaf, subleaf, pad;
        } cpuid;
        uint64_t words[4];
    } u;
    union {
        struct vm_event_registers registers;
        uint8_t instruction[16];
    } data;
};
_Static_assert(sizeof(struct vm_event) == 400, "as in xen/vm_event.h");
_Static_assert(offsetof(struct vm_event, data) == 56, "as in xen/vm_event.h");

/* struct vm_event_sring: one page. */
#define VM_EVENT_SLOTS 8u
struct vm_event_ring {
    uint32_t req_prod, req_event, rsp_prod, rsp_event;
    uint8_t pad[48];
    struct vm_event slot[VM_EVENT_SLOTS];
};
_Static_assert(offsetof(struct vm_event_ring, slot) == 64 && sizeof(struct vm_event_ring) <= 4096, "as in xen/io/ring.h");

/* xen/domctl.h */
#define XEN_VM_EVENT_ENABLE 0
#define XEN_VM_EVENT_DISABLE 1
#define XEN_VM_EVENT_RESUME 2
#define XEN_DOMCTL_VM_EVENT_OP_MONITOR 2
#define XEN_DOMCTL_MONITOR_EVENT_WRITE_CTRLREG 0
#define XEN_DOMCTL_MONITOR_EVENT_MOV_TO_MSR 1
#define XEN_DOMCTL_MONITOR_EVENT_SOFTWARE_BREAKPOINT 3
#define XEN_DOMCTL_MONITOR_EVENT_GUEST_REQUEST 4
#define XEN_DOMCTL_MONITOR_EVENT_CPUID 6
#define XEN_DOMCTL_MONITOR_EVENT_DESC_ACCESS 9
/* xen/hvm/params.h, xen/hvm/hvm_op.h */
#define HVM_PARAM_MONITOR_RING_PFN 28
#define HVMMEM_ram_rw 0
#define HVMMEM_ram_ro 1

#endif
