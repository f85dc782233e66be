// A process with a name, threads and user ids a test knows: real 1234, effective 1235, saved 1236.
#define _GNU_SOURCE
#include <pthread.h>
#include <sys/prctl.h>
#include <unistd.h>

static void *sleeper(void *name) {
  prctl(PR_SET_NAME, name);
  for (;;) pause();
}

int main(void) {
  static char names[3][16] = {"worker-0", "worker-1", "worker-2"};
  pthread_t thread;
  prctl(PR_SET_NAME, "many\xc3\xa9 \x1b[2J");
  for (int i = 0; i < 3; i++)
    if (pthread_create(&thread, 0, sleeper, names[i])) return 1;
  // The library changes the ids of every thread.
  if (setresuid(1234, 1235, 1236)) return 1;
  for (;;) pause();
}
