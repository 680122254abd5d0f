/* A quarter of the units may be there, the oldest leaves for the next: `recycle COUNT CPU UNIT HUGE SIGNAL`.
 *
 * The oldest unit is moved out, written over and moved in where the touch was: nothing is allocated, cleared or freed. HUGE 1:
 * units of whole huge pages, touched in sequence; otherwise in random order. Each round takes up where the last one ended, so
 * that every touch is a fault. SIGNAL 0: a thread on CPU answers.
 */
#include "serve.h"

static uint8_t *region, *source, *staging;
static uint64_t *order;
static size_t count, unit, resident, oldest, *there;
static int fd;

static void replace_oldest(uintptr_t address)
{
    size_t offset = (address - (uintptr_t)region) & -unit;
    move_in(fd, staging, region + there[oldest], unit);
    memcpy(staging, source + offset, unit);
    move_in(fd, region + offset, staging, unit);
    there[oldest] = offset;
    oldest = (oldest + 1) % resident;
}

static uint64_t round_of(uint64_t *sum)
{
    return touch(region, order, count, sum);
}

/* Begin as a round ends: with the last quarter of the order. */
static void fill_quarter(int huge)
{
    uint8_t *fresh = memory(unit, huge);
    there = malloc(resident * sizeof *there);
    for (size_t i = 0; i < resident; i++) {
        there[i] = order[count - resident + i];
        memcpy(fresh, source + there[i], unit);
        move_in(fd, region + there[i], fresh, unit);
    }
}

int main(int argc, char **argv)
{
    count = number(argc, argv, 1);
    pin_to(number(argc, argv, 2));
    unit = number(argc, argv, 3);
    int huge = number(argc, argv, 4);
    resident = count / 4 ? count / 4 : 1;
    region = memory(count * unit, huge);
    staging = memory(unit, huge);
    source = numbered_memory(count * unit);
    order = positions(count, unit, !huge);
    fd = served(number(argc, argv, 5), replace_oldest);
    watch(fd, region, count * unit);
    watch(fd, staging, unit); /* a range that is moved into has to be watched */
    fill_quarter(huge);
    play_calls(round_of, count);
    return 0;
}
