// Four processes keep a pattern each in a vector register for SECONDS and look whether it stays. Ends with 1 if one did not.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PROCESSES = 4 };

static int keep(int pattern, time_t until)
{
    unsigned char in[16], out[16];
    unsigned long looks = 0, wrong = 0;
    memset(in, pattern, sizeof in);
    // The emulated clock is slow to ask and the loop must be left at some time: at least one look, whatever the time is.
    do {
        unsigned long spin = 1000000;
        __asm__ volatile("movdqu (%1), %%xmm9\n1: dec %0\njnz 1b\nmovdqu %%xmm9, (%2)"
                         : "+r"(spin) : "r"(in), "r"(out) : "memory", "xmm9");
        looks++;
        wrong += memcmp(in, out, sizeof in) != 0;
    } while (time(NULL) < until);
    printf("%lu of %lu wrong\n", wrong, looks);
    return fflush(stdout) != 0 || wrong != 0;
}

int main(int argc, char **argv)
{
    time_t until = time(NULL) + (argc > 1 ? atoi(argv[1]) : 1);
    int failed = 0;
    for (int i = 0; i < PROCESSES; i++) {
        pid_t child = fork();
        if (child < 0) return 2;
        if (child == 0) _exit(keep(0x10 + i, until));
    }
    for (int status; wait(&status) > 0;) failed |= status != 0;
    return failed;
}
