/* Threads that touch one range of which a quarter may be there: `batched COUNT CPU UNIT TOUCHERS`.
 *
 * Their SIGBUS handlers copy units in; whoever finds the quarter full drops the 64 oldest by one process_madvise(), which costs
 * one flush of the other CPU's TLB instead of 64. COUNT touches are made in all.
 */
#include "serve.h"

#include <stdatomic.h>
#include <sys/uio.h>

#ifndef SYS_process_madvise
#define SYS_process_madvise 440
#endif
#define BATCH 64

enum { ABSENT, FILLING, PRESENT };

static uint8_t *region, *source;
static uint64_t *order;
static size_t count, unit, resident, touchers, *ring, head, tail;
static _Atomic unsigned char *state;
static pthread_spinlock_t lock;
static int fd, self;

/* Take the oldest units off the ring if there are too many. */
static size_t oldest(size_t *list)
{
    size_t taken = 0;
    pthread_spin_lock(&lock);
    if (tail - head >= resident)
        while (taken < BATCH && head != tail)
            list[taken++] = ring[head++ % count];
    pthread_spin_unlock(&lock);
    return taken;
}

static void drop_oldest(void)
{
    size_t list[BATCH], taken = oldest(list);
    struct iovec ranges[BATCH];
    for (size_t i = 0; i < taken; i++)
        ranges[i] = (struct iovec){region + list[i] * unit, unit};
    if (taken && syscall(SYS_process_madvise, self, ranges, taken, MADV_DONTNEED, 0) < 0)
        die("process_madvise");
    for (size_t i = 0; i < taken; i++)
        atomic_store(&state[list[i]], ABSENT);
}

static void copy_unit(uintptr_t address)
{
    size_t number = (address - (uintptr_t)region) / unit;
    unsigned char expected = ABSENT;
    if (!atomic_compare_exchange_strong(&state[number], &expected, FILLING))
        return; /* another thread is at it: the instruction asks again */
    drop_oldest();
    copy_in(fd, region + number * unit, source + number * unit, unit);
    atomic_store(&state[number], PRESENT);
    pthread_spin_lock(&lock);
    ring[tail++ % count] = number;
    pthread_spin_unlock(&lock);
}

static uint64_t round_of(uint64_t *sum)
{
    const uint8_t *bases[MOST_TOUCHERS];
    const uint64_t *orders[MOST_TOUCHERS];
    for (size_t i = 0; i < touchers; i++) {
        bases[i] = region;
        orders[i] = order + i * (count / touchers);
    }
    return touch_several(touchers, bases, orders, count / touchers, sum);
}

int main(int argc, char **argv)
{
    count = number(argc, argv, 1);
    pin_to(number(argc, argv, 2));
    unit = number(argc, argv, 3);
    touchers = number(argc, argv, 4);
    if (touchers > MOST_TOUCHERS)
        return 2;
    resident = count / 4 ? count / 4 : 1;
    region = memory(count * unit, 0);
    source = numbered_memory(count * unit);
    order = positions(count, unit, 1);
    ring = malloc(count * sizeof *ring);
    state = calloc(count, 1);
    pthread_spin_init(&lock, 0);
    self = syscall(SYS_pidfd_open, getpid(), 0);
    fd = served(1, copy_unit);
    watch(fd, region, count * unit);
    play_calls(round_of, count);
    return 0;
}
