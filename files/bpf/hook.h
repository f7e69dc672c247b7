/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The hook that the program is compiled for: XDP, or with HOOK_TC the ingress of tc, whose packets are socket
 * buffers. Helpers newer than the oldest BCC are declared by their number in include/uapi/linux/bpf.h.
 */
#ifndef LBOPS_HOOK_H
#define LBOPS_HOOK_H

#include "csum.h"

#ifdef HOOK_TC

#define PASS 0 /* TC_ACT_OK */
#define DROP 2 /* TC_ACT_SHOT */

typedef struct __sk_buff hook_context;

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

/* Room in front of the frame; pointers into it lapse. */
static __always_inline int grow_head(hook_context *ctx, int bytes)
{
	return bpf_skb_change_head(ctx, bytes, 0);
}

/* Cut the frame to this length; pointers into it lapse. */
static __always_inline int cut_tail(hook_context *ctx, __u32 length)
{
	return bpf_skb_change_tail(ctx, length, 0);
}

#else

#define PASS XDP_PASS
#define DROP XDP_DROP

typedef struct xdp_md hook_context;

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
	return ctx->data_end - ctx->data;
#endif
}

static __always_inline int send_back(hook_context *ctx)
{
	return XDP_TX;
}

static __always_inline int grow_head(hook_context *ctx, int bytes)
{
	return bpf_xdp_adjust_head(ctx, -bytes);
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
