/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What lies in the maps. plugins/module_utils/layout.py packs and unpacks the same structures; a test
 * compiles this file and compares every size and offset with it.
 *
 * __be16/__be32/__sum16 are in network byte order, everything else in the host's. LAYOUT_VERSION changes
 * with any change to these structures or to their meaning, so that an engine never misreads pinned maps.
 *
 * Sizes come from the command line: MAX_SERVICES, MAX_BACKENDS, ENDPOINT_SLOTS (a power of two).
 */
#ifndef LBOPS_LAYOUT_H
#define LBOPS_LAYOUT_H

#define LAYOUT_VERSION 1

/* A prime, as Maglev asks (Eisenbud et al., NSDI 2016, section 3.4). */
#define RING_SIZE 65537
/* Slots looked at before a key counts as absent; the engine places no key farther from its home. */
#define ENDPOINT_PROBES 16
/* Odd 64-bit constant of Fibonacci hashing: 2^64 divided by the golden ratio (Knuth, TAOCP vol. 3, 6.4). */
#define ENDPOINT_MULTIPLIER 0x9E3779B97F4A7C15ULL
/* Entries of the cache of next hops towards clients, per CPU (a power of two). */
#define CLIENT_NEXT_HOPS 16384

/* What an endpoint is, the last byte of its key. */
enum endpoint_kind {
	ENDPOINT_SERVICE = 1, /* destination VIP:port; id is the service's ring */
	ENDPOINT_BACKEND = 2, /* source of a dnat backend's replies; id is the backend */
	ENDPOINT_VIP = 3,     /* an address that answers echo; port 0, protocol ICMP, no id */
};

/* key: address | port << 32 | protocol << 48 | kind << 56, address and port as they lie in the packet. */
struct endpoint {
	__u64 key; /* 0: empty */
	__u32 id;
	__u32 unused;
};

/* An immutable hash table with linear probing; every change is a new table swapped in whole. */
struct endpoint_table {
	__u32 shift; /* 64 - log2(slots in use); ENDPOINT_PROBES more take what probing carries over */
	__u32 unused;
	struct endpoint slots[ENDPOINT_SLOTS + ENDPOINT_PROBES];
};

enum scheduler {
	SCHEDULER_MAGLEV = 1,
	SCHEDULER_ROUND_ROBIN = 2,
};

/* The backends of one service in the order its scheduler wants; swapped whole as well. */
struct ring {
	__u32 scheduler;
	__u32 length; /* slots that round robin walks through */
	__u32 slots[RING_SIZE];
	__u32 unused;
};

enum forwarding {
	FORWARDING_DNAT = 1,
	FORWARDING_DSR = 2,
};

/*
 * Written once, before a ring or endpoint table points at it; a changed backend gets a new id.
 * The deltas are what a rewrite adds to the complement of a checksum (RFC 1624, equation 3), folded to
 * 16 bits; those of the IP header include the decremented TTL.
 */
struct backend {
	__be32 address;
	__be16 port; /* 0: the packet keeps its port */
	__u8 forwarding;
	__u8 has_mac; /* 1: mac is the next hop, the kernel's tables are not asked */
	__u8 mac[6];
	__be16 vip_port;
	__be32 vip;
	__sum16 ip_delta;
	__sum16 l4_delta;
	__sum16 reply_ip_delta;
	__sum16 reply_l4_delta;
	__u32 service_counters;
	__u32 backend_counters;
	__u32 unused;
};

/* Bytes are those of the frame as it arrived, Ethernet header included. */
struct counters {
	__u64 packets;
	__u64 bytes;
	__u64 reply_packets;
	__u64 reply_bytes;
};

/* A remembered answer of the kernel's FIB and neighbour tables; valid while its generation is current. */
struct next_hop {
	__be32 address;
	__u32 generation;
	__u32 interface;
	__u8 destination[6];
	__u8 source[6];
};

struct control {
	__u32 layout_version;
	__u32 next_hop_generation; /* never 0; the engine adds 1 when routes or neighbours changed */
};

#endif
