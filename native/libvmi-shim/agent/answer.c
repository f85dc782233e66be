#include "session.h"

/* HVM_DELIVER_NO_ERROR_CODE, X86_EVENTTYPE_SW_EXCEPTION (xen/hvm/dm_op.h, asm/x86-defns.h), and the vector of INT3. */
#define NO_ERROR_CODE (~0u)
#define SOFTWARE_EXCEPTION 6
#define VECTOR_BREAKPOINT 3

void ca_event_from(struct ca_event *event, const struct vm_event *request) {
    const struct vm_event_registers *r = &request->data.registers;
    memset(event, 0, sizeof *event);
    event->vcpu = request->vcpu;
    memcpy(event->registers, &r->rax, 16 * 8);
    event->registers[CA_REG_RIP] = r->rip;
    event->registers[CA_REG_RFLAGS] = r->rflags;
    event->registers[CA_REG_CR0] = r->cr0;
    event->registers[CA_REG_CR2] = r->cr2;
    event->registers[CA_REG_CR3] = r->cr3;
    event->registers[CA_REG_CR4] = r->cr4;
    event->registers[CA_REG_DR7] = r->dr7;
    event->registers[CA_REG_EFER] = r->efer;
    event->registers[CA_REG_FS_BASE] = r->fs_base;
    event->registers[CA_REG_GS_BASE] = r->gs_base;
    event->registers[CA_REG_KERNEL_GS_BASE] = r->shadow_gs;
    switch (request->reason) {
    case VM_EVENT_REASON_WRITE_CTRLREG:
        event->trap = CA_TRAP_REGISTER;
        event->fields[CA_FIELD_NEW_VALUE] = request->u.register_write.new_value;
        event->fields[CA_FIELD_OLD_VALUE] = request->u.register_write.old_value;
        break;
    case VM_EVENT_REASON_MOV_TO_MSR:
        event->trap = CA_TRAP_MSR;
        event->fields[CA_FIELD_NEW_VALUE] = request->u.msr.new_value;
        event->fields[CA_FIELD_OLD_VALUE] = request->u.msr.old_value;
        break;
    case VM_EVENT_REASON_CPUID:
        event->trap = CA_TRAP_CPUID;
        event->fields[CA_FIELD_LEAF] = request->u.cpuid.leaf;
        event->fields[CA_FIELD_SUBLEAF] = request->u.cpuid.subleaf;
        break;
    case VM_EVENT_REASON_DESCRIPTOR_ACCESS:
        event->trap = CA_TRAP_DESCRIPTOR;
        event->fields[CA_FIELD_DESCRIPTOR] = request->u.descriptor.descriptor;
        event->fields[CA_FIELD_IS_WRITE] = request->u.descriptor.is_write;
        break;
    case VM_EVENT_REASON_SOFTWARE_BREAKPOINT: event->trap = CA_TRAP_BREAKPOINT; break;
    case VM_EVENT_REASON_GUEST_REQUEST: event->trap = CA_TRAP_GUEST_REQUEST; break;
    default: break;
    }
}

void ca_answer_fill(struct vm_event *response, const struct vm_event *request, const struct ca_answer *answer) {
    memset(response, 0, sizeof *response);
    response->version = VM_EVENT_INTERFACE_VERSION;
    response->vcpu = request->vcpu;
    response->reason = request->reason;
    response->altp2m = request->altp2m;
    response->flags = request->flags & VM_EVENT_FLAG_VCPU_PAUSED;
    switch (answer->kind) {
    case CA_ANSWER_PASS: break;
    case CA_ANSWER_SKIP:
        response->flags |= VM_EVENT_FLAG_SET_REGISTERS;
        response->data.registers = request->data.registers;
        response->data.registers.rip += answer->length;
        break;
    case CA_ANSWER_EMULATE: response->flags |= VM_EVENT_FLAG_EMULATE; break;
    case CA_ANSWER_INSTEAD:
        response->flags |= VM_EVENT_FLAG_EMULATE | VM_EVENT_FLAG_SET_EMUL_INSN_DATA;
        /* Xen takes instruction bytes for this reason only, whatever raised the event (vm_event_emulate_check()). */
        response->reason = VM_EVENT_REASON_SOFTWARE_BREAKPOINT;
        memcpy(response->data.instruction, answer->bytes, sizeof answer->bytes);
        break;
    }
}

/* Up to 16 bytes at the event's instruction; how many. */
static uint32_t fetch(const struct vm_event *request, struct ca_mem *mem, uint8_t bytes[16]) {
    struct ca_event event;
    struct ca_fault fault;
    uint64_t space;
    uint32_t count = 0;
    ca_event_from(&event, request);
    if (mem == NULL || !ca_event_space(&event, &space)) return 0;
    while (count < 16 && ca_load(mem, space, request->data.registers.rip + count, bytes + count, 1, &fault)) count++;
    return count;
}

struct ca_answer ca_answer_own(struct ca_session *s, const struct vm_event *request, struct ca_mem *mem) {
    struct ca_answer answer = {.kind = CA_ANSWER_PASS};
    uint8_t bytes[16];
    uint32_t count;
    switch (request->reason) {
    case VM_EVENT_REASON_CPUID:
        /* The registers hold the results already; Xen leaves it to us to step over the instruction. */
        answer.kind = CA_ANSWER_SKIP;
        answer.length = request->u.cpuid.length;
        break;
    case VM_EVENT_REASON_DESCRIPTOR_ACCESS:
        count = fetch(request, mem, bytes);
        if (count != 0 && ca_instruction_is_descriptor(bytes, count)) answer.kind = CA_ANSWER_EMULATE;
        break;
    case VM_EVENT_REASON_SOFTWARE_BREAKPOINT:
        count = fetch(request, mem, bytes);
        /* The guest's own INT3 (a debugger's, a kprobe): it gets the exception it would have got. */
        if (count != 0 && bytes[0] == 0xcc)
            s->events->inject(s->xen->control, s->domid, (int)request->vcpu, VECTOR_BREAKPOINT, SOFTWARE_EXCEPTION, NO_ERROR_CODE,
                              (uint8_t)request->u.breakpoint.length, 0);
        break;
    default: break;
    }
    return answer;
}

void ca_answer_put(struct ca_ledger *ledger, struct vm_event_ring *ring, uint32_t index, const struct vm_event *request,
                   const struct ca_answer *answer) {
    struct vm_event response;
    ca_answer_fill(&response, request, answer);
    atomic_store(&ledger->answering, 0);
    if (&ledger->event != request) ledger->event = *request;
    atomic_store(&ledger->answering, index + 1);
    memcpy(&ring->slot[index & (VM_EVENT_SLOTS - 1)], &response, sizeof response);
    __atomic_store_n(&ring->rsp_prod, index + 1, __ATOMIC_SEQ_CST);
}
