/* Private to the parts that share memory with other domains: devices of Xen. */
#ifndef CA_EVTCHN_H
#define CA_EVTCHN_H

#include "cloudapp_vchan.h"
#include "shim.h"

/* Opens a device, nonblocking; the error says which module makes it. */
int32_t ca_device_open(const char *path, const char *module);

#endif
