/* What the baseline programs share: a clock, memory, a descriptor, and the conversation with the bench.
 *
 * A baseline says "ready" when it has set up, plays one round per line on standard input, answers each with one line of
 * JSON, and ends with its input. So the bench can take turns between a baseline and userfault within one run.
 *
 * These programs serve one thread, hold no locks and end at the first error: they show how fast it can be.
 */
#ifndef FLOOR_H
#define FLOOR_H

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "toucher.h"

#define KIB 1024ul
#define MIB (1024 * KIB)
#define HUGE_PAGE (2 * MIB)

/* Headers older than the kernel (Debian 12 has 6.1's) do not know MOVE. */
#ifndef UFFDIO_MOVE
struct uffdio_move {
    __u64 dst, src, len, mode;
    __s64 move;
};
#define UFFDIO_MOVE _IOWR(UFFDIO, 0x05, struct uffdio_move)
#endif

/* End with the name of what failed; safe in a signal handler's path because nothing is resumed after it. */
static inline void die(const char *what)
{
    fprintf(stderr, "error: %s: %s\n", what, strerror(errno));
    exit(1);
}

/* Private memory of `length` bytes at a multiple of 2 MiB, of huge pages or of none. */
static inline uint8_t *memory(size_t length, int huge)
{
    uint8_t *start = mmap(NULL, length + HUGE_PAGE, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED)
        die("mmap");
    start = (uint8_t *)(((uintptr_t)start + HUGE_PAGE - 1) & -HUGE_PAGE);
    if (madvise(start, length, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE))
        die("madvise");
    return start;
}

/* The source: every 8 bytes hold their own position, mixed, so that no two pages are alike. */
static inline uint8_t *numbered_memory(size_t length)
{
    uint64_t *words = (uint64_t *)memory(length, 0);
    for (size_t i = 0; i < length / sizeof *words; i++) {
        uint64_t mixed = i * 0x9E3779B97F4A7C15u;
        words[i] = mixed ^ mixed >> 32;
    }
    return (uint8_t *)words;
}

static inline int descriptor(uint64_t features)
{
    int fd = syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY); /* an ordinary user may have this one */
    struct uffdio_api api = {.api = UFFD_API, .features = features};
    if (fd < 0 || ioctl(fd, UFFDIO_API, &api))
        die("userfaultfd");
    return fd;
}

static inline void watch(int fd, void *start, size_t length)
{
    struct uffdio_register range = {.range = {(uintptr_t)start, length}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    if (ioctl(fd, UFFDIO_REGISTER, &range))
        die("UFFDIO_REGISTER");
}

static inline void copy_in(int fd, void *to, const void *from, size_t length)
{
    struct uffdio_copy copy = {.dst = (uintptr_t)to, .src = (uintptr_t)from, .len = length};
    if (ioctl(fd, UFFDIO_COPY, &copy))
        die("UFFDIO_COPY");
}

static inline void move_in(int fd, void *to, void *from, size_t length)
{
    struct uffdio_move move = {.dst = (uintptr_t)to, .src = (uintptr_t)from, .len = length};
    if (ioctl(fd, UFFDIO_MOVE, &move))
        die("UFFDIO_MOVE");
}

static inline void pin_to(int cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set))
        die("sched_setaffinity");
}

static inline void on_bus_error(void (*handler)(int, siginfo_t *, void *))
{
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_NODEFER};
    if (sigaction(SIGBUS, &action, NULL))
        die("sigaction");
}

static inline size_t number(int argc, char **argv, int index)
{
    if (index >= argc) {
        fprintf(stderr, "%s: too few arguments; bench/floor/README.md has them\n", argv[0]);
        exit(2);
    }
    return strtoul(argv[index], NULL, 0);
}

/* Positions 0, step, 2*step, ... below count*step, mixed by a fixed generator if `seed` is not 0. */
static inline uint64_t *positions(size_t count, size_t step, uint64_t seed)
{
    uint64_t *list = malloc(count * sizeof *list);
    if (!list)
        die("malloc");
    for (size_t i = 0; i < count; i++)
        list[i] = i * step;
    for (size_t i = count; seed && i > 1; i--) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        size_t j = (seed >> 33) % i;
        uint64_t swapped = list[i - 1];
        list[i - 1] = list[j];
        list[j] = swapped;
    }
    return list;
}

/* Play rounds until the input ends: touch all, `repeats` times. `after` empties the region, while no clock runs. */
static inline void play(const uint8_t *region, const uint64_t *order, size_t count, size_t repeats, void (*after)(void))
{
    char line[16];
    puts("{\"ready\": true}");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        uint64_t sum = 0, spent = 0;
        for (size_t i = 0; i < repeats; i++) {
            spent += touch(region, order, count, &sum);
            after();
        }
        printf("{\"ns_per_touch\": %.1f, \"touches\": %zu, \"sum\": %llu}\n", (double)spent / (count * repeats),
               count * repeats, (unsigned long long)sum);
        fflush(stdout);
    }
}

/* The same for calls instead of touches: `round` makes `calls` of them, says how long they took, and proves it with a sum. */
static inline void play_calls(uint64_t (*round)(uint64_t *sum), size_t calls)
{
    char line[16];
    puts("{\"ready\": true}");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        uint64_t sum = 0, spent = round(&sum);
        printf("{\"ns_per_call\": %.1f, \"calls\": %zu, \"sum\": %llu}\n", (double)spent / calls, calls,
               (unsigned long long)sum);
        fflush(stdout);
    }
}

#endif
