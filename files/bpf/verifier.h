/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What keeps the verifier's work small. */
#ifndef LBOPS_VERIFIER_H
#define LBOPS_VERIFIER_H

/*
 * The verifier follows every way through the program with all that it knows of the values on it. After parsing, it is
 * to forget by which way it came, or it would check the rest of the program anew for each.
 */
#define FORGET(value, unknown) asm volatile("%0 ^= %1\n%0 ^= %1" : "+r"(value) : "r"(unknown))

/*
 * Functions of their own in the program, behind balancer() in BCC's section for it: definitions come after balancer(), so
 * that the program begins with that. plugins/module_utils/kernel/btf.py tells the kernel which kind each one is.
 *
 * A jump reaches 32,767 instructions at most, within one function. The verifier follows a SUBPROGRAM at every call, as if
 * it were inlined; it may take pointers. It follows a GLOBAL_SUBPROGRAM once for all who call it, so that one takes four
 * numbers and gives one (kernel 5.6); its body begins with IS_GLOBAL. The kernel refuses a function that nothing calls.
 */
#define END_OF_PROGRAM 0x6c626f7073656e64ULL
#define SUBPROGRAM static __attribute__((__noinline__, used, section(".bpf.fn.balancer")))
#define GLOBAL_SUBPROGRAM SUBPROGRAM
#define GLOBAL_MARK 0x676c6f62
#define IS_GLOBAL                                                            \
	do {                                                                 \
		__u64 mark;                                                  \
		asm volatile("%0 = %1" : "=r"(mark) : "i"(GLOBAL_MARK));     \
	} while (0)

#endif
