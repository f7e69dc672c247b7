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
#include "layout.h"
#include "maps.h"
#include "next_hop.h"
#include "packet.h"
#include "select.h"
#include "verifier.h"

/* Random ports tried before a pool counts as exhausted. */
#define PORTS_TRIED 32
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

static __always_inline void note_packet(struct session *session, const struct packet *packet, __u32 now)
{
	if (session->seen != now)
		session->seen = now;
	if (packet->protocol == IPPROTO_TCP && packet->fragment != LATER_FRAGMENT &&
	    (void *)(packet->tcp + 1) <= packet->end && (packet->tcp->fin || packet->tcp->rst) &&
	    session->timeout > CLOSING_TIMEOUT)
		session->timeout = CLOSING_TIMEOUT;
}

static __always_inline __be16 session_source_port(const struct backend *backend, __u32 number)
{
	return htons(backend->source_port + (number - backend->first_session));
}

static __always_inline void fill_session(const int family, struct session *session, const struct backend *backend,
					 __u32 backend_id, __u32 number, const struct flow *flow, __u8 protocol,
					 __u32 idle_timeout, __u32 now)
{
	__u64 addresses = csum_address(family, flow->client, backend->source) +
			  csum_address(family, backend->vip, backend->address);
	__u64 ports = csum_port(flow->client_port, session_source_port(backend, number)) +
		      csum_port(flow->port, backend->port ? backend->port : flow->port);

	session->seen = 0;
	barrier();
	copy_address(family, session->client, flow->client);
	session->client_port = flow->client_port;
	session->vip_port = flow->port;
	session->backend = backend_id;
	session->identity = backend->identity;
	session->service = backend->service;
	session->timeout = idle_timeout;
	session->protocol = protocol;
	session->address_delta = csum_fold_sum(addresses);
	session->l4_delta = csum_fold_sum(addresses + ports);
	barrier();
	session->seen = now;
}

GLOBAL_SUBPROGRAM __u64 find_free_session(__u64 first, __u64 ports, __u64 now, __u64 unused);

/* The number of a new session; below 0 if the pool has no free port. */
static __always_inline int start_session(const int family, const struct backend *backend, __u32 backend_id,
					 const struct flow *flow, __u8 protocol, __u32 idle_timeout, __u32 now)
{
	__u32 ports = backend->source_ports / CPUS;
	__u32 first = backend->first_session + bpf_get_smp_processor_id() * ports;
	__u32 number = find_free_session(first, ports, now, 0);
	struct session *session = lookup(MAP_SESSIONS, number);

	if (!session)
		return -1;
	fill_session(family, session, backend, backend_id, number, flow, protocol, idle_timeout, now);
	return number;
}

#endif
