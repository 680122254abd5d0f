/* The measured loop, the same one for the baselines and for userfault. */
#ifndef TOUCHER_H
#define TOUCHER_H

#include <stddef.h>
#include <stdint.h>
#include <time.h>

static inline uint64_t nanoseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + now.tv_nsec;
}

/* Load one byte at each of `count` positions; return the time of all, and their sum as a proof of what was there. */
static inline uint64_t touch(const volatile uint8_t *base, const uint64_t *order, size_t count, uint64_t *sum)
{
    uint64_t seen = 0;
    uint64_t start = nanoseconds();
    for (size_t i = 0; i < count; i++)
        seen += base[order[i]];
    uint64_t spent = nanoseconds() - start;
    *sum = seen;
    return spent;
}

#endif
