/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A packet that exceeds the MTU of its path is answered: ICMP fragmentation needed (RFC 792, RFC 1191) or ICMPv6 packet
 * too big (RFC 4443, section 3.2), from the address that it was sent to, so that its sender sends smaller ones.
 */
#ifndef LBOPS_TOO_BIG_H
#define LBOPS_TOO_BIG_H

#include "address.h"
#include "budget.h"
#include "csum.h"
#include "link_header.h"
#include "packet.h"
#include "parse.h"

/* The longest IPv4 header and 8 bytes; as much as one call of bpf_csum_diff() sums up. */
#define QUOTE4 68
#define QUOTE6 504
#define DEFAULT_TTL 64

/* Smallest MTU that is reported; a sender may ignore less (RFC 791, section 3.2; RFC 8201, section 4). */
#define MIN_MTU4 68
#define MIN_MTU6 1280

struct icmp_too_big {
	__u8 type;
	__u8 code;
	__sum16 checksum;
	__be32 mtu; /* ICMP: 16 bits unused, then the MTU */
};

static __always_inline int put_too_big4(hook_context *ctx, const struct link_header *link, __u32 mtu,
					   __be32 client, __be32 vip)
{
	struct iphdr *ip = put_link_header(ctx, link, htons(ETH_P_IP), sizeof(*ip) + sizeof(struct icmp_too_big) + QUOTE4);
	struct icmp_too_big *icmp;

	if (!ip)
		return with_reason(DROP_TOO_BIG, DROP);
	icmp = (void *)(ip + 1);
	*(__be16 *)ip = htons(0x4500);
	ip->tot_len = htons(sizeof(*ip) + sizeof(*icmp) + QUOTE4);
	ip->id = 0;
	ip->frag_off = 0;
	ip->ttl = DEFAULT_TTL;
	ip->protocol = IPPROTO_ICMP;
	ip->check = 0;
	ip->saddr = vip;
	ip->daddr = client;
	ip->check = ~csum_fold_sum((__u32)bpf_csum_diff(0, 0, (void *)ip, sizeof(*ip), 0));
	icmp->type = 3;
	icmp->code = 4;
	icmp->checksum = 0;
	icmp->mtu = htonl(mtu);
	icmp->checksum = ~csum_fold_sum((__u32)bpf_csum_diff(0, 0, (void *)icmp, sizeof(*icmp) + QUOTE4, 0));
	return with_reason(TX_TOO_BIG, send_back(ctx));
}

static __always_inline int put_too_big6(hook_context *ctx, const struct link_header *link, __u32 mtu,
					   const __be32 *client, const __be32 *vip)
{
	struct ipv6hdr *ip6 =
		put_link_header(ctx, link, htons(ETH_P_IPV6), sizeof(*ip6) + sizeof(struct icmp_too_big) + QUOTE6);
	struct icmp_too_big *icmp;
	__u64 sum;

	if (!ip6)
		return with_reason(DROP_TOO_BIG, DROP);
	icmp = (void *)(ip6 + 1);
	*(__be32 *)ip6 = htonl(6 << 28);
	ip6->payload_len = htons(sizeof(*icmp) + QUOTE6);
	ip6->nexthdr = IPPROTO_ICMPV6;
	ip6->hop_limit = DEFAULT_TTL;
	copy_address(6, (__be32 *)&ip6->saddr, vip);
	copy_address(6, (__be32 *)&ip6->daddr, client);
	icmp->type = 2;
	icmp->code = 0;
	icmp->checksum = 0;
	icmp->mtu = htonl(mtu);
	sum = (__u32)bpf_csum_diff(0, 0, (void *)icmp, sizeof(*icmp) + QUOTE6, 0);
	sum += (__u32)bpf_csum_diff(0, 0, (void *)&ip6->saddr, 32, 0);
	sum += (__u32)htonl(sizeof(*icmp) + QUOTE6) + (__u64)htonl(IPPROTO_ICMPV6);
	icmp->checksum = ~csum_fold_sum(sum);
	return with_reason(TX_TOO_BIG, send_back(ctx));
}

/* Instead of a verdict: answer_too_big() is to be called. */
#define ANSWER_TOO_BIG (1 << 30)

/* Asks for an ICMP error with this MTU. The packet must still be unmodified. */
static __always_inline int request_too_big(struct packet *packet, __u32 mtu)
{
	packet->reported_mtu = mtu;
	return ANSWER_TOO_BIG;
}

/* Nothing answers ICMP and later IPv4 fragments (RFC 1812, 4.3.2.7; RFC 4443, 2.4), and what fits the least MTU. */
static __always_inline int answer_too_big(hook_context *ctx, const int family, struct packet *packet)
{
	const __u32 least = family == 4 ? MIN_MTU4 : MIN_MTU6;
	struct parsed parsed = {
		.link_length = packet->link_length,
		.network_length = packet->l4 - packet->network,
		.protocol = packet->protocol,
		.fragment = packet->fragment,
	};
	const __u32 quote = family == 4 ? QUOTE4 : QUOTE6;
	const int header = family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
	struct budget *spent = budget(clock_ticks());
	__be32 client[4], vip[4];
	struct link_header link;
	__u64 mtu = packet->reported_mtu, unknown = clock_ticks();

	FORGET(mtu, unknown);
	if (mtu < least)
		mtu = least;
	if (point(ctx, family, &parsed, packet) != PARSED || is_icmp(family, packet) ||
	    (family == 4 && packet->fragment == LATER_FRAGMENT) || longest_packet(ctx, family, packet) <= mtu ||
	    !spent || !spend(&spent->errors, MAX_ERRORS))
		return with_reason(DROP_TOO_BIG, DROP);
	copy_address(family, client, source_of(family, packet));
	copy_address(family, vip, destination_of(family, packet));
	keep_link_header(packet, &link);
	copy_mac(link.destination, packet->eth->source);
	copy_mac(link.source, packet->eth->destination);
	if (cut_tail(ctx, link.length + quote) || grow_head(ctx, header + sizeof(struct icmp_too_big)))
		return with_reason(DROP_TOO_BIG, DROP);
	if (family == 4)
		return put_too_big4(ctx, &link, mtu, client[0], vip[0]);
	return put_too_big6(ctx, &link, mtu, client, vip);
}

#endif
