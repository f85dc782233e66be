/*
 * What keeps a test guest busy: one mode a process, each for ever, each counting its rounds in /run/busy/MODE.
 *
 *   busy fork      processes that come and go, some as groups, some orphaned
 *   busy thread    threads that come and go
 *   busy bpf       BPF programs: three that stay (fentry, kprobe, socket filter) and others that come and go
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/btf.h>
#include <linux/perf_event.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void die(const char *what)
{
    fprintf(stderr, "busy: %s: %s\n", what, strerror(errno));
    exit(1);
}

/* A reader never sees half a number: the file is replaced. */
static void count(const char *mode, unsigned long rounds)
{
    char name[64], new[72];
    FILE *file;

    snprintf(name, sizeof(name), "/run/busy/%s", mode);
    snprintf(new, sizeof(new), "%s.new", name);
    file = fopen(new, "w");
    if (!file || fprintf(file, "%lu\n", rounds) < 0 || fclose(file) || rename(new, name))
        die(name);
}

static void *short_thread(void *argument)
{
    char name[16];

    snprintf(name, sizeof(name), "busy-thread-%ld", (long)argument);
    prctl(PR_SET_NAME, name);
    usleep(1000 * (rand() % 20));
    return NULL;
}

static void threads(void)
{
    for (unsigned long rounds = 1;; rounds++) {
        pthread_t thread[6];

        for (long i = 0; i < 6; i++)
            if (pthread_create(&thread[i], NULL, short_thread, (void *)i))
                die("pthread_create");
        for (int i = 0; i < 6; i++)
            pthread_join(thread[i], NULL);
        count("thread", rounds);
        usleep(100000);
    }
}

static void forks(void)
{
    for (unsigned long rounds = 1;; rounds++) {
        for (int i = 0; i < 4; i++) {
            pid_t child = fork();

            if (child < 0)
                die("fork");
            if (child > 0)
                continue;
            if (i == 1)
                setsid();
            if (i == 2 && fork() > 0)
                _exit(0); /* an orphan */
            if (i == 3) {
                execl("/bin/true", "true", NULL);
                _exit(1);
            }
            usleep(1000 * (rand() % 30));
            _exit(0);
        }
        usleep(100000);
        while (waitpid(-1, NULL, WNOHANG) > 0)
            ;
        count("fork", rounds);
    }
}

static int bpf(int command, union bpf_attr *attr)
{
    return syscall(SYS_bpf, command, attr, sizeof(*attr));
}

/* r0 = 0, some filler so that sizes differ, exit */
static int load(int type, int attach, unsigned btf_id, int filler)
{
    static struct bpf_insn code[512];
    union bpf_attr attr = {};
    int n = 0;

    code[n++] = (struct bpf_insn){ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 0 };
    for (int i = 0; i < filler; i++)
        code[n++] = (struct bpf_insn){ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 2, .imm = i };
    code[n++] = (struct bpf_insn){ .code = BPF_JMP | BPF_EXIT };
    attr.prog_type = type;
    attr.expected_attach_type = attach;
    attr.attach_btf_id = btf_id;
    attr.insns = (unsigned long)code;
    attr.insn_cnt = n;
    attr.license = (unsigned long)"GPL";
    snprintf(attr.prog_name, sizeof(attr.prog_name), "busy_%d", filler);
    return bpf(BPF_PROG_LOAD, &attr);
}

/* Bytes behind a struct btf_type, by its kind: Documentation/bpf/btf.rst. */
static size_t more(unsigned kind, unsigned length)
{
    switch (kind) {
    case BTF_KIND_INT:
    case BTF_KIND_VAR:
    case BTF_KIND_DECL_TAG:
        return 4;
    case BTF_KIND_ARRAY:
        return sizeof(struct btf_array);
    case BTF_KIND_STRUCT:
    case BTF_KIND_UNION:
        return length * sizeof(struct btf_member);
    case BTF_KIND_ENUM:
        return length * sizeof(struct btf_enum);
    case BTF_KIND_FUNC_PROTO:
        return length * sizeof(struct btf_param);
    case BTF_KIND_DATASEC:
        return length * sizeof(struct btf_var_secinfo);
    case 19: /* BTF_KIND_ENUM64 */
        return length * 12;
    default:
        return 0;
    }
}

