/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* From frame to packet: every bound is checked here, once. */
#ifndef LBOPS_PARSE_H
#define LBOPS_PARSE_H

#include "hook.h"
#include "packet.h"
#include "reasons.h"
#include "verifier.h"

#define IP_MORE_FRAGMENTS 0x2000
#define IP_FRAGMENT_OFFSET 0x1fff
#define IP_VERSION_4_NO_OPTIONS 0x45
#define IP6_MORE_FRAGMENTS 0x0001
#define IP6_FRAGMENT_OFFSET 0xfff8
#define MAX_EXTENSION_HEADERS 6
/* All bits of the longest six of them together. */
#define MAX_EXTENSION_OFFSET 0x3fff

#define HOP_BY_HOP_OPTIONS 0
#define ROUTING_HEADER 43
#define FRAGMENT_HEADER 44
#define DESTINATION_OPTIONS 60

struct extension_header {
	__u8 next;
	__u8 length; /* 8 bytes each, without the first 8 */
	__u8 type;
	__u8 segments_left;
	__be32 unused;
};

struct fragment_header {
	__u8 next;
	__u8 reserved;
	__be16 offset;
	__be32 identification;
};

/* What parsing found out; offsets are in bytes. */
struct parsed {
	__u32 link_length;    /* of the Ethernet header with its tags */
	__u32 network_length; /* of the IP header with options or extension headers */
	__u32 identification; /* of a fragment */
	__u32 protocol;
	__u32 fragment;
};

#define PARSED -1
/* Instead of a reason: not even the addresses can be read. */
#define UNREADABLE -2
/* A filter drops the packet, and has counted it. */
#define FILTERED -3

static __always_inline int is_plain4(const struct iphdr *ip, const void *end)
{
	__u64 length = ntohs(ip->tot_len), least = sizeof(*ip) + sizeof(struct udphdr);

	if (*(__u8 *)ip != IP_VERSION_4_NO_OPTIONS)
		return 0;
	if (ip->protocol == IPPROTO_TCP)
		least = sizeof(*ip) + sizeof(struct tcphdr);
	else if (ip->protocol != IPPROTO_UDP)
		return 0;
	return !(ip->frag_off & htons(IP_MORE_FRAGMENTS | IP_FRAGMENT_OFFSET)) && length >= least &&
	       length <= (__u64)(end - (void *)ip);
}

static __always_inline int is_plain6(const struct ipv6hdr *ip6, const void *end)
{
	__u64 length = ntohs(ip6->payload_len), least = sizeof(struct udphdr);

	if (ip6->version != 6)
		return 0;
	if (ip6->nexthdr == IPPROTO_TCP)
		least = sizeof(struct tcphdr);
	else if (ip6->nexthdr != IPPROTO_UDP)
		return 0;
	return length >= least && length <= (__u64)(end - (void *)(ip6 + 1));
}

/* Whether it is TCP or UDP without anything unusual; then that is all there is to parse. */
static __always_inline int parse_plain(hook_context *ctx, const int family, struct packet *packet)
{
	packet->eth = frame_start(ctx);
	packet->network = packet->eth + 1;
	packet->l4 = packet->network + (family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr));
	packet->end = frame_end(ctx);
	packet->link_length = sizeof(*packet->eth);
	packet->fragment = NOT_FRAGMENTED;
	if (packet->l4 + sizeof(struct udphdr) > packet->end ||
	    packet->eth->type != (family == 4 ? htons(ETH_P_IP) : htons(ETH_P_IPV6)))
		return 0;
	packet->protocol = family == 4 ? packet->ip->protocol : packet->ip6->nexthdr;
	return family == 4 ? is_plain4(packet->ip, packet->end) : is_plain6(packet->ip6, packet->end);
}

/* Of what the frame holds from the network header on, parts that are not in one piece with the first included. */
static __always_inline int longer_than_frame(hook_context *ctx, __u32 link_length, __u64 in_one_piece, __u64 length)
{
	if (length <= in_one_piece)
		return 0;
#if defined(HOOK_TC) || defined(FEATURE_MULTI_BUFFER)
	return length + link_length > frame_length(ctx);
#else
	return 1;
#endif
}

