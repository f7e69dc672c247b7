/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The XDP program of somebody else, which gets what this one passes. The tail call is in the main function: the kernel
 * lets a program with subprograms make tail calls if its JIT compiler can mix both (x86 5.10, arm64 6.0), and a subprogram
 * that makes one may be called with 256 bytes of stack at the most (check_max_stack_depth() in kernel/bpf/verifier.c).
 */
#ifndef LBOPS_NEXT_PROGRAM_H
#define LBOPS_NEXT_PROGRAM_H

#include "hook.h"
#include "maps.h"

#ifdef FEATURE_NEXT_PROGRAM
/* The kernel does not mix programs for frames in one buffer with those for frames in several. */
#ifdef FEATURE_MULTI_BUFFER
#define NEXT_PROGRAM MAP_NEXT_PROGRAM_FRAGS
#else
#define NEXT_PROGRAM MAP_NEXT_PROGRAM
#endif

static long (*tail_call)(void *ctx, void *programs, __u32 index) = (void *)12;

/* Returns the verdict for this program's verdict; does not return from a packet that passes while there is a next program. */
static __always_inline int call_next_program(hook_context *ctx, int verdict)
{
	if (verdict == PASS)
		tail_call(ctx, NEXT_PROGRAM, 0);
	return verdict;
}
#else
static __always_inline int call_next_program(hook_context *ctx, int verdict)
{
	return verdict;
}
#endif

#endif
