/* 2 MiB units touched one after the other; each is copied into a warm huge page, which is then moved into place.
 *
 * Nothing is allocated or cleared while the clock runs: between rounds every huge page is moved back to where it is
 * filled again. That is what a pager with a resident budget does all the time.
 */
#include "floor.h"

static uint8_t *region, *source, *staging;
static size_t units;
static int fd;

static void handler(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)context;
    size_t offset = ((uintptr_t)info->si_addr - (uintptr_t)region) & -HUGE_PAGE;
    memcpy(staging + offset, source + offset, HUGE_PAGE);
    move_in(fd, region + offset, staging + offset, HUGE_PAGE);
}

static void recycle(void)
{
    for (size_t i = 0; i < units; i++)
        move_in(fd, staging + i * HUGE_PAGE, region + i * HUGE_PAGE, HUGE_PAGE);
}

int main(int argc, char **argv)
{
    units = number(argc, argv, 1);
    size_t length = units * HUGE_PAGE;
    pin_to(number(argc, argv, 2));
    region = memory(length, 1);
    staging = memory(length, 1);
    source = numbered_memory(length);
    memset(staging, 1, length); /* the huge pages, before the range is watched */
    fd = descriptor(UFFD_FEATURE_SIGBUS);
    watch(fd, region, length);
    watch(fd, staging, length); /* a range that is moved into has to be watched */
    on_bus_error(handler);
    play(region, positions(units, HUGE_PAGE, 0), units, number(argc, argv, 3), recycle);
    return 0;
}