static __always_inline int is_tag(__be16 type)
{
	return type == htons(ETH_P_8021Q) || type == htons(ETH_P_8021AD);
}

/* The protocol of the network header, which begins behind up to two tags; 0 if the frame ends before. */
static __always_inline __be16 parse_link(hook_context *ctx, struct parsed *parsed)
{
	struct ethernet *eth = frame_start(ctx);
	struct vlan_tag *tags = (void *)(eth + 1);

	if ((void *)tags + sizeof(struct iphdr) > frame_end(ctx))
		return 0;
	parsed->link_length = sizeof(*eth);
	if (!is_tag(eth->type))
		return eth->type;
	parsed->link_length = sizeof(*eth) + sizeof(*tags);
	if (!is_tag(tags[0].type))
		return tags[0].type;
	parsed->link_length = sizeof(*eth) + 2 * sizeof(*tags);
	return tags[1].type;
}

/* Bytes of the header that a protocol must have, 0 for one that is none of ours. */
static __always_inline __u64 l4_header_bytes(const int family, __u8 protocol)
{
	if (protocol == IPPROTO_TCP)
		return sizeof(struct tcphdr);
	if (protocol == IPPROTO_UDP || protocol == (family == 4 ? IPPROTO_ICMP : IPPROTO_ICMPV6))
		return sizeof(struct udphdr);
	return 0;
}

static __always_inline int parse_ip4(hook_context *ctx, struct iphdr *ip, void *end, struct parsed *parsed)
{
	/* 64 bits wide, because narrowing costs BPF two shifts. */
	__u64 length, least;

	if ((void *)(ip + 1) > end || ip->version != 4)
		return UNREADABLE;
	parsed->protocol = ip->protocol;
	parsed->network_length = sizeof(*ip);
	if (*(__u8 *)ip != IP_VERSION_4_NO_OPTIONS) {
		if (ip->ihl < 5)
			return PASS_MALFORMED;
		parsed->network_length = ip->ihl * 4;
	}
	/* Short frames are padded, so the frame may be longer than the packet, never shorter. */
	length = ntohs(ip->tot_len);
	if (length < parsed->network_length || longer_than_frame(ctx, parsed->link_length, end - (void *)ip, length))
		return PASS_MALFORMED;
	least = l4_header_bytes(4, ip->protocol);
	if (ip->frag_off & htons(IP_MORE_FRAGMENTS | IP_FRAGMENT_OFFSET)) {
		parsed->identification = ip->id;
		parsed->fragment = LATER_FRAGMENT;
		if (ip->frag_off & htons(IP_FRAGMENT_OFFSET))
			return PARSED;
		parsed->fragment = FIRST_FRAGMENT;
	}
	if (!least)
		return PASS_NOT_OURS;
	return length < parsed->network_length + least ? PASS_MALFORMED : PARSED;
}

/* Walk over extension headers (RFC 8200, section 4); PARSED with the protocol behind them, or a reason. */
static __always_inline int skip_extension_headers(struct ipv6hdr *ip6, void *end, struct parsed *parsed)
{
	__u32 offset = sizeof(*ip6), next = ip6->nexthdr;
	int number;

	/* Unrolled: the compiler may lay out a loop in a way that the verifier of Linux 6.1 rejects. */
#pragma unroll
	for (number = 0; number <= MAX_EXTENSION_HEADERS; number++) {
		struct extension_header *header = (void *)ip6 + (offset & MAX_EXTENSION_OFFSET);

		parsed->protocol = next;
		parsed->network_length = offset;
		if (next != HOP_BY_HOP_OPTIONS && next != DESTINATION_OPTIONS && next != ROUTING_HEADER &&
		    next != FRAGMENT_HEADER)
			return PARSED;
		if (number == MAX_EXTENSION_HEADERS)
			break;
		if ((void *)(header + 1) > end)
			return PASS_MALFORMED;
		if (next == ROUTING_HEADER && header->segments_left)
			break;
		if (next == FRAGMENT_HEADER) {
			struct fragment_header *fragment = (void *)header;

			offset += sizeof(*fragment);
			parsed->identification = fragment->identification;
			if (fragment->offset & htons(IP6_FRAGMENT_OFFSET)) {
				parsed->protocol = fragment->next;
				parsed->fragment = LATER_FRAGMENT;
				return PARSED;
			}
			if (fragment->offset & htons(IP6_MORE_FRAGMENTS))
				parsed->fragment = FIRST_FRAGMENT;
		} else {
			offset += 8 + header->length * 8;
		}
		next = header->next;
		FORGET(offset, next);
	}
	return PASS_EXTENSION_HEADERS;
}

