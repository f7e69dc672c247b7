/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Which frames are for this host: those for the address of the interface that they arrive on, or for a virtual MAC
 * address. A switch floods frames for others, and packets in broadcast or multicast frames are not to be forwarded
 * (RFC 1122, section 3.3.6; RFC 1812, section 5.3.4).
 */
#ifndef LBOPS_ETHERNET_DESTINATION_H
#define LBOPS_ETHERNET_DESTINATION_H

#include "endpoints.h"
#include "hook.h"
#include "layout.h"
#include "maps.h"
#include "packet.h"

/* The individual/group bit of an address in the upper 48 bits (IEEE 802, section 8.2.2). */
#define GROUP_ADDRESS (1 << 16)

static __always_inline int is_virtual_mac(__u64 destination)
{
	int number;

#pragma unroll
	for (number = 0; number < MAX_VIRTUAL_MACS; number++)
		if (CONTROL->virtual_macs[number] == destination)
			/* 0: an unused place. */
			return destination != 0;
	return 0;
}

#ifdef HOOK_TC
/* The kernel has compared the destination with the interface's address (eth_type_trans()). */
static __always_inline int is_for_interface(const hook_context *ctx, const struct ethernet *eth)
{
	return ctx->pkt_type == PACKET_HOST || is_virtual_mac(load64(eth) << 16);
}
#else
static __always_inline int is_for_interface(const hook_context *ctx, const struct ethernet *eth)
{
	__u64 destination = load64(eth) << 16;
	__u32 interface = arrived_on(ctx);
	int number;

#pragma unroll
	for (number = 0; number < MAX_INTERFACES; number++)
		if (CONTROL->interfaces[number].index == interface)
			return CONTROL->interfaces[number].address == destination || is_virtual_mac(destination);
	/* The engine does not know the interface yet. */
	return !(destination & GROUP_ADDRESS);
}
#endif

#endif
