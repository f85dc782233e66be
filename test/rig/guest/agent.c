/*
 * The rig's end in a VM: runs the scripts that come over a serial line, side by side. Of an emulated CPU a shell would ask ten
 * programs and a system call for each character to do the same.
 *
 *   agent                              on /dev/ttyS1: a line `ID BASE64-OF-A-SCRIPT` is run by sh, acknowledged by `@gotID` and
 *                                      answered by `@ID STATUS BASE64-OF-STDOUT BASE64-OF-STDERR`
 *   agent ask TTY ID SECONDS BASE64    passes one on to the agent at the other end of a terminal, and prints its answer
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#define FOLDER "/run/rig"
enum { LONGEST_SCRIPT = 64 << 10, LONGEST_ANSWER = 16 << 20 };

struct job {
    struct job *next;
    pid_t pid;
    unsigned long id;
    int out, err;
};

static void die(const char *what)
{
    fprintf(stderr, "agent: %s: %s\n", what, strerror(errno));
    exit(125);
}

static int open_raw(const char *name)
{
    struct termios terms;
    int tty = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);

    if (tty < 0)
        die(name);
    if (tcgetattr(tty, &terms) == 0) {
        cfmakeraw(&terms);
        tcsetattr(tty, TCSANOW, &terms);
    }
    return tty;
}

static void write_all(int fd, const char *from, size_t bytes)
{
    while (bytes > 0) {
        ssize_t done = write(fd, from, bytes);

        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            die("write");
        from += done;
        bytes -= (size_t)done;
    }
}

static const char DIGITS[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/* Gives the end of what was written, or NULL. */
static char *decode(const char *text, char *to)
{
    unsigned value = 0;
    int bits = 0;

    for (; *text != '\0' && *text != '='; text++) {
        const char *digit = strchr(DIGITS, *text);

        if (digit == NULL)
            return NULL;
        value = value << 6 | (unsigned)(digit - DIGITS);
        bits += 6;
        if (bits >= 8)
            *to++ = (char)(value >> (bits -= 8));
    }
    return to;
}

static char *encode(const unsigned char *from, size_t bytes, char *to)
{
    for (; bytes > 0; from += 3) {
        unsigned value = (unsigned)from[0] << 16 | (bytes > 1 ? from[1] << 8 : 0) | (bytes > 2 ? from[2] : 0);

        *to++ = DIGITS[value >> 18];
        *to++ = DIGITS[value >> 12 & 63];
        *to++ = bytes > 1 ? DIGITS[value >> 6 & 63] : '=';
        *to++ = bytes > 2 ? DIGITS[value & 63] : '=';
        bytes -= bytes < 3 ? bytes : 3;
    }
    return to;
}

/* No answer may be longer than two of these. */
enum { LONGEST_OUTPUT = LONGEST_ANSWER / 3 };

static size_t size_of(int fd)
{
    struct stat status;

    return fstat(fd, &status) == 0 ? (size_t)status.st_size : 0;
}

/* All of a file of ours, closed; of a longer one the beginning. */
static char *encode_file(int fd, char *to)
{
    size_t size = size_of(fd) < LONGEST_OUTPUT ? size_of(fd) : LONGEST_OUTPUT;

    if (size > 0) {
        unsigned char *bytes = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);

        if (bytes == MAP_FAILED)
            die("mmap");
        to = encode(bytes, size, to);
        munmap(bytes, size);
    }
    close(fd);
    return to;
}

/* Several processes of a script may write at once: a memory file's offset has no lock, as other files' has, and lines got lost. */
static int output_file(const char *name)
{
    int file = memfd_create(name, MFD_CLOEXEC);

    if (file < 0 || fcntl(file, F_SETFL, O_APPEND) != 0)
        die("memfd_create");
    return file;
}

static struct job *jobs;

