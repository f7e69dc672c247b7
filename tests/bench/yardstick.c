// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The unit in which dataplane.py states its aims: about the work of a small load balancer, and nothing that depends on
 * the balancer's code, the kernel's hash tables or helpers that are not inlined. It stays as it is, or figures of
 * different commits cannot be compared.
 *
 * dataplane.py defines OLD_SOURCE, OLD_DESTINATION, NEW_SOURCE, NEW_DESTINATION, OLD_PORT and NEW_PORT in network byte
 * order. Maps by number: 0 to 8 arrays of STEPS struct step, 9 a per-CPU array of one __u64.
 */
#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/udp.h>

#define MAP(number) ((void *)bpf_pseudo_fd(1, number))
#define STEPS 256

/* A cache line. dataplane.py packs it. */
struct step {
	__u32 next; /* index in the next map */
	__u8 unused[60];
};

/* What a field's change from one constant to another adds to a ones' complement sum. */
#define CHANGE16(from, to) ((__u32)(__u16)~(from) + (__u16)(to))
#define CHANGE32(from, to) (CHANGE16(from, to) + CHANGE16((from) >> 16, (to) >> 16))
#define CHANGE_OF_ADDRESSES (CHANGE32(OLD_SOURCE, NEW_SOURCE) + CHANGE32(OLD_DESTINATION, NEW_DESTINATION))

static __always_inline __u16 changed(__u16 checksum, __u32 change)
{
	__u32 sum = (__u16)~checksum + change;

	sum = (sum & 0xffff) + (sum >> 16);
	return ~((sum & 0xffff) + (sum >> 16));
}

#define STEP(number)                                          \
	do {                                                  \
		step = bpf_map_lookup_elem(MAP(number), &at); \
		if (!step)                                    \
			return XDP_ABORTED;                   \
		at = step->next;                              \
	} while (0)

int yardstick(struct xdp_md *ctx)
{
	static const __u8 macs[2 * ETH_ALEN] = { 2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2 };
	struct ethhdr *eth = (void *)(long)ctx->data;
	struct iphdr *ip = (void *)(eth + 1);
	struct udphdr *udp = (void *)(ip + 1);
	struct step *step;
	__u32 at, zero = 0;
	__u64 *packets;

	if ((void *)(udp + 1) > (void *)(long)ctx->data_end)
		return XDP_PASS;
	if (eth->h_proto != htons(ETH_P_IP) || ip->ihl != 5 || ip->protocol != IPPROTO_UDP)
		return XDP_PASS;
	if (ip->frag_off & htons(0x3fff) || udp->dest != OLD_PORT)
		return XDP_PASS;
	at = ip->daddr >> 24;
	STEP(0);
	STEP(1);
	STEP(2);
	STEP(3);
	STEP(4);
	STEP(5);
	STEP(6);
	STEP(7);
	STEP(8);
	if (at)
		return XDP_ABORTED;
	packets = bpf_map_lookup_elem(MAP(9), &zero);
	if (!packets)
		return XDP_ABORTED;
	*packets += 1;
	__builtin_memcpy(eth, macs, sizeof(macs));
	ip->saddr = NEW_SOURCE;
	ip->daddr = NEW_DESTINATION;
	ip->check = changed(ip->check, CHANGE_OF_ADDRESSES);
	udp->dest = NEW_PORT;
	udp->check = changed(udp->check, CHANGE_OF_ADDRESSES + CHANGE16(OLD_PORT, NEW_PORT));
	return XDP_TX;
}
