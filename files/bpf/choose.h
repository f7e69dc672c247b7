/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The backend of a packet: what is remembered of its flow comes before what the scheduler says. */
#ifndef LBOPS_CHOOSE_H
#define LBOPS_CHOOSE_H

#include "budget.h"
#include "count.h"
#include "flow_table.h"
#include "handover.h"
#include "layout.h"
#include "maps.h"
#include "packet.h"
#include "quic.h"
#include "select.h"
#include "sessions.h"
#include "source_ranges.h"
#include "verifier.h"

#if defined(FEATURE_FLOW_TABLE) || defined(FEATURE_FULL_NAT)
#define FLOWS_ARE_REMEMBERED
#endif

struct choice {
	struct backend *backend;
	__u32 id;
	__u32 number; /* of the session, full_nat */
	struct session *session;
	const struct lookup_table *rules; /* of the service; NULL: not asked for */
	struct lookup_table copy;
	__u32 service;
	/* Of the flow; without the seed if it is remembered, for that is to outlive another seed. */
	__u64 hash;
	__u64 slot_hash; /* the same, or that of the client alone */
};

/* Instead of a reason. */
#define CHOSEN -1

static __always_inline int take(struct choice *choice, __u32 id)
{
	choice->id = id;
	choice->backend = id ? lookup(MAP_BACKENDS, id) : NULL;
	return choice->backend ? CHOSEN : DROP_NO_BACKEND;
}

/* Whether the backend is this host, which needs no session of full_nat either. */
static __always_inline int is_local(const struct backend *backend)
{
#ifdef FEATURE_LOCAL
	return backend->forwarding == FORWARDING_LOCAL;
#else
	return 0;
#endif
}

#ifdef FLOWS_ARE_REMEMBERED
/* What a flow was remembered with, if that is still so. */
static __always_inline int take_known(const int family, struct choice *choice, __u32 number, const struct flow *flow,
				      __u32 service, __u32 now)
{
	__u32 id = number, session_number = 0;
	struct session *session = NULL;
	struct backend *backend;

	if (!number)
		return DROP_NO_BACKEND;
#ifdef FEATURE_FULL_NAT
	if (number & FLOW_IS_SESSION) {
		session_number = number - FLOW_IS_SESSION;
		session = live_session(session_number, now);
		if (!session || !is_session_of(family, session, flow, service))
			return DROP_NO_BACKEND;
		id = session->backend;
	}
#endif
	backend = session ? session_backend(session) : lookup(MAP_BACKENDS, id);
	if (!backend || backend->service != service || !backend->forwarding)
		return DROP_NO_BACKEND;
	/* Written only now, or the verifier would follow each failed try for its own sake. */
	choice->backend = backend;
	choice->id = id;
	choice->number = session_number;
	choice->session = session;
	return CHOSEN;
}

/* What a TCP segment says of its connection. */
enum mark {
	NO_MARK,
	MARK_FIRST, /* SYN without ACK */
	MARK_END,   /* FIN or RST */
};

static __always_inline enum mark mark_of(const struct packet *packet)
{
	if (packet->protocol != IPPROTO_TCP || (void *)(packet->tcp + 1) > packet->end)
		return NO_MARK;
	if (packet->tcp->fin || packet->tcp->rst)
		return MARK_END;
	return packet->tcp->syn && !packet->tcp->ack ? MARK_FIRST : NO_MARK;
}

/* For the lookup table of a service that remembers flows. */
static __always_inline __u64 new_slot_hash(const int family, const struct flow *flow, const struct choice *choice)
{
	if (HASH_SEED && !affinity_prefix(choice->rules))
		return flow_hash(family, flow, HASH_SEED);
	return choice->slot_hash;
}

/* What is needed to remember a flow. */
struct memory {
	struct flow_bucket *bucket;
	struct budget *spent;
	__u64 signature;
	__u32 now;
	__u32 idle_timeout;
	int with_session;
	int is_client; /* is remembered, not a flow of it: it outlives its connections */
};

static __always_inline int open_memory(__u32 service, const struct choice *choice, struct memory *memory)
{
	memory->is_client = remembers_clients(choice->rules);
	memory->signature = flow_signature(memory->is_client ? choice->slot_hash : choice->hash, service);
	memory->now = clock_ticks();
	memory->bucket = flow_bucket(bpf_get_smp_processor_id(), memory->signature);
	memory->spent = budget(memory->now);
	memory->with_session = choice->rules->flags & SERVICE_SESSIONS;
	/* A session keeps its own time, for replies count as well. */
	memory->idle_timeout = memory->with_session ? MAX_FLOW_AGE : choice->rules->idle_timeout;
	return memory->bucket && memory->spent;
}

/* The number in all CPUs' memories, 0 if nobody knows the flow; `own`, this CPU's, if too much was searched already. */
static __always_inline __u32 search(const struct memory *memory, enum search cause, __u32 own)
{
	if (!spend(&memory->spent->searches[cause], MAX_SEARCHES))
		return own;
	return search_flow(memory->signature, memory->idle_timeout, memory->now, cause);
}

