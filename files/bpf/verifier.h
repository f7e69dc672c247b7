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
 * A function of its own in the program, which the verifier follows once for all who call it: it takes four numbers and
 * gives one. In BCC's section for the program, behind it: definitions come after balancer() (search.h), so that the
 * program begins with that. plugins/module_utils/kernel/btf.py tells the kernel the types (global functions, kernel 5.6).
 */
#define END_OF_PROGRAM 0x6c626f7073656e64ULL
#define SUBPROGRAM static __attribute__((__noinline__, used, section(".bpf.fn.balancer")))

#endif
