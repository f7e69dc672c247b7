/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * full_nat: a flow takes a source port of the balancer's for as long as its session lives. A session's place in
 * the array is its port's place in the pool, so a reply finds it on any CPU; only the CPU that owns the port
 * starts sessions there.
 */
#ifndef LBOPS_SESSIONS_H
#define LBOPS_SESSIONS_H

#include "address.h"
#include "clock.h"
#include "csum.h"
#include "flow_table.h"
#include "layout.h"
#include "maps.h"
#include "next_hop.h"
#include "packet.h"
#include "select.h"
#include "verifier.h"

/* Random ports tried before a pool counts as exhausted. */
#define PORTS_TRIED 32
/*
 * Ticks that a session lives that is not established, 30 s. Who sends from an address that is not his sees no answer, so
 * his sessions do not last, and make room for others when there is no free port.
 */
#define UNCONFIRMED_TIMEOUT 28
/* Ticks that a session lives on after FIN or RST, 120 s. */
#define CLOSING_TIMEOUT 112

static __always_inline int is_alive(const struct session *session, __u32 now)
{
	/* Another CPU, whose clock is a tick ahead, may have seen it later than now. */
	return (__s32)(now - session->seen) <= (__s32)session->timeout;
}

static __always_inline struct session *live_session(__u32 number, __u32 now)
{
	struct session *session = lookup(MAP_SESSIONS, number);

	return session && is_alive(session, now) ? session : NULL;
}

/* The backend that a session was started with; NULL if it is gone. */
static __always_inline struct backend *session_backend(const struct session *session)
{
	struct backend *backend = lookup(MAP_BACKENDS, session->backend);

	return backend && backend->identity == session->identity && backend->forwarding ? backend : NULL;
}

static __always_inline int is_session_of(const int family, const struct session *session, const struct flow *flow,
					 __u32 service)
{
	return session->service == service && session->client_port == flow->client_port &&
	       session->vip_port == flow->port && same_address(family, session->client, flow->client);
}

static __always_inline int is_half_open(const struct session *session)
{
	return session->state == SESSION_NEW || session->state == SESSION_ANSWERED;
}

static __always_inline void set_session_state(struct session *session, enum session_state state, __u32 longest)
{
	session->state = state;
	session->timeout = session->idle_timeout < longest ? session->idle_timeout : longest;
}

/*
 * FIN and RST are believed until data follows: the balancer does not know which sequence numbers the receiver accepts
 * (RFC 5961), so anyone may have sent them. Data of one side takes the mark back.
 */
static __always_inline void note_packet(const int family, struct session *session, const struct packet *packet,
					int is_request, __u32 now)
{
	enum session_state waiting = is_request ? SESSION_ANSWERED : SESSION_NEW;
	int is_tcp = packet->protocol == IPPROTO_TCP && (void *)(packet->tcp + 1) <= packet->end;

	if (session->seen != now)
		session->seen = now;
	if (is_tcp && (packet->tcp->fin || packet->tcp->rst)) {
		if (session->state == SESSION_ESTABLISHED) {
			session->idle_timeout = session->timeout;
			set_session_state(session, SESSION_CLOSING, CLOSING_TIMEOUT);
		}
		return;
	}
	if (session->state == SESSION_ESTABLISHED)
		return;
	if (is_tcp && is_request && packet->tcp->syn) {
		/* A new connection from the same port. */
		if (session->state == SESSION_CLOSING)
			set_session_state(session, SESSION_NEW, UNCONFIRMED_TIMEOUT);
		return;
	}
	if (session->state == waiting && !is_request)
		session->state = SESSION_ANSWERED;
	else if (session->state == waiting || (session->state == SESSION_CLOSING && has_payload(family, packet)))
		set_session_state(session, SESSION_ESTABLISHED, ~0U);
}

static __always_inline __be16 session_source_port(const struct backend *backend, __u32 number)
{
	return htons(backend->source_port + (number - backend->first_session));
}

static __always_inline void fill_session(const int family, struct session *session, const struct backend *backend,
					 __u32 backend_id, __u32 number, const struct flow *flow, __u8 protocol,
					 __u32 idle_timeout, __u32 now)
{
	__u64 addresses = csum_address(family, flow->client, backend->source);
	__u64 ports = csum_port(flow->client_port, session_source_port(backend, number)) +
		      csum_port(flow->port, backend->port ? backend->port : flow->port);

	/* Or the compiler would keep all words of all addresses on the stack. */
	asm volatile("" : "+r"(addresses) : : "memory");
	addresses += csum_address(family, backend->vip, backend->address);
	asm volatile("" : "+r"(addresses) : : "memory");
	session->seen = 0;
	barrier();
	copy_address(family, session->client, flow->client);
	session->client_port = flow->client_port;
	session->vip_port = flow->port;
	session->backend = backend_id;
	session->identity = backend->identity;
	session->service = backend->service;
	session->idle_timeout = idle_timeout;
	set_session_state(session, SESSION_NEW, UNCONFIRMED_TIMEOUT);
	session->started = clock_units();
	session->protocol = protocol;
	session->address_delta = csum_fold_sum(addresses);
	session->l4_delta = csum_fold_sum(addresses + ports);
	barrier();
	session->seen = now;
}

GLOBAL_SUBPROGRAM __u64 find_free_session(__u64 first, __u64 ports, __u64 now, __u64 service);

/* The number of a new session; below 0 if the pool has no port for it. */
static __always_inline int make_session(const int family, const struct backend *backend, __u32 backend_id,
					const struct flow *flow, __u8 protocol, __u32 idle_timeout)
{
	__u32 ports = backend->source_ports / CPUS, now = clock_ticks();
	__u32 first = backend->first_session + bpf_get_smp_processor_id() * ports;
	__u32 number = find_free_session(first, ports, now, backend->service);
	struct session *session = lookup(MAP_SESSIONS, number);

	if (!session)
		return -1;
	fill_session(family, session, backend, backend_id, number, flow, protocol, idle_timeout, now);
	return number;
}

SUBPROGRAM int make_session4(const struct backend *backend, __u32 backend_id, const struct flow *flow, __u32 protocol,
			     __u32 idle_timeout);
SUBPROGRAM int make_session6(const struct backend *backend, __u32 backend_id, const struct flow *flow, __u32 protocol,
			     __u32 idle_timeout);

/* The same by a call, once for each flow. */
static __always_inline int start_session(const int family, const struct backend *backend, __u32 backend_id,
					 const struct flow *flow, __u8 protocol, __u32 idle_timeout)
{
	if (family == 6)
		return make_session6(backend, backend_id, flow, protocol, idle_timeout);
	return make_session4(backend, backend_id, flow, protocol, idle_timeout);
}

#endif
