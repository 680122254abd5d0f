/* Touches with work in between, by a thread that the scheduler may put anywhere: `think_follow COUNT CPU THINK_NS`.
 *
 * The server moves to the CPU that the toucher noted before its touch. Nobody who has to find out where the toucher is can be
 * faster. CPU is not looked at.
 */
#include "serve.h"

#define PAGE (4 * KIB)

static uint8_t *region, *source;
static uint64_t *order;
static size_t count, think;
static volatile int toucher_cpu;
static int fd;

static void copy_and_follow(uintptr_t address)
{
    static int cpu = -1;
    size_t offset = (address - (uintptr_t)region) & -PAGE;
    copy_in(fd, region + offset, source + offset, PAGE);
    if (cpu != toucher_cpu)
        pin_to(cpu = toucher_cpu);
}

static uint64_t round_of(uint64_t *sum)
{
    uint64_t spent = touch_thinking(region, order, count, think, &toucher_cpu, sum);
    drop(region, count * PAGE);
    return spent;
}

int main(int argc, char **argv)
{
    count = number(argc, argv, 1);
    think = number(argc, argv, 3);
    region = memory(count * PAGE, 0);
    source = numbered_memory(count * PAGE);
    order = positions(count, PAGE, 1);
    fd = served(0, copy_and_follow);
    watch(fd, region, count * PAGE);
    play_calls(round_of, count);
    return 0;
}
