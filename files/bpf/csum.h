/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Internet checksums, updated incrementally: HC' = ~(~HC + ~m + m'), RFC 1624 equation 3. What a backend's
 * rewrite adds (~m + m', folded to 16 bits) is the same for every packet, so the engine computes it once.
 */
#ifndef LBOPS_CSUM_H
#define LBOPS_CSUM_H

#include "parse.h"

static __always_inline __sum16 csum_add(__sum16 check, __sum16 delta)
{
	__u32 sum = (__u16)~check + (__u32)delta;

	/* Two 16-bit terms carry at most once. */
	return (__u16) ~((sum & 0xffff) + (sum >> 16));
}

static __always_inline void csum_add_l4(struct packet *packet, __sum16 delta)
{
	__sum16 check;

	if (packet->protocol == IPPROTO_TCP) {
		/* Always true since parse(), which the verifier cannot see. */
		if ((void *)(packet->tcp + 1) <= packet->end)
			packet->tcp->check = csum_add(packet->tcp->check, delta);
		return;
	}
	/* In UDP, 0 means that the sender computed none; a computed 0 is sent as its other form (RFC 768). */
	if (!packet->udp->check)
		return;
	check = csum_add(packet->udp->check, delta);
	packet->udp->check = check ? check : 0xffff;
}

#endif
