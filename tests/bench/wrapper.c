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
#define HEADERS6 78 /* Ethernet, IPv6, TCP, and some more for whole words */

/* dataplane.py packs it. */
struct scene {
	__u8 headers[80];
	__u32 length;
	__u32 flow_mask; /* number of flows - 1, a power of two less one */
	__u32 flow;
	__u32 is_ipv6;
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

/*
 * A load that spans two recent stores waits for both to reach the cache, which no packet from a NIC does.
 * So each store here holds whole fields, and neighbours that may be read at once: addresses, ports.
 */
static __always_inline void restore4(__u8 *packet, const __u8 *headers, __u64 flow)
{
	copy64(packet + 14, headers + 14);
	copy32(packet + 22, headers + 22);
	/* The flow's high bits go to the last octet of the source address, its low 16 bits to the source port. */
	write64(packet + 26, read64(headers + 26) ^ flow >> 16 << 24);
	write64(packet + 34, read64(headers + 34) ^ (flow & 0xffff));
	copy64(packet + 42, headers + 42);
	copy32(packet + 50, headers + 50);
}

static __always_inline void restore6(__u8 *packet, const __u8 *headers)
{
	copy64(packet + 14, headers + 14);
	copy64(packet + 22, headers + 22);
	copy64(packet + 30, headers + 30);
	copy64(packet + 38, headers + 38);
	copy64(packet + 46, headers + 46);
	copy64(packet + 54, headers + 54);
	copy64(packet + 62, headers + 62);
	copy64(packet + 70, headers + 70);
}

int wrapper(struct xdp_md *ctx)
{
	__u32 zero = 0;
	struct scene *scene = bpf_map_lookup_elem(MAP(1), &zero);
	__u8 *packet, *headers, *end;
	__u64 flow;
	int surplus;

	if (!scene)
		return XDP_ABORTED;
	surplus = (long)ctx->data_end - (long)ctx->data - scene->length;
	if (surplus && bpf_xdp_adjust_head(ctx, surplus))
		return XDP_ABORTED;
	packet = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	headers = scene->headers;
	if (packet + HEADERS > end)
		return XDP_ABORTED;
	copy64(packet, headers);
	copy32(packet + 8, headers + 8);
	*(__u16 *)(packet + 12) = *(__u16 *)(headers + 12);
	if (!scene->is_ipv6) {
		flow = scene->flow & scene->flow_mask;
		scene->flow += 1;
		restore4(packet, headers, flow);
	} else {
		if (packet + HEADERS6 > end)
			return XDP_ABORTED;
		restore6(packet, headers);
	}
	bpf_tail_call_((u64)MAP(0), ctx, 0);
	return XDP_ABORTED;
}
