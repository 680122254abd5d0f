/* Begin to watch a range, and stop: `watch BYTES CPU CALLS FULL`. The clock runs for both; FULL: every page is there. */
#include "floor.h"

static uint8_t *region;
static size_t length, calls;
static int fd;

static uint64_t watch_and_not(uint64_t *sum)
{
    struct uffdio_range range = {(uintptr_t)region, length};
    uint64_t start = nanoseconds();
    for (size_t i = 0; i < calls; i += 2) {
        watch(fd, region, length);
        if (ioctl(fd, UFFDIO_UNREGISTER, &range))
            die("UFFDIO_UNREGISTER");
    }
    uint64_t spent = nanoseconds() - start;
    *sum = length;
    return spent;
}

int main(int argc, char **argv)
{
    length = number(argc, argv, 1);
    pin_to(number(argc, argv, 2));
    calls = number(argc, argv, 3);
    region = memory(length, 0);
    if (number(argc, argv, 4))
        memset(region, 1, length);
    fd = descriptor(UFFD_FEATURE_SIGBUS);
    play_calls(watch_and_not, calls);
    return 0;
}
