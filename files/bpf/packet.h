/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A packet whose bounds are known, and what its headers say in both families. */
#ifndef LBOPS_PACKET_H
#define LBOPS_PACKET_H

#include "hook.h"

#define IP_DONT_FRAGMENT 0x4000

/* struct ethhdr is packed, so its addresses would be copied byte by byte. */
struct ethernet {
	__be16 destination[3];
	__be16 source[3];
	__be16 type;
};

struct vlan_tag {
	__be16 control;
	__be16 type;
};

enum fragment {
	NOT_FRAGMENTED,
	FIRST_FRAGMENT,
	LATER_FRAGMENT,
};

struct packet {
	struct ethernet *eth;
	union {
		void *network;
		struct iphdr *ip;
		struct ipv6hdr *ip6;
	};
	union {
		void *l4;
		struct tcphdr *tcp;
		struct udphdr *udp; /* its ports are TCP's, too */
		struct icmphdr *icmp; /* as is the head of ICMPv6 */
	};
	void *end;
	__u32 link_length;
	__u32 identification;
	__u8 protocol;
	__u8 fragment;
	__u32 reported_mtu; /* MTU to report to the sender, if that is asked for */
};

static __always_inline __be32 *source_of(const int family, const struct packet *packet)
{
	return family == 4 ? &packet->ip->saddr : (__be32 *)&packet->ip6->saddr;
}

static __always_inline __be32 *destination_of(const int family, const struct packet *packet)
{
	return family == 4 ? &packet->ip->daddr : (__be32 *)&packet->ip6->daddr;
}

static __always_inline __u8 *hop_limit(const int family, const struct packet *packet)
{
	return family == 4 ? &packet->ip->ttl : &packet->ip6->hop_limit;
}

static __always_inline __u64 network_length(const int family, const struct packet *packet)
{
	return family == 4 ? ntohs(packet->ip->tot_len) :
			     ntohs(packet->ip6->payload_len) + sizeof(struct ipv6hdr);
}

/* Length of the IP packet; of its longest segment if the kernel has merged several (GRO). */
static __always_inline __u64 longest_packet(hook_context *ctx, const int family, const struct packet *packet)
{
	__u32 payload = segment_payload(ctx), headers = packet->l4 - packet->network;

	if (!payload)
		return network_length(family, packet);
	if (packet->protocol != IPPROTO_TCP)
		return headers + sizeof(struct udphdr) + payload;
	return (void *)(packet->tcp + 1) > packet->end ? network_length(family, packet) :
							 headers + packet->tcp->doff * 4 + payload;
}

/* Whether a TCP segment has data. */
static __always_inline int has_payload(const int family, const struct packet *packet)
{
	return packet->protocol == IPPROTO_TCP && (void *)(packet->tcp + 1) <= packet->end &&
	       network_length(family, packet) > (__u64)(packet->l4 - packet->network) + packet->tcp->doff * 4;
}

static __always_inline int may_be_fragmented(const int family, const struct packet *packet)
{
	return family == 4 && !(packet->ip->frag_off & htons(IP_DONT_FRAGMENT));
}

static __always_inline int is_icmp(const int family, const struct packet *packet)
{
	return packet->protocol == (family == 4 ? IPPROTO_ICMP : IPPROTO_ICMPV6);
}

static __always_inline __u64 frame_bytes(hook_context *ctx, const struct packet *packet)
{
#if defined(HOOK_TC) || defined(FEATURE_MULTI_BUFFER)
	return frame_length(ctx);
#else
	return packet->end - (void *)packet->eth;
#endif
}

#endif
