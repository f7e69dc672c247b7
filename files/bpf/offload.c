// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The balancer for a network card that runs the program itself: dsr and ipip over IPv4 to backends with given Ethernet
 * addresses, the scheduler hash, and what needs neither the kernel's tables nor memory of packets before. A card calls no
 * helpers but for lookups in maps and bpf_xdp_adjust_head(), and its only way out is the port that a packet came by.
 * docs/data-plane.md says what differs from balancer.c, whose headers this is made of.
 *
 * BCC compiles this file with OFFLOAD, FEATURE_UNSERVED_PASS, HASH_SEED and the sizes of offload_layout.h and layout.h.
 */
#include <uapi/linux/bpf.h>
#include <uapi/linux/icmp.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/if_packet.h>
#include <uapi/linux/in.h>
#include <uapi/linux/in6.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>
#include <uapi/linux/tcp.h>
#include <uapi/linux/udp.h>

#include "count.h"
#include "echo.h"
#include "icmp_error.h"
#include "layout.h"
#include "martian.h"
#include "multiply.h"
#include "offload_layout.h"
#include "packet.h"
#include "parse.h"
#include "select.h"
#include "tunnel.h"
#include "verifier.h"

static __always_inline void count(__u32 number, __u64 bytes)
{
	struct offload_counters *counters = offload_record(
		OFFLOAD_MAP_COUNTERS, OFFLOAD_RECORDS(OFFLOAD_COUNTERS), sizeof(*counters), number & (OFFLOAD_COUNTERS - 1));

	if (!counters)
		return;
	/* The threads of a card share the maps. */
	__sync_fetch_and_add(&counters->packets, 1);
	if (bytes)
		__sync_fetch_and_add(&counters->bytes, bytes);
}

static __always_inline const struct endpoint *find_record(__u32 half, enum endpoint_kind kind, __be32 address,
							  __u8 protocol, __be16 port)
{
	__u64 key = endpoint_key(kind, protocol, port) | address;
	__u64 mixed = multiply32(key >> 32, OFFLOAD_MULTIPLIER);
	__u32 probe, place;

	mixed = multiply32((mixed ^ key) & 0xffffffff, OFFLOAD_MULTIPLIER) & 0xffffffff;
	place = mixed / (0x100000000ULL / OFFLOAD_ENDPOINTS);
#pragma unroll
	for (probe = 0; probe < OFFLOAD_PROBES; probe++) {
		const struct endpoint *found = offload_record(
			OFFLOAD_MAP_ENDPOINTS, OFFLOAD_RECORDS(OFFLOAD_ENDPOINTS), sizeof(*found),
			half * OFFLOAD_ENDPOINTS + ((place + probe) & (OFFLOAD_ENDPOINTS - 1)));

		if (!found || !found->key)
			return NULL;
		if (found->key == key)
			return found;
	}
	return NULL;
}

static __always_inline const struct offload_backend *find_backend(__u32 half, __u32 service, __u64 hash)
{
	__u32 slot = service << OFFLOAD_SLOTS_SHIFT | hash >> (64 - OFFLOAD_SLOTS_SHIFT);
	const __u32 *number = offload_record(OFFLOAD_MAP_SLOTS, OFFLOAD_RECORDS(OFFLOAD_SLOTS), sizeof(*number),
					     half * OFFLOAD_SLOTS + (slot & (OFFLOAD_SLOTS - 1)));

	if (!number || !*number)
		return NULL;
	return offload_record(OFFLOAD_MAP_BACKENDS, OFFLOAD_RECORDS(OFFLOAD_BACKENDS), sizeof(struct offload_backend),
			      half * OFFLOAD_BACKENDS + (*number & (OFFLOAD_BACKENDS - 1)));
}

/* As is_martian_for_error(), by these tables. */
static __always_inline int is_offload_martian_for_error(const struct packet *packet, __u32 half)
{
	__be32 source = *source_of(4, packet);

	return is_invalid_source(4, &source) || source == *destination_of(4, packet) ||
	       find_record(half, ENDPOINT_VIP, source, IPPROTO_ICMP, 0);
}

static __always_inline int is_offload_martian(const struct packet *packet, __u32 half)
{
	return is_unforwardable_source(4, source_of(4, packet)) || is_offload_martian_for_error(packet, half);
}

