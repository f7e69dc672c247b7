/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A VIP answers echo requests (RFC 792, RFC 4443), so that operators and monitoring can ping it. */
#ifndef LBOPS_ECHO_H
#define LBOPS_ECHO_H

#include "address.h"
#include "count.h"
#include "csum.h"
#include "next_hop.h"
#include "packet.h"
#include "too_big.h"

#define ECHO_REQUEST 8
#define ECHO_REPLY 0
#define ECHO6_REQUEST 128
#define ECHO6_REPLY 129

static __always_inline int is_echo_request(const int family, const struct packet *packet)
{
	return packet->icmp->type == (family == 4 ? ECHO_REQUEST : ECHO6_REQUEST) && packet->icmp->code == 0;
}

static __always_inline int answer_echo(hook_context *ctx, const int family, struct packet *packet)
{
	const __u8 request = family == 4 ? ECHO_REQUEST : ECHO6_REQUEST;
	const __u8 reply = family == 4 ? ECHO_REPLY : ECHO6_REPLY;
	__be16 mac[3];
	__be32 client[4];

	copy_mac(mac, packet->eth->source);
	copy_mac(packet->eth->source, packet->eth->destination);
	copy_mac(packet->eth->destination, mac);
	copy_address(family, client, source_of(family, packet));
	copy_address(family, source_of(family, packet), destination_of(family, packet));
	copy_address(family, destination_of(family, packet), client);
	if (family == 4) {
		/* Swapped addresses leave the checksum as it is; the TTL is the high byte of its word. */
		packet->ip->check = csum_add(packet->ip->check, (__u16)~htons(packet->ip->ttl << 8));
		packet->ip->check = csum_add(packet->ip->check, htons(DEFAULT_TTL << 8));
		packet->ip->ttl = DEFAULT_TTL;
	} else {
		packet->ip6->hop_limit = DEFAULT_TTL;
	}
	packet->icmp->type = reply;
	packet->icmp->checksum =
		csum_add(csum_add(packet->icmp->checksum, (__u16)~htons(request << 8)), htons(reply << 8));
	return with_reason(TX_ECHO, send_back(ctx));
}

#endif
