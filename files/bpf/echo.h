/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A VIP answers echo requests (RFC 792), so that operators and monitoring can ping it. */
#ifndef LBOPS_ECHO_H
#define LBOPS_ECHO_H

#include "count.h"
#include "csum.h"
#include "parse.h"

#define ECHO_REPLY 0
#define ECHO_REQUEST 8
/* What a host sends with (RFC 1700); the request's own may be too small for the way back. */
#define DEFAULT_TTL 64

static __always_inline int answer_echo(struct packet *packet)
{
	__be16 mac[3];
	__be32 address = packet->ip->saddr;

	__builtin_memcpy(mac, packet->eth->source, ETH_ALEN);
	__builtin_memcpy(packet->eth->source, packet->eth->destination, ETH_ALEN);
	__builtin_memcpy(packet->eth->destination, mac, ETH_ALEN);
	/* Swapped addresses leave the header checksum as it is; the TTL is the high byte of its word. */
	packet->ip->check = csum_add(packet->ip->check, (__u16)~htons(packet->ip->ttl << 8));
	packet->ip->check = csum_add(packet->ip->check, htons(DEFAULT_TTL << 8));
	packet->ip->ttl = DEFAULT_TTL;
	packet->ip->saddr = packet->ip->daddr;
	packet->ip->daddr = address;
	packet->icmp->type = ECHO_REPLY;
	packet->icmp->checksum = csum_add(packet->icmp->checksum, (__u16)~htons(ECHO_REQUEST << 8));
	return count_reason(TX_ECHO, XDP_TX);
}

#endif
