// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The balancer: a packet for a service goes to one of its backends, a dnat backend's reply gets the VIP back,
 * an echo request for a VIP is answered; everything else passes untouched.
 *
 * BCC compiles this file on the target with the features in use as -D: FEATURE_DNAT, FEATURE_DSR,
 * FEATURE_ROUND_ROBIN, and the sizes that layout.h names.
 */
#include <uapi/linux/bpf.h>
#include <uapi/linux/icmp.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/tcp.h>
#include <uapi/linux/udp.h>

#include "count.h"
#include "echo.h"
#include "endpoints.h"
#include "forward.h"
#include "layout.h"
#include "parse.h"
#include "select.h"

static __always_inline int forward(struct xdp_md *ctx, struct packet *packet, __u32 service)
{
	__u32 id = 0;
	struct backend *backend = select_backend(service, packet, &id);

	if (!backend)
		return count_reason(DROP_NO_BACKEND, XDP_DROP);
#ifdef FEATURE_DSR
	if (backend->forwarding == FORWARDING_DSR)
		return forward_dsr(ctx, packet, backend, id);
#endif
#ifdef FEATURE_DNAT
	if (backend->forwarding == FORWARDING_DNAT)
		return forward_dnat(ctx, packet, backend, id);
#endif
	return count_reason(DROP_NO_BACKEND, XDP_DROP);
}

static __always_inline int balance(struct xdp_md *ctx, struct packet *packet)
{
	struct endpoint_table *table = endpoint_table();
	struct endpoint *endpoint;

	if (!table)
		return count_reason(PASS_NOT_OURS, XDP_PASS);
	if (packet->protocol == IPPROTO_ICMP) {
		if (packet->icmp->type == ECHO_REQUEST && packet->icmp->code == 0 &&
		    endpoint_lookup(table, endpoint_key(ENDPOINT_VIP, packet->ip->daddr, IPPROTO_ICMP, 0)))
			return answer_echo(packet);
		return count_reason(PASS_NOT_OURS, XDP_PASS);
	}
	endpoint = endpoint_lookup(table, endpoint_key(ENDPOINT_SERVICE, packet->ip->daddr, packet->protocol,
						       packet->udp->dest));
	if (endpoint)
		return forward(ctx, packet, endpoint->id);
#ifdef FEATURE_DNAT
	endpoint = endpoint_lookup(table, endpoint_key(ENDPOINT_BACKEND, packet->ip->saddr, packet->protocol,
						       packet->udp->source));
	if (endpoint) {
		struct backend *backend = lookup(MAP_BACKENDS, endpoint->id);

		if (backend)
			return forward_reply(ctx, packet, backend);
	}
#endif
	return count_reason(PASS_NOT_OURS, XDP_PASS);
}

int balancer(struct xdp_md *ctx)
{
	struct packet packet;
	int reason = parse(ctx, &packet);

	if (reason == PARSED)
		return balance(ctx, &packet);
	return count_reason(reason, XDP_PASS);
}
