/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What lies in the maps. plugins/module_utils/tables/layout.py packs and unpacks the same structures; a test
 * compiles this file and compares every size and offset with it.
 *
 * __be16/__be32/__sum16 are in network byte order, everything else in the host's. LAYOUT_VERSION changes
 * with any change to these structures or to their meaning, so that an engine never misreads pinned maps.
 * Addresses are arrays of four words: IPv6, or IPv4 in the first one with the rest zero.
 *
 * Sizes that the program needs come from the command line: MAX_SESSIONS, ENDPOINT_SLOTS, FLOW_SHIFT = 64 - log2(buckets
 * of flows), MAX_NEW_FLOWS, CPUS. The others are those of the maps alone.
 */
#ifndef LBOPS_LAYOUT_H
#define LBOPS_LAYOUT_H

#define LAYOUT_VERSION 4
/* Of a balancer. */
#define MAX_INTERFACES 16
#define MAX_VIRTUAL_MACS 16

/* Slots looked at before a key counts as absent; the engine places no key farther from its home. */
#define ENDPOINT_PROBES 16
/* Odd 64-bit constant of Fibonacci hashing: 2^64 divided by the golden ratio (Knuth, TAOCP vol. 3, 6.4). */
#define ENDPOINT_MULTIPLIER 0x9E3779B97F4A7C15ULL
/* Bits of the Bloom filter over VIPs and sources of full_nat; it rules out most addresses with some hundred of these. */
#define ADDRESS_BLOOM_BITS 1024
/* Entries of the cache of next hops towards clients, per CPU (a power of two). */
#define CLIENT_NEXT_HOPS 32768
/* Buckets of fragmented packets under way, per CPU (a power of two), 64 - log2 of that. */
#define FRAGMENT_BUCKETS 512
#define FRAGMENT_SHIFT 55
/* Budgets of new flows; a service has that of its id modulo this (a power of two). */
#define FLOW_BUDGETS 64
/* Pools of source ports. */
#define MAX_POOLS 64
/* Room for reasons (reasons.h), so that the map of a host stays when some are added. */
#define MAX_REASONS 64
/* The number that a flow is remembered with is a backend, or with this bit a session. */
#define FLOW_IS_SESSION (1 << 20)

/* What an endpoint is, the last byte of its key. */
enum endpoint_kind {
	ENDPOINT_SERVICE = 1, /* destination VIP:port, port 0 for any; id is the service's lookup table */
	ENDPOINT_BACKEND = 2, /* source of a dnat backend's replies, port 0 for any; id is the backend */
	ENDPOINT_VIP = 3,     /* an address that answers echo; port 0, protocol ICMP, no id */
	ENDPOINT_SOURCE = 4,  /* an address of full_nat; port 0, protocol 0, id is the pool */
	ENDPOINT_QUIC_SERVER = 5, /* a server id of QUIC, with a key of its own; id is the backend */
};

/*
 * The key of a server id is a hash, which the engine knows to be of one server only: with n, the bytes of the server id,
 * the upper 56 bits of ENDPOINT_MULTIPLIER * (server id << 64 - 8 * n ^ SERVER_KEY_MULTIPLIER * (index of the service's
 * lookup table << 8 | config id << 5 | n)). The server id is a little-endian load of its bytes. In the table of IPv6 the
 * key with its kind is address[0].
 */
#define SERVER_KEY_MULTIPLIER 0xff51afd7ed558ccdULL

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
	/* Bit n is set if some endpoint of the kind has a port that is n modulo 64; any port sets all. */
	__u64 service_ports;
	__u64 backend_ports;
	__u64 unused2;
	/* Bloom filter with one hash, the top 10 bits of (XOR of the address's words) * ENDPOINT_MULTIPLIER. */
	__u64 address_bloom[ADDRESS_BLOOM_BITS / 64];
	struct endpoint slots[ENDPOINT_SLOTS + ENDPOINT_PROBES];
};

/*
 * The same over IPv6; key: port | protocol << 16 | kind << 24. Slots of 24 bytes keep the table of the default size
 * below the 4 MiB that a value may have before kernel 6.0.
 */
struct endpoint6 {
	__u64 address[2];
	__u32 key; /* 0: empty */
	__u32 id;
};

struct endpoint6_table {
	__u32 shift;
	__u32 unused;
	__u64 service_ports;
	__u64 backend_ports;
	__u64 unused2;
	__u64 address_bloom[ADDRESS_BLOOM_BITS / 64];
	struct endpoint6 slots[ENDPOINT_SLOTS + ENDPOINT_PROBES];
};

enum scheduler {
	SCHEDULER_MAGLEV = 1,
	SCHEDULER_ROUND_ROBIN = 2,
	SCHEDULER_HASH = 3,
};

