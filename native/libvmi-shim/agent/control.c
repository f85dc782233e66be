#define _GNU_SOURCE
#include <errno.h>
#include <sys/socket.h>

#include "agent.h"

/* Room a reply may need; while there is less, no further request is taken. */
#define REPLY_ROOM 1024u

static void append(struct ca_control *c, uint32_t type, uint32_t id, const void *payload, uint32_t bytes) {
    const uint32_t head[3] = {bytes, type, id};
    if (CA_OUT_BYTES - c->out_bytes < CA_FRAME_HEADER + bytes) return;
    memcpy(c->out + c->out_bytes, head, sizeof head);
    if (bytes != 0) memcpy(c->out + c->out_bytes + CA_FRAME_HEADER, payload, bytes);
    c->out_bytes += CA_FRAME_HEADER + bytes;
}

static bool has_room(const struct ca_control *c) { return CA_OUT_BYTES - c->out_bytes >= REPLY_ROOM; }

void ca_control_open(struct ca_control *c, int fd) {
    c->fd = fd;
    c->closed = c->wake = false;
    c->in_bytes = c->out_bytes = 0;
}

short ca_control_events(const struct ca_control *c) {
    return (short)((has_room(c) ? POLLIN : 0) | (c->out_bytes != 0 || c->wake ? POLLOUT : 0));
}

void ca_control_flush(struct ca_control *c) {
    if (c->wake && has_room(c)) {
        c->wake = false;
        append(c, CA_FRAME_WAKE, 0, NULL, 0);
    }
    while (c->out_bytes != 0 && !c->closed) {
        ssize_t sent = send(c->fd, c->out, c->out_bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) continue;
        if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
        if (sent <= 0) {
            c->closed = true;
            return;
        }
        c->out_bytes -= (uint32_t)sent;
        memmove(c->out, c->out + sent, c->out_bytes);
    }
}

void ca_control_reply(struct ca_control *c, uint32_t id, int64_t value) {
    uint8_t payload[8 + 512] = {0};
    uint32_t bytes = 8;
    memcpy(payload, &value, 8);
    if (value < 0) {
        int32_t text = ca_last_error(payload + 8, sizeof payload - 8);
        bytes += (uint32_t)text < sizeof payload - 9 ? (uint32_t)text : (uint32_t)sizeof payload - 9;
    }
    append(c, CA_FRAME_REPLY, id, payload, bytes);
}

void ca_control_gone(struct ca_control *c, const char *text) {
    uint32_t bytes = (uint32_t)strnlen(text, 512);
    uint64_t until = ca_now() + 1000000000ull;
    while (!has_room(c) && !c->closed && ca_now() < until) {
        struct pollfd wait = {c->fd, POLLOUT, 0};
        poll(&wait, 1, 100);
        ca_control_flush(c);
    }
    append(c, CA_FRAME_GONE, 0, text, bytes);
    for (;;) {
        ca_control_flush(c);
        if (c->out_bytes == 0 || c->closed || ca_now() >= until) return;
        struct pollfd wait = {c->fd, POLLOUT, 0};
        poll(&wait, 1, 100);
    }
}

void ca_control_run(struct ca_control *c, struct ca_agent *agent) {
    ca_control_flush(c);
    if (c->closed || !has_room(c)) return;
    ssize_t got = recv(c->fd, c->in + c->in_bytes, sizeof c->in - c->in_bytes, MSG_DONTWAIT);
    if (got == 0 || (got < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)) {
        c->closed = true;
        return;
    }
    if (got > 0) c->in_bytes += (uint32_t)got;
    uint32_t at = 0;
    while (c->in_bytes - at >= CA_FRAME_HEADER && has_room(c)) {
        uint32_t head[3];
        memcpy(head, c->in + at, sizeof head);
        if (head[0] > CA_FRAME_MAX) {
            c->closed = true;
            return;
        }
        if (c->in_bytes - at < CA_FRAME_HEADER + head[0]) break;
        ca_agent_request(agent, head[1], head[2], c->in + at + CA_FRAME_HEADER, head[0]);
        at += CA_FRAME_HEADER + head[0];
    }
    c->in_bytes -= at;
    memmove(c->in, c->in + at, c->in_bytes);
    ca_control_flush(c);
}
