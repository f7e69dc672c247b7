// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* What a tunnel device does at a backend: IPv4 or IPv6 in IPv4 or IPv6 loses its outer header. */
#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>

int decapsulate(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data, kept;
	struct iphdr *ip = (void *)(eth + 1);
	struct ipv6hdr *ip6 = (void *)(eth + 1);
	int header;
	__u8 inner;

	if ((void *)(ip6 + 1) > end)
		return XDP_PASS;
	if (eth->h_proto == htons(ETH_P_IP)) {
		header = sizeof(*ip);
		inner = ip->protocol;
	} else if (eth->h_proto == htons(ETH_P_IPV6)) {
		header = sizeof(*ip6);
		inner = ip6->nexthdr;
	} else {
		return XDP_PASS;
	}
	if (inner != 4 && inner != 41)
		return XDP_PASS;
	kept = *eth;
	kept.h_proto = inner == 4 ? htons(ETH_P_IP) : htons(ETH_P_IPV6);
	if (bpf_xdp_adjust_head(ctx, header))
		return XDP_DROP;
	eth = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	if ((void *)(eth + 1) > end)
		return XDP_DROP;
	*eth = kept;
	return XDP_PASS;
}