enum service_flags {
	SERVICE_FLOW_TABLE = 1,
	SERVICE_SESSIONS = 2,  /* full_nat */
	SERVICE_KEEPS_TTL = 4, /* dsr, redirect: frames are moved as they are, whatever their TTL */
	SERVICE_SOURCE_RANGES = 8, /* clients are in one of its ranges, or their packets are dropped */
};

/* Bits 4 to 7 of the flags: bytes of the server ids in connection ids of QUIC; 0: they choose nothing. */
#define QUIC_ID_LENGTH_SHIFT 4
/* Bits 8 to 15 of the flags: how many bits of the client's address choose the backend; 0: the whole flow does. */
#define AFFINITY_PREFIX_SHIFT 8

/*
 * What holds for a service; ids of backends follow, one for each slot. Tables are swapped whole as well. The map of a
 * table has room for as many slots as its place in maps.h says.
 */
struct lookup_table {
	__u32 scheduler;
	__u32 length; /* slots in use */
	__u32 flags;
	__u32 idle_timeout; /* ticks, see clock.h */
};

/*
 * The lookup table that a service had before its backends changed, see handover.h. An array of lines: the first one is the
 * header, ids of backends follow.
 */
#define IDS_PER_LINE 16

struct previous_header {
	__u64 seed;   /* HASH_SEED of the program that it was for */
	__u32 until;  /* tick; it counts before that one */
	__u32 length; /* slots */
	__u32 affinity_prefix;
	__u32 unused[11];
};

enum forwarding {
	FORWARDING_DNAT = 1,
	FORWARDING_DSR = 2,
	FORWARDING_FULL_NAT = 3,
	FORWARDING_IPIP = 4,
	FORWARDING_REDIRECT = 5,
	FORWARDING_GUE = 6,
	FORWARDING_LOCAL = 7, /* of a single backend, whatever its service has: it is this host */
};

/*
 * Written once, before a lookup table or endpoint table points at it; a changed backend gets a new id. Only
 * forwarding is written again: 0 retires the entry.
 * The deltas are what a rewrite of VIP and port adds to the complement of a checksum (RFC 1624, equation 3),
 * folded to 16 bits; those of the IPv4 header include the decremented TTL.
 */
struct backend {
	__be32 address[4];
	__be32 vip[4];
	__be16 port; /* 0: the packet keeps its port; gue: that of the outer header */
	__be16 vip_port;
	__u8 forwarding;
	__u8 family;  /* of the address: 4 or 6 */
	__u8 has_mac; /* 1: mac is the next hop, the kernel's tables are not asked */
	__u8 unused;
	__u8 mac[6];
	__sum16 ip_delta;
	__sum16 l4_delta;
	__sum16 reply_ip_delta;
	__sum16 reply_l4_delta;
	__u16 source_port; /* full_nat: the first of the pool */
	__u32 service;      /* whose lookup table it is in */
	__u32 service_counters;
	__u32 backend_counters;
	__u32 interface;    /* redirect */
	__be32 source[4];   /* full_nat, ipip, gue */
	__be32 source_mask; /* ipip, gue: bits of the last word of the source that come from the flow */
	__u32 header_sum;   /* ipip, gue over IPv4: the sum of the outer header's words that are always the same */
	__u32 first_session; /* full_nat: where the pool's sessions begin */
	__u32 source_ports;  /* full_nat: how many there are */
	__u32 pool; /* not read; the identities that sessions have are checksums over it as well */
	__u32 identity; /* a checksum of the rest; a place may come to hold another backend */
};

/* Bytes are those of the frame as it arrived, Ethernet header included. */
struct counters {
	__u64 packets;
	__u64 bytes;
	__u64 reply_packets;
	__u64 reply_bytes;
	__u64 new_flows; /* remembered in the flow table, or sessions started */
};

enum flow_state {
	FLOW_NEW,         /* one packet, or SYNs only */
	FLOW_ESTABLISHED, /* the client has sent again */
	FLOW_CLOSING,     /* FIN or RST was seen, and no data since */
};

/* Eight flows in one cache line: signature << 35 | state << 33 | tick last seen << 21 | number, 0: empty. */
struct flow_bucket {
	__u64 flows[8];
};

enum session_state {
	SESSION_ESTABLISHED,
	SESSION_NEW,      /* the backend has not answered */
	SESSION_ANSWERED, /* the client has not sent again */
	SESSION_CLOSING,  /* FIN or RST was seen, and no data since */
};

/* A flow of full_nat; its place says its source port. */
struct session {
	__be32 client[4];
	__be16 client_port;
	__be16 vip_port;
	__u32 backend;
	__u32 service;
	__u32 seen; /* tick; 0: free */
	__u32 timeout; /* ticks without a packet; short unless it is established */
	__u8 protocol;
	__u8 state; /* enum session_state */
	__sum16 address_delta; /* what the rewrite adds to the complement of a checksum: addresses ... */
	__sum16 l4_delta;      /* ... and addresses with ports; a reply adds the complement */
	__u16 unused2;
	__u32 identity; /* of the backend: the deltas hold for no other */
	__u32 idle_timeout; /* ticks; the timeout while it is established */
	__u32 started; /* units of 2^20 ns; of one that is not established */
	__u32 unused3[2];
};