static unsigned function_id(const char *name)
{
    int file = open("/sys/kernel/btf/vmlinux", O_RDONLY);
    struct btf_header header;
    struct stat status;
    char *data, *at;
    size_t got = 0;

    if (file < 0 || fstat(file, &status))
        die("/sys/kernel/btf/vmlinux");
    data = malloc(status.st_size);
    for (ssize_t n; got < (size_t)status.st_size && (n = read(file, data + got, status.st_size - got)) > 0;)
        got += n;
    close(file);
    memcpy(&header, data, sizeof(header));
    at = data + header.hdr_len + header.type_off;
    for (unsigned id = 1; at < data + header.hdr_len + header.type_off + header.type_len; id++) {
        struct btf_type *type = (void *)at;
        unsigned kind = BTF_INFO_KIND(type->info);

        if (kind == BTF_KIND_FUNC && !strcmp(data + header.hdr_len + header.str_off + type->name_off, name)) {
            free(data);
            return id;
        }
        at += sizeof(*type) + more(kind, BTF_INFO_VLEN(type->info));
    }
    die(name);
    return 0;
}

static void attach_tracing(int attach, const char *function, int filler)
{
    int program = load(BPF_PROG_TYPE_TRACING, attach, function_id(function), filler);
    union bpf_attr attr = {};

    if (program < 0)
        die("fentry program");
    attr.raw_tracepoint.prog_fd = program;
    if (bpf(BPF_RAW_TRACEPOINT_OPEN, &attr) < 0)
        die("fentry attach");
}

static void attach_kprobe(const char *function)
{
    struct perf_event_attr attr = { .size = sizeof(attr), .sample_period = 1 };
    int program = load(BPF_PROG_TYPE_KPROBE, 0, 0, 3);
    FILE *type = fopen("/sys/bus/event_source/devices/kprobe/type", "r");
    int event;

    if (program < 0)
        die("kprobe program");
    if (!type || fscanf(type, "%u", &attr.type) != 1)
        die("kprobe type");
    fclose(type);
    attr.kprobe_func = (unsigned long)function;
    event = syscall(SYS_perf_event_open, &attr, -1, 0, -1, 0);
    if (event < 0 || ioctl(event, PERF_EVENT_IOC_SET_BPF, program) || ioctl(event, PERF_EVENT_IOC_ENABLE, 0))
        die("kprobe attach");
}

static void bpfs(void)
{
    int pair[2];
    int filter = load(BPF_PROG_TYPE_SOCKET_FILTER, 0, 0, 1);

    if (filter < 0 || socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) ||
        setsockopt(pair[0], SOL_SOCKET, SO_ATTACH_BPF, &filter, sizeof(filter)))
        die("socket filter");
    attach_tracing(BPF_TRACE_FENTRY, "vfs_read", 5);
    attach_tracing(BPF_TRACE_FEXIT, "vfs_write", 7);
    attach_kprobe("do_nanosleep");
    for (unsigned long rounds = 1;; rounds++) {
        int program[8];

        for (int i = 0; i < 8; i++)
            if ((program[i] = load(BPF_PROG_TYPE_SOCKET_FILTER, 0, 0, rand() % 500)) < 0)
                die("short-lived program");
        usleep(200000);
        for (int i = 0; i < 8; i++)
            close(program[i]);
        count("bpf", rounds);
    }
}

int main(int argc, char **argv)
{
    mkdir("/run/busy", 0755);
    if (argc == 2 && !strcmp(argv[1], "fork"))
        forks();
    if (argc == 2 && !strcmp(argv[1], "thread"))
        threads();
    if (argc == 2 && !strcmp(argv[1], "bpf"))
        bpfs();
    fprintf(stderr, "usage: busy fork|thread|bpf\n");
    return 2;
}
