/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The Ethernet address a packet goes to, from the inventory or from the kernel's FIB and neighbour tables. */
#ifndef LBOPS_NEXT_HOP_H
#define LBOPS_NEXT_HOP_H

#include "layout.h"
#include "maps.h"

#define AF_INET 2

/* BPF_FIB_LKUP_RET_SUCCESS with the answer remembered, or the kernel's reason against it. */
static __always_inline int ask_kernel(struct xdp_md *ctx, struct next_hop *cached, __be32 address, __u32 generation)
{
	struct bpf_fib_lookup fib;
	int result;

	/* An initializer need not reach what lies behind the shorter members of its unions. */
	__builtin_memset(&fib, 0, sizeof(fib));
	fib.family = AF_INET;
	fib.ipv4_dst = address;
	fib.ifindex = ctx->ingress_ifindex;
	result = bpf_fib_lookup(ctx, &fib, sizeof(fib), 0);
	if (result != BPF_FIB_LKUP_RET_SUCCESS)
		return result;
	cached->address = address;
	cached->generation = generation;
	cached->interface = fib.ifindex;
	__builtin_memcpy(cached->destination, fib.dmac, ETH_ALEN);
	__builtin_memcpy(cached->source, fib.smac, ETH_ALEN);
	return BPF_FIB_LKUP_RET_SUCCESS;
}

/*
 * A FIB lookup costs more than all the rest of the program, so its answer is remembered per CPU. The engine
 * raises the generation when a route or a neighbour's address changes, and all remembered answers lapse.
 * The generation is read before the tables are, so an answer can be too old for its mark, never too new.
 */
static __always_inline int next_hop(struct xdp_md *ctx, struct next_hop *cached, __be32 address)
{
	struct control *control = lookup(MAP_CONTROL, 0);
	__u32 generation;

	if (!control)
		return BPF_FIB_LKUP_RET_UNREACHABLE;
	generation = *(volatile __u32 *)&control->next_hop_generation;
	if (cached->address == address && cached->generation == generation)
		return BPF_FIB_LKUP_RET_SUCCESS;
	return ask_kernel(ctx, cached, address, generation);
}

static __always_inline int send_to(struct xdp_md *ctx, struct ethernet *eth, const struct next_hop *to)
{
	__builtin_memcpy(eth->destination, to->destination, ETH_ALEN);
	__builtin_memcpy(eth->source, to->source, ETH_ALEN);
	return to->interface == ctx->ingress_ifindex ? XDP_TX : bpf_redirect(to->interface, 0);
}

#endif
