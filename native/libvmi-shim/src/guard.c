/*
 * Reading a mapped file that shrinks raises SIGBUS in the middle of a load. Every load from and store to a view goes
 * through the two routines below, written in assembly so that the instructions that may fault are known; a SIGBUS
 * handler that finds the program counter on one of them continues at its fix-up, which returns what was not copied.
 * There is no state to keep or to unwind, so this is as good on any thread, inside any caller, and costs nothing until
 * it happens. (fstat before each access would race with the shrinking; sigsetjmp would jump over frames that hold locks.)
 *
 * Node: libuv takes over a signal only when somebody listens to it (process.on('SIGBUS')), and V8's own trap handler
 * uses SIGSEGV on Linux. Our handler remembers the one it replaced and hands it everything that is not ours. As a
 * listener added later would replace ours, each call looks (one sigaction, about 0.1 us) and puts itself in front again.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <ucontext.h>

#include "shim.h"

#if !defined(__x86_64__) || !defined(__linux__)
#error "the guarded copies are written for x86-64 Linux"
#endif

/* to in rdi, from in rsi, bytes in rdx. All faulting instructions carry a label in the table at the end. */
__asm__(".text\n"
        ".p2align 4\n"
        ".globl ca_guard_load64\n.hidden ca_guard_load64\n.type ca_guard_load64,@function\n"
        "ca_guard_load64:\n"
        ".cfi_startproc\n"
        "ca_fault_load:  mov (%rsi), %rax\n"
        "    mov %rax, (%rdi)\n"
        "    xor %eax, %eax\n"
        "    ret\n"
        "ca_fix_load:\n"
        "    mov $1, %eax\n"
        "    ret\n"
        ".cfi_endproc\n"
        ".size ca_guard_load64,.-ca_guard_load64\n"
        ".p2align 4\n"
        ".globl ca_guard_copy\n.hidden ca_guard_copy\n.type ca_guard_copy,@function\n"
        "ca_guard_copy:\n"
        ".cfi_startproc\n"
        "    cmp $256, %rdx\n"
        "    jb 6f\n"
        "    cmpb $0, ca_guard_vectors(%rip)\n"
        "    jne 3f\n"
        "6:  sub $8, %rdx\n"
        "    jb 2f\n"
        "1:\n"
        "ca_fault_word:  mov (%rsi), %rax\n"
        "ca_fault_wordw: mov %rax, (%rdi)\n"
        "    add $8, %rsi\n"
        "    add $8, %rdi\n"
        "    sub $8, %rdx\n"
        "    jae 1b\n"
        "2:  add $8, %rdx\n"
        "    jz 4f\n"
        "    cmp $4, %rdx\n"
        "    jb 5f\n"
        "ca_fault_half:  mov (%rsi), %eax\n"
        "ca_fault_halfw: mov %eax, (%rdi)\n"
        "    add $4, %rsi\n"
        "    add $4, %rdi\n"
        "    sub $4, %rdx\n"
        "    jz 4f\n"
        "ca_fix_half:\n"
        "5:\n"
        "ca_fault_byte:  mov (%rsi), %al\n"
        "ca_fault_bytew: mov %al, (%rdi)\n"
        "    inc %rsi\n"
        "    inc %rdi\n"
        "    dec %rdx\n"
        "    jnz 5b\n"
        "4:  xor %eax, %eax\n"
        "    ret\n"
        /* As memcpy() does, and as fast. By a string instruction or by words it takes half as long again. */
        "3:  sub $128, %rdx\n"
        "7:\n"
        "ca_fault_block: vmovdqu (%rsi), %ymm0\n"
        "    vmovdqu 32(%rsi), %ymm1\n"
        "    vmovdqu 64(%rsi), %ymm2\n"
        "    vmovdqu 96(%rsi), %ymm3\n"
        "    vmovdqu %ymm0, (%rdi)\n"
        "    vmovdqu %ymm1, 32(%rdi)\n"
        "    vmovdqu %ymm2, 64(%rdi)\n"
        "    vmovdqu %ymm3, 96(%rdi)\n"
        "ca_fault_block_end:\n"
        "    add $128, %rsi\n"
        "    add $128, %rdi\n"
        "    sub $128, %rdx\n"
        "    jae 7b\n"
        "    vzeroupper\n"
        "    add $120, %rdx\n" /* what is left, lowered by a word */
        "    jc 1b\n"
        "    jmp 2b\n"
        /* On by bytes, to the very one that can not be had. */
        "ca_fix_word:\n" /* rdx was lowered by the 8 that failed */
        "    add $8, %rdx\n"
        "    jmp 5b\n"
        "ca_fix_byte:\n"
        "    mov %rdx, %rax\n"
        "    ret\n"
        "ca_fix_block:\n"
        "    vzeroupper\n"
        "    add $128, %rdx\n"
        "    jmp 5b\n"
        ".cfi_endproc\n"
        ".size ca_guard_copy,.-ca_guard_copy\n");

