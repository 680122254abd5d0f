/* Several threads on two CPUs, each touching 4 KiB pages of a range of its own: `several COUNT CPU TOUCHERS SIGNAL`.
 *
 * A userfaultfd for each, and its reader on its toucher's CPU; SIGNAL 1: the touchers' own SIGBUS handler. Every toucher makes
 * COUNT touches. CPU is where the threads are started from.
 */
#include "serve.h"

#define PAGE (4 * KIB)

static uint8_t *regions[MOST_TOUCHERS], *source;
static uint64_t *order;
static size_t count, touchers;
static int fds[MOST_TOUCHERS];

static void copy_page(uintptr_t address)
{
    size_t i = 0;
    while (address - (uintptr_t)regions[i] >= count * PAGE)
        i++;
    size_t offset = (address - (uintptr_t)regions[i]) & -PAGE;
    copy_in(fds[i], regions[i] + offset, source + offset, PAGE);
}

static uint64_t round_of(uint64_t *sum)
{
    const uint64_t *orders[MOST_TOUCHERS];
    for (size_t i = 0; i < touchers; i++)
        orders[i] = order;
    uint64_t spent = touch_several(touchers, (const uint8_t *const *)regions, orders, count, sum);
    for (size_t i = 0; i < touchers; i++)
        drop(regions[i], count * PAGE);
    return spent;
}

int main(int argc, char **argv)
{
    count = number(argc, argv, 1);
    size_t cpu = number(argc, argv, 2);
    touchers = number(argc, argv, 3);
    int by_signal = number(argc, argv, 4);
    if (touchers > MOST_TOUCHERS)
        return 2;
    source = numbered_memory(count * PAGE);
    order = positions(count, PAGE, 1);
    for (size_t i = 0; i < touchers; i++) {
        if (!by_signal)
            pin_to(i % TOUCHING_CPUS); /* the reader inherits it */
        regions[i] = memory(count * PAGE, 0);
        fds[i] = served(by_signal, copy_page);
        watch(fds[i], regions[i], count * PAGE);
    }
    pin_to(cpu);
    play_calls(round_of, count * touchers);
    return 0;
}
