/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* From frame to packet: every bound is checked here, once. */
#ifndef LBOPS_PARSE_H
#define LBOPS_PARSE_H

#include "reasons.h"

#define IP_MORE_FRAGMENTS_OR_OFFSET 0x3fff
#define IP_VERSION_4_NO_OPTIONS 0x45

struct packet {
	struct ethhdr *eth;
	struct iphdr *ip;
	union {
		struct udphdr *udp; /* its ports are TCP's, too */
		struct icmphdr *icmp;
	};
	__sum16 *check; /* of TCP or UDP */
	__u64 bytes;
	__u8 protocol;
};

/* PARSED: IPv4 without options, not a fragment, TCP, UDP or ICMP with its whole header in the frame. */
#define PARSED -1

static __always_inline int parse(struct xdp_md *ctx, struct packet *packet)
{
	void *data = (void *)(long)ctx->data;
	void *data_end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = (void *)(eth + 1);
	void *l4 = ip + 1;
	__u32 length, header = sizeof(struct udphdr);

	/* UDP and echo headers are 8 bytes; an ARP frame is just as long as what this asks for. */
	if (l4 + sizeof(struct udphdr) > data_end)
		return PASS_MALFORMED;
	if (eth->h_proto != htons(ETH_P_IP))
		return PASS_NOT_IPV4;
	if (*(__u8 *)ip != IP_VERSION_4_NO_OPTIONS)
		return ip->version == 4 && ip->ihl > 5 ? PASS_IP_OPTIONS : PASS_MALFORMED;

	packet->protocol = ip->protocol;
	packet->check = &((struct udphdr *)l4)->check;
	if (packet->protocol == IPPROTO_TCP) {
		header = sizeof(struct tcphdr);
		if (l4 + sizeof(struct tcphdr) > data_end)
			return ip->frag_off & htons(IP_MORE_FRAGMENTS_OR_OFFSET) ? PASS_FRAGMENT : PASS_MALFORMED;
		packet->check = &((struct tcphdr *)l4)->check;
	} else if (packet->protocol != IPPROTO_UDP && packet->protocol != IPPROTO_ICMP) {
		return PASS_NOT_OURS;
	}
	if (ip->frag_off & htons(IP_MORE_FRAGMENTS_OR_OFFSET))
		return PASS_FRAGMENT;
	/* Short frames are padded, so the frame may be longer than the packet, never shorter. */
	length = ntohs(ip->tot_len);
	if (length < sizeof(*ip) + header || length > (__u32)(data_end - (void *)ip))
		return PASS_MALFORMED;

	packet->eth = eth;
	packet->ip = ip;
	packet->udp = l4;
	packet->bytes = data_end - data;
	return PARSED;
}

#endif
