// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * BPF_PROG_TEST_RUN restores nothing between its repeats, so a program under test would see its own output from
 * the second one on. This restores length and headers, then calls it.
 *
 * Maps by number: 0 the program under test in a program array, 1 an array of one struct scene.
 */
#include <uapi/linux/bpf.h>

#define MAP(number) ((void *)bpf_pseudo_fd(1, number))
#define HEADERS 54 /* Ethernet, IPv4, TCP */

/* dataplane.py packs it. */
struct scene {
	__u8 headers[56];
	__u32 length;
	__u32 flow_mask; /* number of flows - 1, a power of two less one */
	__u32 flow;
	__u32 unused;
};

static __always_inline __u64 read64(const void *at)
{
	return *(const __u64 *)at;
}

static __always_inline void write64(void *at, __u64 value)
{
	*(__u64 *)at = value;
}

static __always_inline void copy64(void *to, const void *from)
{
	write64(to, read64(from));
}

static __always_inline void copy32(void *to, const void *from)
{
	*(__u32 *)to = *(const __u32 *)from;
}

int wrapper(struct xdp_md *ctx)
{
	__u32 zero = 0;
	struct scene *scene = bpf_map_lookup_elem(MAP(1), &zero);
	__u8 *packet, *headers;
	__u64 flow;
	int surplus;

	if (!scene)
		return XDP_ABORTED;
	surplus = (long)ctx->data_end - (long)ctx->data - scene->length;
	if (surplus && bpf_xdp_adjust_head(ctx, surplus))
		return XDP_ABORTED;
	packet = (void *)(long)ctx->data;
	if (packet + HEADERS > (__u8 *)(long)ctx->data_end)
		return XDP_ABORTED;
	flow = scene->flow & scene->flow_mask;
	scene->flow += 1;
	/*
	 * A load that spans two recent stores waits for both to reach the cache, which no packet from a NIC does.
	 * So each store here holds whole fields, and neighbours that may be read at once: both addresses, both ports.
	 */
	headers = scene->headers;
	copy64(packet, headers);
	copy32(packet + 8, headers + 8);
	*(__u16 *)(packet + 12) = *(__u16 *)(headers + 12);
	copy64(packet + 14, headers + 14);
	copy32(packet + 22, headers + 22);
	/* The flow's high bits go to the last octet of the source address, its low 16 bits to the source port. */
	write64(packet + 26, read64(headers + 26) ^ flow >> 16 << 24);
	write64(packet + 34, read64(headers + 34) ^ (flow & 0xffff));
	copy64(packet + 42, headers + 42);
	copy32(packet + 50, headers + 50);
	bpf_tail_call_((u64)MAP(0), ctx, 0);
	return XDP_ABORTED;
}
