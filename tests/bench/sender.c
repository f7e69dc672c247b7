// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The traffic of forwarding.py. Maps by number: 0 an array of one struct traffic, 1 a per-CPU array of one __u64.
 */
#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/udp.h>

#define MAP(number) ((void *)bpf_pseudo_fd(1, number))

/* forwarding.py packs it. */
struct traffic {
	__u64 sent;
	__u32 flows;
	__u32 interface;
	__u32 source; /* in the host's byte order; flows count up from it, 65536 ports each */
	__u32 sum;    /* of the IP header's words without the source */
	__u64 interval; /* nanoseconds from one packet to the next; 0 sends all */
	__u64 due;      /* when the next burst is, CLOCK_MONOTONIC */
	__u32 left;     /* of this burst */
	__u32 unused;
	__u8 headers[48];
};

/* Packets at a time, as a NIC hands them over that moderates its interrupts. The ring of a veth holds 256. */
#define BURST 32
/* Packets that a sender may be behind. It does not make up for more, or they would overflow the ring. */
#define MOST_BEHIND 64

/* Whether it is time for the next packet. */
static __always_inline int is_due(struct traffic *traffic)
{
	__u64 now, behind = traffic->interval * MOST_BEHIND;

	if (!traffic->interval)
		return 1;
	if (traffic->left) {
		traffic->left -= 1;
		return 1;
	}
	now = bpf_ktime_get_ns();
	if (now < traffic->due)
		return 0;
	if (traffic->due + behind < now)
		traffic->due = now - behind;
	traffic->due += traffic->interval * BURST;
	traffic->left = BURST - 1;
	return 1;
}

/* Run on live frames: a packet of the next flow, into the wire. Frames come back as the last receiver left them. */
int sender(struct xdp_md *ctx)
{
	__u32 zero = 0, flow, source, sum;
	struct traffic *traffic = bpf_map_lookup_elem(MAP(0), &zero);
	struct iphdr *ip;
	struct udphdr *udp;

	if (!traffic)
		return XDP_ABORTED;
	if (!is_due(traffic))
		return XDP_DROP;
	ip = (void *)(long)ctx->data + sizeof(struct ethhdr);
	udp = (void *)(ip + 1);
	if ((void *)(udp + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	__builtin_memcpy((void *)(long)ctx->data, traffic->headers, 42);
	flow = traffic->sent % traffic->flows;
	traffic->sent += 1;
	source = htonl(traffic->source + (flow >> 16));
	sum = traffic->sum + (source & 0xffff) + (source >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	ip->saddr = source;
	ip->check = ~((sum & 0xffff) + (sum >> 16));
	udp->source = htons(flow);
	return bpf_redirect(traffic->interface, 0);
}

/* Where what was forwarded arrives. */
int sink(struct xdp_md *ctx)
{
	__u32 zero = 0;
	__u64 *arrived = bpf_map_lookup_elem(MAP(1), &zero);

	if (arrived)
		*arrived += 1;
	return XDP_DROP;
}

/* The least that a program can do to send a frame on. */
int turn(struct xdp_md *ctx)
{
	struct ethhdr *eth = (void *)(long)ctx->data;
	__u8 address[ETH_ALEN];

	if ((void *)(eth + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	__builtin_memcpy(address, eth->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, address, ETH_ALEN);
	return XDP_TX;
}

/* A veth takes native frames only while its peer has a program. */
int let_in(struct xdp_md *ctx)
{
	return XDP_PASS;
}
