// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The only process of a virtual machine: makes the maps, loads each program over them, runs frames through it, and
 * prints a line for each; then switches the machine off. __main__.py writes the files it reads:
 *
 * /maps: lines "type key_size value_size max_entries flags inner_entries inner_flags"; inner_entries 0: no inner map.
 * /programs: lines "name file type flags"; beside the file, if it has subprograms, their types with .btf and what
 * functions there are with .functions behind its name. /frames: 16-bit lengths, little-endian, each before its frame.
 */
#include <errno.h>
#include <linux/bpf.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define MAX_MAPS 64
#define LOG_BYTES (64 << 20)

static int maps[MAX_MAPS];

static int bpf(int command, union bpf_attr *attr)
{
	return syscall(SYS_bpf, command, attr, sizeof(*attr));
}

static int create(unsigned type, unsigned key, unsigned value, unsigned entries, unsigned flags, int inner)
{
	union bpf_attr attr = {};

	attr.map_type = type;
	attr.key_size = key;
	attr.value_size = value;
	attr.max_entries = entries;
	attr.map_flags = flags;
	attr.inner_map_fd = inner;
	return bpf(BPF_MAP_CREATE, &attr);
}

static int make_maps(void)
{
	unsigned type, key, value, entries, flags, inner_entries, inner_flags;
	FILE *file = fopen("/maps", "r");
	int count = 0;

	while (file && fscanf(file, "%u %u %u %u %u %u %u", &type, &key, &value, &entries, &flags, &inner_entries,
			      &inner_flags) == 7) {
		int inner = inner_entries ? create(BPF_MAP_TYPE_ARRAY, 4, value, inner_entries, inner_flags, 0) : 0;

		if (inner < 0) {
			printf("MAP %d inner failed: %s\n", count, strerror(errno));
			return -1;
		}
		maps[count] = create(type, key, inner_entries ? 4 : value, entries, flags, inner);
		if (maps[count] < 0) {
			printf("MAP %d failed: %s\n", count, strerror(errno));
			return -1;
		}
		count++;
	}
	return count;
}

static void relocate(struct bpf_insn *code, int count)
{
	int place;

	for (place = 0; place < count; place++)
		if (code[place].code == (BPF_LD | BPF_DW | BPF_IMM) &&
		    (code[place].src_reg == BPF_PSEUDO_MAP_FD || code[place].src_reg == BPF_PSEUDO_MAP_VALUE))
			code[place].imm = maps[code[place].imm];
}

static uint32_t verified(int program)
{
	struct bpf_prog_info info = {};
	union bpf_attr attr = {};

	attr.info.bpf_fd = program;
	attr.info.info_len = sizeof(info);
	attr.info.info = (uint64_t)(uintptr_t)&info;
	return bpf(BPF_OBJ_GET_INFO_BY_FD, &attr) ? 0 : info.verified_insns;
}

/* The verdicts, a digit each; frames that come out otherwise than they went in have a star. */
static void run_frames(int program)
{
	FILE *file = fopen("/frames", "r");
	unsigned char frame[2048], output[4096];
	uint16_t size;

	while (file && fread(&size, 2, 1, file) == 1 && fread(frame, size, 1, file) == 1) {
		union bpf_attr attr = {};

		attr.test.prog_fd = program;
		attr.test.data_in = (uint64_t)(uintptr_t)frame;
		attr.test.data_size_in = size;
		attr.test.data_out = (uint64_t)(uintptr_t)output;
		attr.test.data_size_out = sizeof(output);
		if (bpf(BPF_PROG_TEST_RUN, &attr))
			printf("!");
		else
			printf("%u%s", attr.test.retval, memcmp(frame, output, size) ? "*" : "");
	}
	if (file)
		fclose(file);
}

/* The bytes of the file with this ending. */
static size_t read_beside(const char *path, const char *ending, void *to, size_t room)
{
	char name[256];
	size_t size = 0;
	FILE *file;

	snprintf(name, sizeof(name), "%s%s", path, ending);
	file = fopen(name, "r");
	if (file) {
		size = fread(to, 1, room, file);
		fclose(file);
	}
	return size;
}

static void describe(const char *path, union bpf_attr *attr)
{
	static char types[4096], functions[4096];
	size_t size = read_beside(path, ".btf", types, sizeof(types));
	union bpf_attr btf = {};

	if (!size)
		return;
	btf.btf = (uint64_t)(uintptr_t)types;
	btf.btf_size = size;
	attr->prog_btf_fd = bpf(BPF_BTF_LOAD, &btf);
	attr->func_info = (uint64_t)(uintptr_t)functions;
	attr->func_info_rec_size = sizeof(struct bpf_func_info);
	attr->func_info_cnt = read_beside(path, ".functions", functions, sizeof(functions)) / sizeof(struct bpf_func_info);
}

static void load(const char *name, const char *path, unsigned type, unsigned flags)
{
	static struct bpf_insn code[1 << 16];
	static char *log;
	union bpf_attr attr = {};
	struct timespec before, after;
	int count = read_beside(path, "", code, sizeof(code)) / sizeof(*code), program;

	relocate(code, count);
	attr.prog_type = type;
	attr.insns = (uint64_t)(uintptr_t)code;
	attr.insn_cnt = count;
	attr.license = (uint64_t)(uintptr_t)"Dual BSD/GPL";
	attr.prog_flags = flags;
	describe(path, &attr);
	clock_gettime(CLOCK_MONOTONIC, &before);
	program = bpf(BPF_PROG_LOAD, &attr);
	clock_gettime(CLOCK_MONOTONIC, &after);
	if (program < 0) {
		if (!log)
			log = malloc(LOG_BYTES);
		attr.log_buf = (uint64_t)(uintptr_t)log;
		attr.log_size = LOG_BYTES;
		attr.log_level = 1;
		bpf(BPF_PROG_LOAD, &attr);
		size_t length = strlen(log);
		printf("PROGRAM %s rejected: %s: %s\n", name, strerror(errno), log + (length > 600 ? length - 600 : 0));
		return;
	}
	printf("PROGRAM %s loaded %u %ld ", name, verified(program),
	       (after.tv_sec - before.tv_sec) * 1000 + (after.tv_nsec - before.tv_nsec) / 1000000);
	run_frames(program);
	printf("\n");
	close(program);
}

int main(void)
{
	struct rlimit unlimited = { RLIM_INFINITY, RLIM_INFINITY };
	char name[128], path[128];
	unsigned type, flags;
	FILE *file;

	setvbuf(stdout, NULL, _IOLBF, 0);
	mount("proc", "/proc", "proc", 0, NULL);
	setrlimit(RLIMIT_MEMLOCK, &unlimited);
	printf("\nMAPS %d\n", make_maps());
	file = fopen("/programs", "r");
	while (file && fscanf(file, "%127s %127s %u %u", name, path, &type, &flags) == 4)
		load(name, path, type, flags);
	printf("DONE\n");
	sync();
	reboot(RB_POWER_OFF);
	return 0;
}