static __always_inline int parse_ip6(hook_context *ctx, struct ipv6hdr *ip6, void *end, struct parsed *parsed)
{
	__u64 length, least;
	int reason;

	if ((void *)(ip6 + 1) > end || ip6->version != 6)
		return UNREADABLE;
	length = ntohs(ip6->payload_len) + sizeof(*ip6);
	parsed->protocol = ip6->nexthdr;
	parsed->network_length = sizeof(*ip6);
	if (longer_than_frame(ctx, parsed->link_length, end - (void *)ip6, length))
		return PASS_MALFORMED;
	least = l4_header_bytes(6, parsed->protocol);
	if (!least) {
		reason = skip_extension_headers(ip6, end, parsed);
		if (reason != PARSED)
			return reason;
		/* Only the first fragment has the upper-layer protocol: more headers may follow the fragment header. */
		if (parsed->fragment == LATER_FRAGMENT)
			return PARSED;
		least = l4_header_bytes(6, parsed->protocol);
		if (!least)
			return PASS_NOT_OURS;
	}
	return length < parsed->network_length + least ? PASS_MALFORMED : PARSED;
}

/* Pointers into the packet that was parsed; PARSED, or UNREADABLE if its headers are not in one piece. */
static __always_inline int point(hook_context *ctx, const int family, struct parsed *parsed, struct packet *packet)
{
	void *data = frame_start(ctx);
	__u64 unknown = frame_end(ctx) - frame_start(ctx), link = parsed->link_length, network = parsed->network_length;
	__u64 protocol = parsed->protocol, fragment = parsed->fragment, identification = parsed->identification;

	FORGET(link, unknown);
	FORGET(network, unknown);
	FORGET(protocol, unknown);
	FORGET(fragment, unknown);
	FORGET(identification, unknown);
	packet->eth = data;
	packet->end = frame_end(ctx);
	packet->link_length = link;
	packet->identification = identification;
	packet->protocol = protocol;
	packet->fragment = fragment & 3;
	packet->network = data + (link & 31);
	packet->l4 = packet->network + (network & MAX_EXTENSION_OFFSET);
	if ((void *)(packet->eth + 1) + 2 * sizeof(struct vlan_tag) > packet->end ||
	    packet->network + (family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr)) > packet->end)
		return UNREADABLE;
	return PARSED;
}

/* Known since parsing, but the verifier has forgotten; TCP's other 12 bytes are looked at where they are used. */
static __always_inline int has_l4(const struct packet *packet)
{
	return packet->l4 + sizeof(struct udphdr) <= packet->end;
}

/* PARSED: TCP, UDP or ICMP with its header, or a later fragment of any protocol. Else UNREADABLE, or why it passes. */
static __always_inline int parse_ip(hook_context *ctx, const int family, struct parsed *parsed, struct packet *packet)
{
	void *network = frame_start(ctx) + parsed->link_length, *end = frame_end(ctx);
	int reason = family == 4 ? parse_ip4(ctx, network, end, parsed) : parse_ip6(ctx, network, end, parsed);

	if (reason == UNREADABLE || point(ctx, family, parsed, packet) != PARSED)
		return UNREADABLE;
	return reason;
}

#endif