extern const char ca_fault_load[], ca_fix_load[], ca_fault_word[], ca_fault_wordw[], ca_fix_word[], ca_fault_byte[],
    ca_fault_bytew[], ca_fix_byte[], ca_fault_half[], ca_fault_halfw[], ca_fix_half[], ca_fault_block[], ca_fault_block_end[],
    ca_fix_block[];

uint8_t ca_guard_vectors;

__attribute__((constructor)) static void look_for_vectors(void) {
    __builtin_cpu_init();
    ca_guard_vectors = __builtin_cpu_supports("avx") != 0;
}

static struct sigaction previous;
static pthread_mutex_t arming = PTHREAD_MUTEX_INITIALIZER;

static const char *fix_up(const char *at) {
    if (at == ca_fault_load) return ca_fix_load;
    if (at == ca_fault_word || at == ca_fault_wordw) return ca_fix_word;
    if (at == ca_fault_half || at == ca_fault_halfw) return ca_fix_half;
    if (at == ca_fault_byte || at == ca_fault_bytew) return ca_fix_byte;
    if (at >= ca_fault_block && at < ca_fault_block_end) return ca_fix_block;
    return NULL;
}

static void on_sigbus(int signal, siginfo_t *info, void *context) {
    ucontext_t *machine = context;
    const char *to = fix_up((const char *)machine->uc_mcontext.gregs[REG_RIP]);
    if (to != NULL) {
        machine->uc_mcontext.gregs[REG_RIP] = (greg_t)to;
        return;
    }
    if ((previous.sa_flags & SA_SIGINFO) != 0 && previous.sa_sigaction != NULL && previous.sa_sigaction != on_sigbus) {
        previous.sa_sigaction(signal, info, context);
    } else if ((previous.sa_flags & SA_SIGINFO) == 0 && previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
        previous.sa_handler(signal);
    } else {
        /* Nobody else wants it: the default action, taken when the instruction is tried again. */
        struct sigaction standard = {.sa_handler = SIG_DFL};
        sigaction(SIGBUS, &standard, NULL);
        if (info->si_code <= 0) raise(SIGBUS);
    }
}

int32_t ca_guard_arm(void) {
    struct sigaction now;
    if (sigaction(SIGBUS, NULL, &now) != 0) return ca_fail(CA_E_SOURCE, "sigaction: %s", strerror(errno));
    if (CA_LIKELY((now.sa_flags & SA_SIGINFO) != 0 && now.sa_sigaction == on_sigbus)) return CA_OK;
    int32_t result = CA_OK;
    pthread_mutex_lock(&arming);
    sigaction(SIGBUS, NULL, &now);
    if ((now.sa_flags & SA_SIGINFO) == 0 || now.sa_sigaction != on_sigbus) {
        previous = now;
        struct sigaction ours = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART};
        sigemptyset(&ours.sa_mask);
        if (sigaction(SIGBUS, &ours, NULL) != 0) result = ca_fail(CA_E_SOURCE, "sigaction: %s", strerror(errno));
    }
    pthread_mutex_unlock(&arming);
    return result;
}
