/* A range of zeros is added up; the SIGBUS handler maps the zero page a unit at a time: `zeros COUNT CPU UNIT SIGNAL`. */
#include "serve.h"

static uint8_t *region;
static size_t count, unit;
static int fd;

static void map_zeros(uintptr_t address)
{
    struct uffdio_zeropage zeros = {.range = {address & -unit, unit}};
    if (ioctl(fd, UFFDIO_ZEROPAGE, &zeros))
        die("UFFDIO_ZEROPAGE");
}

static uint64_t round_of(uint64_t *sum)
{
    uint64_t spent = touch_all(region, count * unit, sum);
    drop(region, count * unit);
    return spent;
}

int main(int argc, char **argv)
{
    count = number(argc, argv, 1);
    pin_to(number(argc, argv, 2));
    unit = number(argc, argv, 3);
    region = memory(count * unit, 0);
    fd = served(number(argc, argv, 4), map_zeros);
    watch(fd, region, count * unit);
    play_calls(round_of, count);
    return 0;
}
