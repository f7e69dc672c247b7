/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Products of 64 bits. A network card that runs the program multiplies numbers of 32 bits only (nfp_bpf_check_alu() of
 * the kernel's driver nfp), so that an offloaded program makes a product of three of them.
 */
#ifndef LBOPS_MULTIPLY_H
#define LBOPS_MULTIPLY_H

/* Both numbers have 32 bits. */
static __always_inline __u64 multiply32(__u64 one, __u64 other)
{
	/* Otherwise the compiler leaves out the truncation to 32 bits where the product's upper half is not used. */
	asm volatile("" : "+r"(one), "+r"(other));
	return one * other;
}

static __always_inline __u64 multiply(__u64 number, const __u64 constant)
{
#ifdef OFFLOAD
	const __u64 upper = constant >> 32, lower = constant & 0xffffffff;
	__u64 cross = multiply32(number >> 32, lower) + multiply32(number & 0xffffffff, upper);

	return multiply32(number & 0xffffffff, lower) + (cross << 32);
#else
	return number * constant;
#endif
}

#endif
