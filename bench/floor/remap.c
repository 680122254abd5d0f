/* Pages moved from one range to another and back: `remap BYTES CPU CALLS HUGE`. Both ranges are watched, as moving demands. */
#include "floor.h"

static uint8_t *here, *there;
static size_t length, calls;
static int fd;

static uint64_t round_trips(uint64_t *sum)
{
    uint64_t start = nanoseconds();
    for (size_t i = 0; i < calls; i += 2) {
        move_in(fd, there, here, length);
        move_in(fd, here, there, length);
    }
    uint64_t spent = nanoseconds() - start;
    for (size_t i = 0; i < length; i += 4 * KIB)
        *sum += here[i];
    return spent;
}

int main(int argc, char **argv)
{
    length = number(argc, argv, 1);
    pin_to(number(argc, argv, 2));
    calls = number(argc, argv, 3);
    int huge = number(argc, argv, 4);
    here = memory(length, huge);
    there = memory(length, huge);
    uint8_t *source = numbered_memory(length);
    memcpy(here, source, length);
    fd = descriptor(UFFD_FEATURE_SIGBUS);
    watch(fd, here, length);
    watch(fd, there, length);
    play_calls(round_trips, calls);
    return 0;
}
