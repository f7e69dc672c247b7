/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The hook that the program is compiled for: XDP, or with HOOK_TC the ingress of tc, whose packets are socket
 * buffers. Helpers newer than the oldest BCC are declared by their number in include/uapi/linux/bpf.h.
 */
#ifndef LBOPS_HOOK_H
#define LBOPS_HOOK_H

#include "csum.h"

#ifdef HOOK_TC
typedef struct __sk_buff hook_context;
#else
typedef struct xdp_md hook_context;
#endif

/*
 * The frame's first byte and the one behind its last. The compiler may extend what it loads to 64 bits in another place,
 * by shifts that the verifier does not allow on a pointer; hence the load, which extends, is written out.
 */
static __always_inline void *frame_start(const hook_context *ctx)
{
	void *start;

	asm volatile("%0 = *(u32 *)(%1 + %2)" : "=r"(start) : "r"(ctx), "i"(__builtin_offsetof(hook_context, data)));
	return start;
}

static __always_inline void *frame_end(const hook_context *ctx)
{
	void *end;

	asm volatile("%0 = *(u32 *)(%1 + %2)" : "=r"(end) : "r"(ctx), "i"(__builtin_offsetof(hook_context, data_end)));
	return end;
}

#ifdef HOOK_TC

#define PASS -1 /* TC_ACT_UNSPEC: the next filter decides, if there is one */
#define DROP 2 /* TC_ACT_SHOT */

static __always_inline __u32 arrived_on(const hook_context *ctx)
{
	return ctx->ifindex;
}

static __always_inline __u64 frame_length(hook_context *ctx)
{
	return ctx->len;
}

static __always_inline int send_back(hook_context *ctx)
{
	return bpf_redirect(ctx->ifindex, 0);
}

/* The kernel has taken the outer tag off the frame, and puts it on again. */
static __always_inline int has_hidden_tag(const hook_context *ctx)
{
	return ctx->vlan_present;
}

/* As much of a frame as is looked at; drivers may leave all of it in fragments. */
#define LINEAR_BYTES 256

static __always_inline void pull_headers(hook_context *ctx)
{
	__u32 wanted = ctx->len < LINEAR_BYTES ? ctx->len : LINEAR_BYTES;

	if (frame_start(ctx) + wanted > frame_end(ctx))
		bpf_skb_pull_data(ctx, wanted);
}

/* Bytes of TCP payload, or of a datagram with its header, in each packet that the kernel has merged; 0: not merged. */
static __always_inline __u32 segment_payload(const hook_context *ctx)
{
	return ctx->gso_size;
}

/* Room in front of the frame; pointers into it lapse. */
static __always_inline int grow_head(hook_context *ctx, int bytes)
{
	return bpf_skb_change_head(ctx, bytes, 0);
}

/* The same for outer headers: the kernel is to know of them when it cuts a merged packet into pieces. */
static __always_inline int grow_for_tunnel(hook_context *ctx, const int outer_family, int bytes, int has_udp,
					   int is_tagged)
{
	__u64 outer = outer_family == 4 ? BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 : BPF_F_ADJ_ROOM_ENCAP_L3_IPV6;

	if (has_udp)
		outer |= BPF_F_ADJ_ROOM_ENCAP_L4_UDP;
	if (is_tagged)
		return grow_head(ctx, bytes);
	return bpf_skb_adjust_room(ctx, bytes, BPF_ADJ_ROOM_MAC, outer | BPF_F_ADJ_ROOM_FIXED_GSO);
}

/* Cut the frame to this length; pointers into it lapse. */
static __always_inline int cut_tail(hook_context *ctx, __u32 length)
{
	return bpf_skb_change_tail(ctx, length, 0);
}

#else

#define PASS XDP_PASS
#define DROP XDP_DROP

static __u64 (*xdp_get_buff_len)(struct xdp_md *ctx) = (void *)188; /* kernel 5.18 */

static __always_inline __u32 arrived_on(const hook_context *ctx)
{
	return ctx->ingress_ifindex;
}

static __always_inline __u64 frame_length(hook_context *ctx)
{
#ifdef FEATURE_MULTI_BUFFER
	return xdp_get_buff_len(ctx);
#else
	return frame_end(ctx) - frame_start(ctx);
#endif
}

static __always_inline int send_back(hook_context *ctx)
{
	return XDP_TX;
}

static __always_inline int has_hidden_tag(const hook_context *ctx)
{
	return 0;
}

static __always_inline void pull_headers(hook_context *ctx)
{
}

static __always_inline __u32 segment_payload(const hook_context *ctx)
{
	return 0;
}

static __always_inline int grow_head(hook_context *ctx, int bytes)
{
	return bpf_xdp_adjust_head(ctx, -bytes);
}

static __always_inline int grow_for_tunnel(hook_context *ctx, const int outer_family, int bytes, int has_udp,
					   int is_tagged)
{
	return grow_head(ctx, bytes);
}

static __always_inline int cut_tail(hook_context *ctx, __u32 length)
{
	__u64 now = frame_length(ctx);

	/* Else the compiler would subtract in an order that the verifier does not let it. */
	asm volatile("" : "+r"(now));
	return bpf_xdp_adjust_tail(ctx, (int)(length - now));
}

#endif

static __always_inline int send_out(hook_context *ctx, __u32 interface)
{
	return interface == arrived_on(ctx) ? send_back(ctx) : bpf_redirect(interface, 0);
}

#endif
