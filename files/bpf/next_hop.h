/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The Ethernet address a packet goes to, from the inventory or from the kernel's FIB and neighbour tables. */
#ifndef LBOPS_NEXT_HOP_H
#define LBOPS_NEXT_HOP_H

#include "address.h"
#include "hook.h"
#include "layout.h"
#include "maps.h"
#include "packet.h"
#include "verifier.h"

#define AF_INET 2
#define AF_INET6 10

/* BPF_FIB_LKUP_RET_SUCCESS with the answer remembered, or the kernel's reason against it. */
static __always_inline int look_up_route(hook_context *ctx, const int family, struct next_hop *hop,
					 const __be32 *address, __u32 generation)
{
	struct bpf_fib_lookup fib;
	int result;

	/* An initializer need not reach what lies behind the shorter members of its unions. */
	__builtin_memset(&fib, 0, sizeof(fib));
	fib.family = family == 4 ? AF_INET : AF_INET6;
	copy_address(family, family == 4 ? &fib.ipv4_dst : fib.ipv6_dst, address);
	fib.ifindex = arrived_on(ctx);
	/* Asks for the route's MTU, which then shares this place (mtu_result, kernel 5.13). */
	fib.tot_len = 1;
	result = bpf_fib_lookup(ctx, &fib, sizeof(fib), 0);
	if (result == BPF_FIB_LKUP_RET_NO_NEIGH) {
		/* Not remembered, but the check of replies asks for the interface. */
		hop->generation = 0;
		hop->interface = fib.ifindex;
		hop->on_link = 0;
	}
	if (result != BPF_FIB_LKUP_RET_SUCCESS)
		return result;
	hop->generation = generation;
	hop->interface = fib.ifindex;
	hop->mtu = fib.tot_len;
	/* Where there is a gateway, the kernel has put its address here, which may be IPv6 for IPv4 (RFC 5549). */
	hop->on_link = fib.family == (family == 4 ? AF_INET : AF_INET6) &&
		       same_address(family, family == 4 ? &fib.ipv4_dst : fib.ipv6_dst, address);
	copy_mac(hop->destination, fib.dmac);
	copy_mac(hop->source, fib.smac);
	return BPF_FIB_LKUP_RET_SUCCESS;
}

#if defined(FEATURE_DNAT) || defined(FEATURE_FULL_NAT) || defined(FEATURE_DSR) || defined(FEATURE_IPIP) || \
	defined(FEATURE_GUE) || !defined(FEATURE_UNSERVED_PASS)
#define KERNEL_IS_ASKED
#endif

SUBPROGRAM int ask_kernel4(hook_context *ctx, struct next_hop *hop, const __be32 *address, __u32 generation);
SUBPROGRAM int ask_kernel6(hook_context *ctx, struct next_hop *hop, const __be32 *address, __u32 generation);

/* The same by a call: a lookup in the kernel's tables costs ten times as much. */
static __always_inline int ask_kernel(hook_context *ctx, const int family, struct next_hop *hop, const __be32 *address,
				      __u32 generation)
{
	if (family == 6)
		return ask_kernel6(ctx, hop, address, generation);
	return ask_kernel4(ctx, hop, address, generation);
}

/* Whether the kernel would forward a packet to this address: it has a route, and the address is not local. */
static __always_inline int kernel_forwards(hook_context *ctx, const int family, const __be32 *address)
{
	struct next_hop unused;
	int result = ask_kernel(ctx, family, &unused, address, 0);

	return result == BPF_FIB_LKUP_RET_SUCCESS || result == BPF_FIB_LKUP_RET_NO_NEIGH;
}

/*
 * A FIB lookup costs more than all the rest of the program, so its answer is remembered per CPU. The engine
 * raises the generation when a route or a neighbour's address changes, and all remembered answers lapse.
 * The generation is read before the tables are, so an answer can be too old for its mark, never too new.
 */
