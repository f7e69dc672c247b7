/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* From frame to packet: every bound is checked here, once. */
#ifndef LBOPS_PARSE_H
#define LBOPS_PARSE_H

#include "reasons.h"

#define IP_MORE_FRAGMENTS_OR_OFFSET 0x3fff
#define IP_VERSION_4_NO_OPTIONS 0x45

/* struct ethhdr is packed, so its addresses would be copied byte by byte. */
struct ethernet {
	__be16 destination[3];
	__be16 source[3];
	__be16 type;
};

struct packet {
	struct ethernet *eth;
	struct iphdr *ip;
	union {
		struct tcphdr *tcp;
		struct udphdr *udp; /* its ports are TCP's, too */
		struct icmphdr *icmp;
	};
	void *end;
	__u8 protocol;
};

/* PARSED: IPv4 without options, not a fragment, TCP, UDP or ICMP with its whole header in the frame. */
#define PARSED -1

static __always_inline int parse(struct xdp_md *ctx, struct packet *packet)
{
	void *data = (void *)(long)ctx->data;
	void *data_end = (void *)(long)ctx->data_end;
	struct ethernet *eth = data;
	struct iphdr *ip = (void *)(eth + 1);
	void *l4 = ip + 1;
	/* 64 bits wide, because narrowing costs BPF two shifts. */
	__u64 length, least = sizeof(*ip) + sizeof(struct udphdr);

	/* UDP and echo headers are 8 bytes; an ARP frame is just as long as what this asks for. */
	if (l4 + sizeof(struct udphdr) > data_end)
		return PASS_MALFORMED;
	if (eth->type != htons(ETH_P_IP))
		return PASS_NOT_IPV4;
	if (*(__u8 *)ip != IP_VERSION_4_NO_OPTIONS)
		return ip->version == 4 && ip->ihl > 5 ? PASS_IP_OPTIONS : PASS_MALFORMED;
	if (ip->protocol == IPPROTO_TCP)
		least = sizeof(*ip) + sizeof(struct tcphdr);
	else if (ip->protocol != IPPROTO_UDP && ip->protocol != IPPROTO_ICMP)
		return PASS_NOT_OURS;
	if (ip->frag_off & htons(IP_MORE_FRAGMENTS_OR_OFFSET))
		return PASS_FRAGMENT;
	/* Short frames are padded, so the frame may be longer than the packet, never shorter. */
	length = ntohs(ip->tot_len);
	if (length < least || length > (__u64)(data_end - (void *)ip))
		return PASS_MALFORMED;

	packet->eth = eth;
	packet->ip = ip;
	packet->udp = l4;
	packet->end = data_end;
	packet->protocol = ip->protocol;
	return PARSED;
}

static __always_inline __u64 frame_bytes(const struct packet *packet)
{
	return packet->end - (void *)packet->eth;
}

#endif
