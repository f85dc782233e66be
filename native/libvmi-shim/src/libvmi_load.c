/* Finds LibVMI at run time, and keeps its talk off the process's standard output and error. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "libvmi.h"

static pthread_mutex_t loading = PTHREAD_MUTEX_INITIALIZER, calling = PTHREAD_MUTEX_INITIALIZER;
static struct ca_vmi functions;
static char *loaded;

/* Where its talk goes; kept open. */
static int ear = -1;
static int saved[2] = {-1, -1};

static int32_t bind(void *library, const char *path, struct ca_vmi *vmi) {
    const struct {
        const char *name;
        void *to;
    } wanted[] = {{"vmi_init", &vmi->init},
                  {"vmi_destroy", &vmi->destroy},
                  {"vmi_read_pa", &vmi->read_pa},
                  {"vmi_get_vcpureg", &vmi->get_vcpureg},
                  {"vmi_get_max_physical_address", &vmi->get_max_physical_address},
                  {"vmi_get_num_vcpus", &vmi->get_num_vcpus},
                  {"vmi_v2pcache_flush", &vmi->v2pcache_flush},
                  {"vmi_pagecache_flush", &vmi->pagecache_flush},
                  {"vmi_events_version", &vmi->events_version}};
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        void *found = dlsym(library, wanted[i].name);
        if (found == NULL)
            return ca_fail(CA_E_UNSUPPORTED, "%s has no %s: it is no LibVMI, or one of a version that is not known", path,
                           wanted[i].name);
        /* ISO C has no cast from an object pointer to a function pointer; POSIX wants this one to work. */
        memcpy(wanted[i].to, &found, sizeof found);
    }
    /* It tells no other version; what is used here has not changed since this one. */
    uint32_t version = vmi->events_version();
    if (version != CA_VMI_EVENTS_VERSION)
        return ca_fail(CA_E_UNSUPPORTED, "%s has version %u of LibVMI's event interface, %u is known: use LibVMI 0.14 or later",
                       path, version, CA_VMI_EVENTS_VERSION);
    return CA_OK;
}

static int32_t load(const char *path) {
    if (loaded != NULL)
        return strcmp(loaded, path) == 0
                   ? CA_OK
                   : ca_fail(CA_E_UNSUPPORTED, "this process uses the LibVMI at %s already: one at a time", loaded);
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        const char *why = dlerror();
        return ca_fail(CA_E_UNSUPPORTED, "LibVMI can not be loaded (%s): build it from github.com/libvmi/libvmi and name it by "
                                         "CLOUDAPP_LIBVMI",
                       why == NULL ? path : why);
    }
    struct ca_vmi vmi;
    int32_t result = bind(library, path, &vmi);
    if (result != CA_OK) {
        dlclose(library);
        return result;
    }
    if (ear < 0) ear = memfd_create("libvmi-output", MFD_CLOEXEC);
    if (ear < 0) return ca_fail(CA_E_NOMEM, "memfd_create failed");
    loaded = strdup(path);
    if (loaded == NULL) return ca_fail(CA_E_NOMEM, "out of memory");
    functions = vmi;
    return CA_OK;
}

int32_t ca_vmi_load(const char *path, const struct ca_vmi **vmi) {
    pthread_mutex_lock(&loading);
    int32_t result = load(path);
    pthread_mutex_unlock(&loading);
    *vmi = &functions;
    return result;
}

void ca_vmi_enter(void) {
    pthread_mutex_lock(&calling);
    /* What others have said so far is theirs. */
    fflush(stdout);
    fflush(stderr);
    if (ftruncate(ear, 0) != 0 || lseek(ear, 0, SEEK_SET) != 0) return;
    for (int i = 0; i < 2; i++) {
        /* A process without standard output has none to keep clean. */
        saved[i] = fcntl(i + 1, F_DUPFD_CLOEXEC, 3);
        if (saved[i] >= 0) dup2(ear, i + 1);
    }
}

void ca_vmi_leave(void) {
    fflush(stdout);
    fflush(stderr);
    for (int i = 0; i < 2; i++) {
        if (saved[i] < 0) continue;
        dup2(saved[i], i + 1);
        close(saved[i]);
        saved[i] = -1;
    }
    pthread_mutex_unlock(&calling);
}

void ca_vmi_said(char *text, size_t size) {
    fflush(stdout);
    fflush(stderr);
    off_t end = lseek(ear, 0, SEEK_END);
    off_t from = end > (off_t)size - 1 ? end - ((off_t)size - 1) : 0;
    ssize_t got = end < 0 ? 0 : pread(ear, text, size - 1, from);
    if (got < 0) got = 0;
    while (got > 0 && (text[got - 1] == '\n' || text[got - 1] == ' ')) got--;
    text[got] = 0;
    for (ssize_t i = 0; i < got; i++)
        if (text[i] < ' ' || text[i] > '~') text[i] = ' ';
}