static __always_inline int forward_offloaded(hook_context *ctx, struct packet *packet,
					     const struct offload_control *control, __u32 service,
					     const struct flow *flow)
{
	__u64 hash = flow_hash(4, flow, HASH_SEED), bytes = frame_bytes(ctx, packet);
	const struct offload_backend *found = find_backend(control->half, service, hash);
	struct backend backend = {};
	struct link_header link;
	struct inner inner;

	if (!found)
		return with_reason(DROP_NO_BACKEND, DROP);
	if (found->forwarding == FORWARDING_IPIP) {
		if (*hop_limit(4, packet) <= 1)
			return with_reason(PASS_TTL_EXPIRED, PASS);
		if (network_length(4, packet) + sizeof(struct iphdr) > control->mtu)
			return with_reason(DROP_TOO_BIG, DROP);
	}
	count(found->service_counters, bytes);
	count(found->backend_counters, bytes);
	copy_mac(packet->eth->source, packet->eth->destination);
	copy_mac(packet->eth->destination, found->mac);
	if (found->forwarding == FORWARDING_DSR)
		return send_back(ctx);
	backend.address[0] = found->address;
	backend.source[0] = found->source;
	backend.source_mask = found->source_mask;
	backend.header_sum = found->header_sum;
	look_inside(4, packet, 0, &inner);
	keep_link_header(packet, &link);
	if (grow_head(ctx, sizeof(struct iphdr)) || put_ip4(ctx, &link, &inner, &backend, hash))
		return DROP;
	return send_back(ctx);
}

static __always_inline int handle_offload_icmp(hook_context *ctx, struct packet *packet,
					       const struct offload_control *control)
{
	const struct endpoint *service;
	struct quote quote = {};
	struct flow flow = {};

	if (is_echo_request(4, packet) &&
	    find_record(control->half, ENDPOINT_VIP, *destination_of(4, packet), IPPROTO_ICMP, 0)) {
		if (is_offload_martian(packet, control->half))
			return with_reason(DROP_MARTIAN, DROP);
		return answer_echo(ctx, 4, packet);
	}
	if (!is_icmp_error(4, packet) || !parse_quote(4, packet, &quote) ||
	    quote.ip->saddr != *destination_of(4, packet))
		return with_reason(PASS_NOT_OURS, PASS);
	service = find_record(control->half, ENDPOINT_SERVICE, quote.ip->saddr, quote.protocol, quote.udp->source);
	if (!service)
		return with_reason(PASS_NOT_OURS, PASS);
	if (is_offload_martian_for_error(packet, control->half))
		return with_reason(DROP_MARTIAN, DROP);
	flow.client[0] = quote.ip->daddr;
	flow.client_port = quote.udp->dest;
	flow.port = quote.udp->source;
	return forward_offloaded(ctx, packet, control, service->id, &flow);
}

static __always_inline int handle_offload_packet(hook_context *ctx, struct packet *packet, int reason,
						 const struct offload_control *control)
{
	const struct endpoint *service;
	struct flow flow = {};

	if (load64(packet->eth) << 16 != control->address)
		return with_reason(PASS_OTHER_MAC, PASS);
	if (reason != PARSED)
		return with_reason(reason, PASS);
	/* The ports are in the first fragment only, and nothing is remembered of it. */
	if (packet->fragment)
		return with_reason(PASS_NOT_OURS, PASS);
	if (!has_l4(packet))
		return with_reason(PASS_MALFORMED, PASS);
	if (is_icmp(4, packet))
		return handle_offload_icmp(ctx, packet, control);
	service = find_record(control->half, ENDPOINT_SERVICE, *destination_of(4, packet), packet->protocol,
			      packet->udp->dest);
	if (!service)
		return with_reason(PASS_NOT_OURS, PASS);
	if (is_offload_martian(packet, control->half))
		return with_reason(DROP_MARTIAN, DROP);
	flow_of(4, packet, &flow);
	return forward_offloaded(ctx, packet, control, service->id, &flow);
}

static __always_inline int handle_offloaded(hook_context *ctx)
{
	const struct offload_control *control = lookup(OFFLOAD_CONTROL, 0);
	struct packet packet = {};
	struct parsed parsed = {};
	int reason;

	if (!control)
		return PASS;
	if (parse_link(ctx, &parsed) != htons(ETH_P_IP))
		return with_reason(PASS_NOT_IP, PASS);
	reason = parse_ip(ctx, 4, &parsed, &packet);
	if (reason == UNREADABLE)
		return with_reason(PASS_MALFORMED, PASS);
	return handle_offload_packet(ctx, &packet, reason, control);
}

int balancer(hook_context *ctx)
{
	int verdict = handle_offloaded(ctx);

	if (!has_reason(verdict))
		return verdict;
	count(reason_of(verdict), 0);
	return (__s8)verdict;
}

#include "subprograms.h"