/* The backend that the flow had before the service's backends changed; 0: nobody, or one that takes it no more. */
static __always_inline __u32 previous(const int family, const struct flow *flow, const struct choice *choice,
				      __u32 now)
{
#ifdef HAS_PREVIOUS_TABLES
	return previous_backend(choice->service, new_slot_hash(family, flow, choice), affinity_prefix(choice->rules),
				now);
#else
	return 0;
#endif
}

/*
 * A flow that nobody knows: the scheduler chooses, or the previous lookup table if the flow may be older than the one
 * in use. `place` is where to remember it, NULL if there is no room; one too many is not remembered.
 */
static __always_inline int choose_anew(const int family, const struct packet *packet, const struct flow *flow,
				       const struct memory *memory, enum mark mark, __u64 *place,
				       struct choice *choice)
{
	__u32 number = scheduled(choice->service, choice->rules, new_slot_hash(family, flow, choice)), before = 0;
	enum flow_state state = FLOW_NEW;
	int is_allowed, with_session;

	if (packet->protocol == IPPROTO_TCP && mark != MARK_FIRST)
		before = previous(family, flow, choice, memory->now);
	if (before && before != number) {
		count_reason(FORWARD_HANDOVER);
		number = before;
		state = FLOW_ESTABLISHED;
	}
	if (take(choice, number) != CHOSEN)
		return DROP_NO_BACKEND;
	is_allowed = place && spend(flows_spent(memory->spent, choice->service), MAX_NEW_FLOWS);
	number = choice->id;
	with_session = memory->with_session && !is_local(choice->backend);
#ifdef FEATURE_FULL_NAT
	if (with_session) {
		int session = is_allowed ? start_session(family, choice->backend, choice->id, flow, packet->protocol,
							 choice->rules->idle_timeout) :
					   -1;

		if (session < 0)
			return DROP_NO_PORT;
		choice->number = session;
		choice->session = lookup(MAP_SESSIONS, choice->number);
		if (!choice->session)
			return DROP_NO_PORT;
		number = choice->number | FLOW_IS_SESSION;
	}
#endif
	if (is_allowed) {
		count_new_flow(choice->backend);
		*place = flow_entry(cut_signature(memory->signature),
				    mark == MARK_END && !with_session ? FLOW_CLOSING : state, number,
				    memory->now);
	} else {
		count_reason(FORWARD_FLOW_LIMIT);
	}
	return CHOSEN;
}

/* Ticks after which another CPU may know better. */
#define CERTAIN_AGE 1

/* The state of a flow that was in this one before the packet. */
static __always_inline __u32 next_state(const int family, const struct packet *packet, const struct choice *choice,
					enum mark mark, __u32 state)
{
	if (choice->session)
		return choice->session->state == SESSION_ESTABLISHED ? FLOW_ESTABLISHED : FLOW_NEW;
	if (mark == MARK_END)
		return FLOW_CLOSING;
	if (mark == MARK_FIRST || (state == FLOW_CLOSING && !has_payload(family, packet)))
		return state;
	return FLOW_ESTABLISHED;
}

static __always_inline int choose_remembered(const int family, const struct packet *packet, __u32 service,
					     const struct flow *flow, struct choice *choice)
{
	__u32 number = 0, state = FLOW_NEW;
	struct memory memory;
	enum mark mark;
	__u64 *known;

	if (!open_memory(service, choice, &memory))
		return DROP_NO_BACKEND;
	mark = memory.is_client ? NO_MARK : mark_of(packet);
	known = find_flow(memory.bucket, memory.signature);
	if (known) {
		state = flow_state(*known);
		if (state == FLOW_CLOSING || flow_age(*known, memory.now) > CERTAIN_AGE) {
			/* The client may have gone on, or have begun anew, on another CPU. */
			if (mark != MARK_FIRST || state != FLOW_CLOSING)
				number = recall_flow(*known, memory.idle_timeout, memory.now);
		} else if (take_known(family, choice, flow_number(*known), flow, service, memory.now) == CHOSEN) {
			see_flow(known, next_state(family, packet, choice, mark, state), memory.now);
			return CHOSEN;
		} else {
			/* It would be the youngest of all that a search finds. */
			*known = 0;
		}
	}
	number = search(&memory, mark == MARK_FIRST ? SEARCH_FOR_SYN : SEARCH_FOR_PACKET, number);
	FORGET(number, memory.signature);
	if (take_known(family, choice, number, flow, service, memory.now) == CHOSEN) {
		if (!known || flow_number(*known) != number)
			state = FLOW_NEW;
		if (!known)
			known = place_for_flow(memory.bucket, choice->rules->idle_timeout, memory.now);
		if (known)
			*known = flow_entry(cut_signature(memory.signature),
					    next_state(family, packet, choice, mark, state), number, memory.now);
		return CHOSEN;
	}
	choice->session = NULL;
	if (!known)
		known = place_for_flow(memory.bucket, choice->rules->idle_timeout, memory.now);
	return choose_anew(family, packet, flow, &memory, mark, known, choice);
}