static void start(int tty, unsigned long id, const char *text)
{
    char name[64], got[64], *script = malloc(strlen(text) + 1);
    struct job *job = calloc(1, sizeof(*job));
    char *end = script == NULL ? NULL : decode(text, script);
    int file;

    if (job == NULL || end == NULL) {
        free(job);
        free(script);
        return;
    }
    snprintf(name, sizeof(name), FOLDER "/%lu.script", id);
    file = open(name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (file < 0)
        die(name);
    write_all(file, script, (size_t)(end - script));
    close(file);
    free(script);
    job->id = id;
    job->out = output_file("out");
    job->err = output_file("err");
    job->pid = fork();
    if (job->pid < 0)
        die("fork");
    if (job->pid == 0) {
        sigset_t none;

        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        dup2(open("/dev/null", O_RDONLY | O_CLOEXEC), 0);
        dup2(job->out, 1);
        dup2(job->err, 2);
        execlp("sh", "sh", name, (char *)NULL);
        _exit(127);
    }
    job->next = jobs;
    jobs = job;
    write_all(tty, got, (size_t)snprintf(got, sizeof(got), "@got%lu\n", id));
}

static void answer(int tty, struct job *job, int status)
{
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    char name[64], *text = malloc(2 * (LONGEST_OUTPUT * 4 / 3 + 64)), *to = text;

    if (text == NULL)
        die("malloc");
    /* What is not all of it must not pass for it. */
    if (size_of(job->out) > LONGEST_OUTPUT || size_of(job->err) > LONGEST_OUTPUT)
        code = 125;
    to += sprintf(to, "@%lu %d ", job->id, code);
    to = encode_file(job->out, to);
    *to++ = ' ';
    to = encode_file(job->err, to);
    *to++ = '\n';
    write_all(tty, text, (size_t)(to - text));
    free(text);
    snprintf(name, sizeof(name), FOLDER "/%lu.script", job->id);
    unlink(name);
}

static void reap(int tty)
{
    int status;
    pid_t pid;

    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        struct job **link = &jobs;

        while (*link != NULL && (*link)->pid != pid)
            link = &(*link)->next;
        if (*link != NULL) {
            struct job *job = *link;

            *link = job->next;
            answer(tty, job, status);
            free(job);
        }
    }
}

static void take(int tty, char *line)
{
    char *text;
    unsigned long id = strtoul(line, &text, 10);

    line[strcspn(line, "\r")] = '\0';
    if (text != line && *text == ' ')
        start(tty, id, text + 1);
}

static void serve(void)
{
    static char buffer[LONGEST_SCRIPT + 1];
    size_t used = 0;
    sigset_t child;
    int tty = open_raw("/dev/ttyS1"), signals;

    mkdir("/run", 0755);
    mkdir(FOLDER, 0700);
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child, NULL);
    signals = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
    if (signals < 0)
        die("signalfd");
    write_all(tty, "@ready\n", 7);
    for (;;) {
        struct pollfd ready[2] = {{.fd = tty, .events = POLLIN}, {.fd = signals, .events = POLLIN}};
        struct signalfd_siginfo info;
        char *end;
        ssize_t got;

        if (poll(ready, 2, -1) < 0 && errno != EINTR)
            die("poll");
        if (ready[1].revents != 0) {
            while (read(signals, &info, sizeof(info)) > 0)
                continue;
            reap(tty);
        }
        if (ready[0].revents == 0)
            continue;
        got = read(tty, buffer + used, LONGEST_SCRIPT - used);
        if (got <= 0 && errno != EINTR && errno != EAGAIN)
            die("the line");
        used += got > 0 ? (size_t)got : 0;
        while ((end = memchr(buffer, '\n', used)) != NULL) {
            *end++ = '\0';
            take(tty, buffer);
            used -= (size_t)(end - buffer);
            memmove(buffer, end, used);
        }
        /* A line without an end is none. */
        if (used == LONGEST_SCRIPT)
            used = 0;
    }
}

static int ask(char **argument)
{
    char mark[32], *answer = malloc(LONGEST_ANSWER + 1);
    size_t used = 0;
    int tty = open_raw(argument[0]);

    if (answer == NULL)
        die("malloc");
    alarm((unsigned)atoi(argument[2]));
    snprintf(mark, sizeof(mark), "@%s ", argument[1]);
    write_all(tty, argument[1], strlen(argument[1]));
    write_all(tty, " ", 1);
    write_all(tty, argument[3], strlen(argument[3]));
    write_all(tty, "\n", 1);
    while (used < LONGEST_ANSWER) {
        ssize_t got = read(tty, answer + used, LONGEST_ANSWER - used);
        size_t looked = used;
        char *end;

        if (got <= 0)
            die(argument[0]);
        used += (size_t)got;
        while ((end = memchr(answer + looked, '\n', used - looked)) != NULL) {
            char *found;

            *end++ = '\0';
            answer[strcspn(answer, "\r")] = '\0';
            /* The kernel may have written before it, without an end of line. */
            found = strstr(answer, mark);
            if (found != NULL) {
                puts(found + 1);
                return 0;
            }
            used -= (size_t)(end - answer);
            memmove(answer, end, used);
            looked = 0;
        }
    }
    errno = EMSGSIZE;
    die("the answer");
    return 125;
}

int main(int count, char **argument)
{
    if (count == 6 && strcmp(argument[1], "ask") == 0)
        return ask(argument + 2);
    if (count != 1) {
        fprintf(stderr, "usage: agent [ask TTY ID SECONDS BASE64]\n");
        return 125;
    }
    serve();
}
