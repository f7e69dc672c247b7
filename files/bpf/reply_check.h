/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Whether a packet with a backend's source address comes from that backend: it arrives on the interface that leads there,
 * and, if no gateway is between, from the backend's Ethernet address. Otherwise anyone could send in the VIP's name.
 */
#ifndef LBOPS_REPLY_CHECK_H
#define LBOPS_REPLY_CHECK_H

#include "address.h"
#include "hook.h"
#include "layout.h"
#include "maps.h"
#include "next_hop.h"
#include "packet.h"
#include "verifier.h"

#if (defined(FEATURE_DNAT) || defined(FEATURE_FULL_NAT)) && !defined(FEATURE_REPLY_UNCHECKED)
#define REPLIES_ARE_CHECKED
#endif

GLOBAL_SUBPROGRAM __u64 is_above(__u64 interface, __u64 arrived, __u64 is_tagged, __u64 unused);

/* A gateway's Ethernet address is not compared: it may send from another one than its virtual one (RFC 5798). */
static __always_inline int is_from_backend(hook_context *ctx, const int family, const struct packet *packet,
					   const struct backend *backend)
{
#ifdef REPLIES_ARE_CHECKED
	struct backend_counters *own;
	struct next_hop *hop;
	int result;

	if (backend->has_mac) {
#ifdef FEATURE_REPLY_INTERFACE
		return 1;
#else
		return same_mac(packet->eth->source, backend->mac);
#endif
	}
	own = lookup(MAP_BACKEND_COUNTERS, backend->backend_counters);
	if (!own)
		return 0;
	hop = &own->next_hop;
	result = find_next_hop(ctx, family, hop, 1, backend->address);
	if (result != BPF_FIB_LKUP_RET_SUCCESS && result != BPF_FIB_LKUP_RET_NO_NEIGH)
		return 0;
	if (hop->interface != arrived_on(ctx) &&
	    !is_above(hop->interface, arrived_on(ctx),
		      packet->link_length != sizeof(*packet->eth) || has_hidden_tag(ctx), 0))
		return 0;
#ifndef FEATURE_REPLY_INTERFACE
	if (hop->on_link)
		return same_mac(packet->eth->source, hop->destination);
#endif
#endif
	return 1;
}

#endif