static __always_inline int find_next_hop(hook_context *ctx, const int family, struct next_hop *hop, int is_of_address,
					 const __be32 *address)
{
	__u32 generation = *(volatile __u32 *)&CONTROL->next_hop_generation;

	if (is_of_address && hop->generation == generation)
		return BPF_FIB_LKUP_RET_SUCCESS;
	return ask_kernel(ctx, family, hop, address, generation);
}

/* What the least of links takes (RFC 8200, section 5): for an interface that the engine does not know yet. */
#define LEAST_MTU 1280

static __always_inline __u32 mtu_of(__u32 interface)
{
	int number;

#pragma unroll
	for (number = 0; number < MAX_INTERFACES; number++)
		if (CONTROL->interfaces[number].index == interface)
			return CONTROL->interfaces[number].mtu;
	return LEAST_MTU;
}

/* Where a packet goes next; found before anything is changed, used last. */
struct way {
	const void *destination;
	const void *source; /* NULL: what the frame was sent to, which is us */
	__u32 interface; /* 0: the one that the frame came in on */
	__u32 mtu;       /* 0: that of the interface the frame came in on */
	struct backend_counters *counters; /* of the backend, if it leads to one */
};

/* BPF_FIB_LKUP_RET_SUCCESS, or what stands against it. */
static __always_inline int way_to_backend(hook_context *ctx, const int family, const struct backend *backend,
					  struct way *way)
{
	struct next_hop *hop;
	int result;

	way->counters = lookup(MAP_BACKEND_COUNTERS, backend->backend_counters);
	if (!way->counters)
		return BPF_FIB_LKUP_RET_UNREACHABLE;
	if (backend->has_mac) {
		way->destination = backend->mac;
		way->source = NULL;
		/* The router that sent the packet here, or the host itself, is on this interface, and so are we. */
		way->interface = 0;
		way->mtu = 0;
		return BPF_FIB_LKUP_RET_SUCCESS;
	}
	hop = &way->counters->next_hop;
	result = find_next_hop(ctx, family, hop, 1, backend->address);
	way->destination = hop->destination;
	way->source = hop->source;
	way->interface = hop->interface;
	way->mtu = hop->mtu;
	return result;
}

static __always_inline int way_to_client(hook_context *ctx, const int family, const __be32 *client, struct way *way)
{
	__u32 mixed = fold_address(family, client);
	struct client_next_hop *cached;
	struct next_hop *hop;
	int result, is_of_client;

	/* Neighbours in the last octets spread over the cache; folding mixes in the rest. Each family has a half. */
	mixed = (mixed ^ mixed >> 16) & (CLIENT_NEXT_HOPS / 2 - 1);
	cached = lookup(MAP_CLIENT_NEXT_HOPS, family == 4 ? mixed : mixed + CLIENT_NEXT_HOPS / 2);
	if (!cached)
		return BPF_FIB_LKUP_RET_NOT_FWDED;
	hop = &cached->next_hop;
	is_of_client = same_address(family, cached->address, client);
	result = find_next_hop(ctx, family, hop, is_of_client, client);
	if (result == BPF_FIB_LKUP_RET_SUCCESS && !is_of_client)
		copy_address(family, cached->address, client);
	way->destination = hop->destination;
	way->source = hop->source;
	way->interface = hop->interface;
	way->mtu = hop->mtu;
	return result;
}

/* Address the frame; the verdict that sends it. Tagged frames stay in their VLAN. */
static __always_inline int set_out(hook_context *ctx, const struct packet *packet, const struct way *way)
{
	struct ethernet *eth = packet->eth;

	if (way->source)
		copy_mac(eth->source, way->source);
	else
		copy_mac(eth->source, eth->destination);
	copy_mac(eth->destination, way->destination);
	if (!way->interface || packet->link_length != sizeof(*eth) || has_hidden_tag(ctx))
		return send_back(ctx);
	return send_out(ctx, way->interface);
}

#endif