static __always_inline int recall_for_error(const int family, __u32 service, const struct flow *flow,
					    struct choice *choice)
{
	struct memory memory;
	__u64 *known;
	__u32 number = 0;

	if (!open_memory(service, choice, &memory))
		return DROP_NO_BACKEND;
	known = find_flow(memory.bucket, memory.signature);
	if (known)
		number = recall_flow(*known, memory.idle_timeout, memory.now);
	if (!number)
		number = search(&memory, SEARCH_FOR_ERROR, 0);
	FORGET(number, memory.signature);
	return take_known(family, choice, number, flow, service, memory.now);
}
#endif

/* The verdict that goes with a reason of choose(). */
static __always_inline int not_chosen(int reason)
{
	return with_reason(reason, reason == PASS_TTL_EXPIRED ? PASS : DROP);
}

/* CHOSEN if the service has a lookup table and the packet may go on, with the flow's hash. */
static __always_inline int open_rules(const int family, const struct packet *packet, __u32 service,
				      const struct flow *flow, struct choice *choice)
{
	choice->session = NULL;
	choice->service = service;
	choice->rules = service_rules(service, &choice->copy);
	if (!choice->rules)
		return DROP_NO_BACKEND;
	if (!may_use(family, service, choice->rules, flow))
		return DROP_SOURCE_NOT_ALLOWED;
	if (*hop_limit(family, packet) <= 1 && !(choice->rules->flags & SERVICE_KEEPS_TTL))
		return PASS_TTL_EXPIRED;
	if (HASH_SEED && !(choice->rules->flags & (SERVICE_FLOW_TABLE | SERVICE_SESSIONS)))
		choice->hash = flow_hash(family, flow, HASH_SEED);
	else
		choice->hash = flow_hash(family, flow, 0);
	choice->slot_hash = choice->hash;
#ifdef FEATURE_AFFINITY
	if (HASH_SEED && remembers_clients(choice->rules))
		choice->slot_hash = client_hash(family, flow, affinity_prefix(choice->rules), 0);
	else if (affinity_prefix(choice->rules))
		choice->slot_hash = client_hash(family, flow, affinity_prefix(choice->rules), HASH_SEED);
#endif
	return CHOSEN;
}

#ifdef FEATURE_QUIC
/* CHOSEN if the packet belongs to a connection that a backend of the service has named; whatever its flow is. */
static __always_inline int choose_by_connection_id(const int family, const struct packet *packet, const void *table,
						   __u32 service, struct choice *choice)
{
	__u32 id_length = choice->rules->flags >> QUIC_ID_LENGTH_SHIFT & 15;
	struct connection_id id;
	struct backend *backend;
	__u32 place;

	if (!id_length || !read_server_choice(family, packet, id_length, &id))
		return DROP_NO_BACKEND;
	place = find_server(family, table, server_key(service, id_length, &id));
	backend = lookup(MAP_BACKENDS, place);
	if (!backend || !backend->forwarding) {
		if ((id.first & QUIC_CONFIG_ID) != QUIC_UNROUTABLE)
			count_reason(FORWARD_QUIC_UNKNOWN_ID);
		return DROP_NO_BACKEND;
	}
	choice->backend = backend;
	choice->id = place;
	return CHOSEN;
}
#endif

/* CHOSEN, or the reason why the packet goes to no backend. */
static __always_inline int choose(const int family, const struct packet *packet, const void *table, __u32 service,
				  const struct flow *flow, struct choice *choice)
{
	int reason = open_rules(family, packet, service, flow, choice);

	if (reason != CHOSEN)
		return reason;
#ifdef FEATURE_QUIC
	if (choose_by_connection_id(family, packet, table, service, choice) == CHOSEN)
		return CHOSEN;
#endif
#ifdef FLOWS_ARE_REMEMBERED
	if (choice->rules->flags & (SERVICE_FLOW_TABLE | SERVICE_SESSIONS))
		return choose_remembered(family, packet, service, flow, choice);
#endif
	return take(choice, scheduled(service, choice->rules, choice->slot_hash));
}

/* The same for an ICMP error about the flow, which takes no turn and is not remembered. */
static __always_inline int choose_for_error(const int family, const struct packet *packet, __u32 service,
					    const struct flow *flow, struct choice *choice)
{
	int reason = open_rules(family, packet, service, flow, choice);
#ifdef FLOWS_ARE_REMEMBERED
	__u32 id;
#endif

	if (reason != CHOSEN)
		return reason;
#ifdef FLOWS_ARE_REMEMBERED
	if (choice->rules->flags & (SERVICE_FLOW_TABLE | SERVICE_SESSIONS)) {
		if (recall_for_error(family, service, flow, choice) == CHOSEN)
			return CHOSEN;
		/* Without a session there is nobody to tell. */
		if (choice->rules->flags & SERVICE_SESSIONS)
			return DROP_NO_BACKEND;
		choice->session = NULL;
		id = previous(family, flow, choice, clock_ticks());
		return take(choice, id ? id : hashed(service, choice->rules, new_slot_hash(family, flow, choice)));
	}
#endif
	return take(choice, hashed(service, choice->rules, choice->slot_hash));
}

#endif
