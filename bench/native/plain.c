/*
 * The same work in plain C, for ratios: random 8-byte reads through a page-table walk of the RAM file, and memcpy out of
 * it. Reads its orders from standard input, one line each, and answers each with one line.
 *
 *   plain FILE
 *   walk ROOT LEVELS COUNT FILE-OF-ADDRESSES   ->  nanoseconds a read (best of five passes), checksum
 *   copy CHUNK TOTAL                            ->  bytes a second (best of five passes)
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static const uint8_t *ram;
static uint64_t ram_size;

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static int translate(uint64_t root, int levels, uint64_t va, uint64_t *pa)
{
	uint64_t table = root;

	for (int level = levels; level >= 1; level--) {
		int shift = 12 + 9 * (level - 1);
		uint64_t at = table + ((va >> shift) & 511) * 8;
		uint64_t entry;

		if (at + 8 > ram_size)
			return -1;
		memcpy(&entry, ram + at, 8);
		if (!(entry & 1))
			return -1;
		table = entry & 0x000ffffffffff000ull;
		if (level > 1 && level < 4 && (entry & 0x80)) {
			uint64_t mask = (1ull << shift) - 1;

			*pa = (table & ~mask) | (va & mask);
			return 0;
		}
	}
	*pa = table | (va & 4095);
	return 0;
}

static void walk(uint64_t root, int levels, size_t count, const char *file)
{
	uint64_t *addresses = malloc(count * 8);
	FILE *f = fopen(file, "rb");
	double best = 1e18;
	uint64_t sum = 0;

	if (!addresses || !f || fread(addresses, 8, count, f) != count)
		exit(1);
	fclose(f);
	for (int pass = 0; pass < 5; pass++) {
		double start = now();

		sum = 0;
		for (size_t i = 0; i < count; i++) {
			uint64_t pa, value;

			if (translate(root, levels, addresses[i], &pa) || pa + 8 > ram_size)
				continue;
			memcpy(&value, ram + pa, 8);
			sum += value;
		}
		double each = (now() - start) / count;
		if (each < best)
			best = each;
	}
	free(addresses);
	printf("%.0f %llu\n", best, (unsigned long long)sum);
}

static void copy(size_t chunk, uint64_t total)
{
	uint8_t *to = malloc(chunk);
	double best = 0;

	if (!to)
		exit(1);
	memset(to, 1, chunk);
	for (int pass = 0; pass < 5; pass++) {
		double start = now();

		for (uint64_t at = 0; at + chunk <= total && at + chunk <= ram_size; at += chunk) {
			memcpy(to, ram + at, chunk);
			__asm__ volatile("" : : "r"(to) : "memory");
		}
		double rate = total / ((now() - start) / 1e9);
		if (rate > best)
			best = rate;
	}
	free(to);
	printf("%.0f\n", best);
}

int main(int argc, char **argv)
{
	char line[4096], word[16], file[3072];
	unsigned long long a, b, c;
	struct stat st;
	int fd = argc == 2 ? open(argv[1], O_RDONLY) : -1;

	if (fd < 0 || fstat(fd, &st))
		return 1;
	ram_size = st.st_size;
	ram = mmap(NULL, ram_size, PROT_READ, MAP_SHARED, fd, 0);
	if (ram == MAP_FAILED)
		return 1;
	while (fgets(line, sizeof(line), stdin)) {
		if (sscanf(line, "%15s", word) != 1)
			return 1;
		if (!strcmp(word, "walk") && sscanf(line, "%*s %llx %llu %llu %3071s", &a, &b, &c, file) == 4)
			walk(a, b, c, file);
		else if (!strcmp(word, "copy") && sscanf(line, "%*s %llu %llu", &a, &b) == 2)
			copy(a, b);
		else
			return 1;
		fflush(stdout);
	}
	return 0;
}
