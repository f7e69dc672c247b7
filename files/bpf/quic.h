/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * QUIC: a connection is known by the id that its server gave it, so it outlives the client's address and port. The id says
 * in clear which server that was (draft-ietf-quic-load-balancers): one byte, whose three highest bits are the config id,
 * the server's id, and whatever the server likes.
 */
#ifndef LBOPS_QUIC_H
#define LBOPS_QUIC_H

#include "endpoints.h"
#include "layout.h"
#include "packet.h"
#include "verifier.h"

/* Of the first byte (RFC 9000, section 17). */
#define QUIC_LONG_HEADER 0x80
#define QUIC_LONG_TYPE 0x30
#define QUIC_VERSION_1 1
#define QUIC_HANDSHAKE 0x20
#define QUIC_VERSION_2 0x6b3343cf /* RFC 9369 */
#define QUIC_HANDSHAKE_2 0x30
/* Of the connection id's first byte. */
#define QUIC_CONFIG_ID 0xe0
#define QUIC_UNROUTABLE 0xe0 /* says that there is no server's id in it */

/* Headers with as much of a connection id as may count. No QUIC packet is shorter (RFC 9000, section 10.3). */
struct quic_short_header {
	__u8 first;
	__u8 id;
	__u8 server_id[8];
};

struct quic_long_header {
	__u8 first;
	__u8 version[4];
	__u8 id_length;
	__u8 id;
	__u8 server_id[8];
};

/* The beginning of a destination connection id. */
struct connection_id {
	__u8 first;
	__u64 server_id; /* as it lies in the packet, with what follows */
};

static __always_inline int is_handshake(const struct quic_long_header *header)
{
	__be32 version = *(const __be32 *)header->version;
	__u8 type = header->first & QUIC_LONG_TYPE;

	return (version == htonl(QUIC_VERSION_1) && type == QUIC_HANDSHAKE) ||
	       (version == htonl(QUIC_VERSION_2) && type == QUIC_HANDSHAKE_2);
}

/*
 * Reads the destination connection id if the server has chosen it: that of a packet with a short header, or of a
 * Handshake packet. That of Initial and 0-RTT packets may be the client's choice. Returns 0 if it may be, or if the
 * datagram is shorter than any QUIC packet.
 */
static __always_inline int read_server_choice(const int family, const struct packet *packet, __u32 id_length,
					      struct connection_id *id)
{
	__u64 nothing = 0, bytes = network_length(family, packet) - ((void *)(packet->udp + 1) - packet->network);
	const struct quic_short_header *header;
	const struct quic_long_header *longer;

	/* A pointer at a place that the verifier does not know: what is checked of it here makes no difference elsewhere. */
	FORGET(nothing, bytes);
	header = (void *)(packet->udp + 1) + (nothing & 1);
	longer = (void *)header;
	if ((void *)(header + 1) > packet->end || bytes < sizeof(*header))
		return 0;
	if (!(header->first & QUIC_LONG_HEADER)) {
		id->first = header->id;
		id->server_id = *(const __u64 *)header->server_id;
		/* Else the compiler reads both at a pointer that the verifier knows no bounds of. */
		asm volatile("" : "+r"(id->server_id));
		return 1;
	}
	if ((void *)(longer + 1) > packet->end || bytes < sizeof(*longer) || !is_handshake(longer) ||
	    longer->id_length <= id_length)
		return 0;
	id->first = longer->id;
	id->server_id = *(const __u64 *)longer->server_id;
	asm volatile("" : "+r"(id->server_id));
	return 1;
}

GLOBAL_SUBPROGRAM __u64 find_displaced_server(__u64 family, __u64 key, __u64 unused, __u64 unused2);

/* The key of a server's endpoint, see layout.h. */
static __always_inline __u64 server_key(__u32 service, __u32 id_length, const struct connection_id *id)
{
	__u64 key = (__u64)service << 8 | (id->first & QUIC_CONFIG_ID) | id_length;

	key *= SERVER_KEY_MULTIPLIER;
	key ^= id->server_id << (64 - 8 * id_length);
	return key * ENDPOINT_MULTIPLIER >> 8 | (__u64)ENDPOINT_QUIC_SERVER << 56;
}

/* Returns the index of the backend with a server's key, 0 if there is none. Few are not at home, so they may cost a call. */
static __always_inline __u32 find_server(const int family, const void *table, __u64 key)
{
	if (family == 4) {
		const struct endpoint *home = home4(table, key);

		if (home->key == key)
			return home->id;
		if (!home->key)
			return 0;
	} else {
		const struct endpoint6 *home = home6(table, key, 0, ENDPOINT_QUIC_SERVER << 24);

		if (home->key == ENDPOINT_QUIC_SERVER << 24 && home->address[0] == key)
			return home->id;
		if (!home->key)
			return 0;
	}
	return find_displaced_server(family, key, 0, 0);
}

#endif
