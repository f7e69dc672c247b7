/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Internet checksums, updated incrementally: HC' = ~(~HC + ~m + m'), RFC 1624 equation 3. What a backend's
 * rewrite adds (~m + m', folded to 16 bits) is the same for every packet, so the engine computes it once.
 */
#ifndef LBOPS_CSUM_H
#define LBOPS_CSUM_H

/* What a TTL that is lowered by 1, the high byte of its word, adds. */
#define TTL_STEP ((__u16)~htons(1 << 8))

static __always_inline __sum16 csum_fold_sum(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

static __always_inline __sum16 csum_add(__sum16 check, __sum16 delta)
{
	__u32 sum = (__u16)~check + (__u32)delta;

	/* Two 16-bit terms carry at most once. */
	return (__u16) ~((sum & 0xffff) + (sum >> 16));
}

/* What replacing one address by another adds to a sum; over IPv4 just the first word. */
static __always_inline __u64 csum_address(const int family, const __be32 *before, const __be32 *after)
{
	__u64 sum = (__u64)(__u32)~before[0] + after[0];

	if (family == 6)
		sum += (__u64)(__u32)~before[1] + after[1] + (__u32)~before[2] + after[2] + (__u32)~before[3] +
		       after[3];
	return sum;
}

static __always_inline __u64 csum_port(__be16 before, __be16 after)
{
	return (__u64)(__u16)~before + after;
}

#endif
