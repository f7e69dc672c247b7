/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The Ethernet header kept aside while the frame gets new headers in front of its packet. */
#ifndef LBOPS_LINK_HEADER_H
#define LBOPS_LINK_HEADER_H

#include "address.h"
#include "next_hop.h"
#include "packet.h"

struct link_header {
	__be16 destination[3];
	__be16 source[3];
	__be16 tags[4]; /* type, control, type, control */
	__u32 length;
};

static __always_inline void keep_link_header(const struct packet *packet, struct link_header *kept)
{
	const __be16 *tags = &packet->eth->type;

	copy_mac(kept->destination, packet->eth->destination);
	copy_mac(kept->source, packet->eth->source);
	kept->length = packet->link_length;
	if (kept->length == sizeof(struct ethernet))
		return;
	kept->tags[0] = tags[0];
	kept->tags[1] = tags[1];
	if (kept->length == sizeof(struct ethernet) + sizeof(struct vlan_tag))
		return;
	kept->tags[2] = tags[2];
	kept->tags[3] = tags[3];
}

/* Write it at the head of the frame; what follows is the packet of this type, NULL if it does not fit. */
static __always_inline void *put_link_header(hook_context *ctx, const struct link_header *kept, __be16 type,
					     __u64 packet_bytes)
{
	struct ethernet *eth;
	__be16 *tags;
	void *end;

	/* The verifier takes no pointer into the context that the compiler has kept from before. */
	asm volatile("" : "+r"(ctx));
	eth = frame_start(ctx);
	end = frame_end(ctx);
	tags = &eth->type;
	/* Two tags are shorter than any packet. */
	if ((void *)(tags + 1) + packet_bytes > end)
		return NULL;
	copy_mac(eth->destination, kept->destination);
	copy_mac(eth->source, kept->source);
	if (kept->length == sizeof(*eth)) {
		tags[0] = type;
		return tags + 1;
	}
	tags[0] = kept->tags[0];
	tags[1] = kept->tags[1];
	if (kept->length == sizeof(*eth) + sizeof(struct vlan_tag)) {
		tags[2] = type;
		return (void *)(tags + 3) + packet_bytes > end ? NULL : tags + 3;
	}
	tags[2] = kept->tags[2];
	tags[3] = kept->tags[3];
	tags[4] = type;
	return (void *)(tags + 5) + packet_bytes > end ? NULL : tags + 5;
}

#endif