/* A pool of source ports as replies need it. */
struct pool {
	__u32 first_session;
	__u16 first_port;
	__u16 ports;
};

/* Why other CPUs' flow tables are searched. */
enum search {
	SEARCH_FOR_PACKET,
	SEARCH_FOR_SYN,
	SEARCH_FOR_ERROR,
	SEARCHES,
};

/* What a CPU has done since its tick began. */
struct budget {
	__u32 tick;
	__u32 errors; /* ICMP errors sent */
	__u32 searches[SEARCHES]; /* in other CPUs' flow tables */
	__u32 flows[FLOW_BUDGETS]; /* learnt, by service */
};

/* Bucket 0 has what took less than 2^LATENCY_FIRST ns, each further one twice as much, the last one all the rest. */
#define LATENCY_FIRST 5
#define LATENCY_BUCKETS 14

struct latency {
	__u64 nanoseconds;
	__u64 packets[LATENCY_BUCKETS];
};

/* A remembered answer of the kernel's FIB and neighbour tables; valid while its generation is current. */
struct next_hop {
	__u32 generation; /* 0: none */
	__u32 interface;
	__u16 mtu;
	__u8 on_link; /* 1: the next hop is the address itself, not a gateway */
	__u8 unused;
	__u8 destination[6];
	__u8 source[6];
};

/* What a CPU counts and remembers of a backend: one lookup for both. All zero for a backend of another address. */
struct backend_counters {
	struct counters counters;
	struct next_hop next_hop;
};

struct client_next_hop {
	__be32 address[4];
	struct next_hop next_hop;
};

/* An interface of the balancer, a member of a bond that is one, or the bond of a member that is one. */
struct interface {
	__u32 index; /* 0: none */
	__u32 mtu;   /* in bytes, without the Ethernet header */
	__u64 address; /* the Ethernet address in the upper 48 bits, as it lies in a frame */
	__u32 master;  /* index of the bond or bridge that it is a port of; 0: none */
	__u32 unused;
};

struct control {
	__u32 layout_version;
	__u32 next_hop_generation; /* never 0; the engine adds 1 when routes or neighbours changed */
	__u64 seed; /* random; for the flow table, and to pick source ports */
	struct interface interfaces[MAX_INTERFACES];
	__u64 virtual_macs[MAX_VIRTUAL_MACS]; /* as the address of an interface; 0: none */
};

/* The key of a trie: a prefix from which a service takes packets. Its value says nothing. */
struct source_range {
	__u32 length;  /* bits of the rest that count: 32, and those of the prefix */
	__u32 service; /* place of its lookup table */
	__be32 address[4];
};

enum filter_action {
	FILTER_DROP = 1,
	FILTER_PASS = 2,
	FILTER_LIMIT = 3,
};

enum filter_class {
	FILTER_TCP,
	FILTER_UDP,
	FILTER_ICMP,
	FILTER_OTHER,
	FILTER_CLASSES,
};

struct filter_rule {
	__u32 id;       /* of counters and limit */
	__u32 action;   /* 0: there is no rule */
	__u32 interval; /* limit: nanoseconds a packet */
	__u32 burst;    /* limit: packets */
};

/*
 * Filters are one frozen array of lines of 64 bytes, swapped whole: 3 lines of header, buckets of IPv4, buckets of
 * IPv6, verdicts. Prefixes are found by binary search over the lengths in use (Waldvogel et al., SIGCOMM 1997):
 * every prefix has markers at the shorter lengths that a search for it visits.
 */
struct filter_header {
	__u32 first4, first6; /* lines */
	__u32 shift4, shift6; /* 64 - log2(buckets) */
	__u32 first_verdict;
	__u32 any4, any6; /* verdicts of the prefix of length 0; 0: none */
	__u8 count4, count6; /* of lengths in use, which ascend */
	__u8 lengths4[32];
	__u16 unused;
	__u8 lengths6[128];
};

/* A prefix is in the first of its two lines, or in the second if the first is full. */

struct filter_slot4 {
	__u64 key;     /* address, in the host's byte order | length << 32; 0: empty */
	__u32 verdict; /* of the longest prefix with rules that holds this one, itself included; 0: none */
	__u32 unused;
};

struct filter_slot6 {
	__u64 address[2]; /* upper and lower half, in the host's byte order */
	__u32 length;     /* 0: empty */
	__u32 verdict;
	__u64 unused;
};

struct filter_line {
	union {
		struct filter_slot4 slots4[4];
		struct filter_slot6 slots6[2];
		struct filter_rule rules[FILTER_CLASSES];
		__u8 bytes[64];
	};
};

struct filter_counters {
	__u64 packets;
	__u64 dropped;
};

#endif
