/* The measured loops, the same ones for the baselines and for userfault. */
#ifndef TOUCHER_H
#define TOUCHER_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <pthread.h>
#include <sched.h>
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

/* The same with `think` ns of work before each touch; only touches are timed. `cpu` gets where the next touch will be made. */
static inline uint64_t touch_thinking(const volatile uint8_t *base, const uint64_t *order, size_t count, uint64_t think,
                                      volatile int *cpu, uint64_t *sum)
{
    uint64_t seen = 0, spent = 0;
    for (size_t i = 0; i < count; i++) {
        uint64_t until = nanoseconds() + think;
        while (nanoseconds() < until)
            ;
        if (cpu)
            *cpu = sched_getcpu();
        uint64_t start = nanoseconds();
        seen += base[order[i]];
        spent += nanoseconds() - start;
    }
    *sum = seen;
    return spent;
}

/* Add up memory as words, in order. Times itself as `touch` does. */
static inline uint64_t touch_all(const volatile uint8_t *base, size_t length, uint64_t *sum)
{
    const uint64_t *words = (const uint64_t *)base;
    uint64_t seen = 0;
    uint64_t start = nanoseconds();
    for (size_t i = 0; i < length / sizeof *words; i++)
        seen += words[i];
    uint64_t spent = nanoseconds() - start;
    *sum = seen;
    return spent;
}

/* Several threads touch at a time, on two CPUs in turn. */
#define MOST_TOUCHERS 8
#define TOUCHING_CPUS 2

struct toucher {
    const volatile uint8_t *base;
    const uint64_t *order;
    size_t count;
    int cpu;
    pthread_barrier_t *begin;
    uint64_t start, end, sum;
};

static inline void *run_toucher(void *given)
{
    struct toucher *self = given;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(self->cpu, &set);
    sched_setaffinity(0, sizeof set, &set); /* of a CPU that is not there: the scheduler decides */
    pthread_barrier_wait(self->begin);
    self->start = nanoseconds();
    touch(self->base, self->order, self->count, &self->sum);
    self->end = nanoseconds();
    return NULL;
}

/* Thread i makes `count` touches of base[i] in the order of order[i]; returns the time from the first start to the last end. */
static inline uint64_t touch_several(size_t touchers, const uint8_t *const *base, const uint64_t *const *order, size_t count,
                                     uint64_t *sum)
{
    struct toucher list[MOST_TOUCHERS];
    pthread_t threads[MOST_TOUCHERS];
    pthread_barrier_t begin;
    uint64_t start = UINT64_MAX, end = 0;
    *sum = 0;
    pthread_barrier_init(&begin, NULL, touchers);
    for (size_t i = 0; i < touchers; i++) {
        list[i] = (struct toucher){base[i], order[i], count, i % TOUCHING_CPUS, &begin, 0, 0, 0};
        if (pthread_create(&threads[i], NULL, run_toucher, &list[i]))
            return 0;
    }
    for (size_t i = 0; i < touchers; i++) {
        pthread_join(threads[i], NULL);
        start = list[i].start < start ? list[i].start : start;
        end = list[i].end > end ? list[i].end : end;
        *sum += list[i].sum;
    }
    pthread_barrier_destroy(&begin);
    return end - start;
}

#endif
