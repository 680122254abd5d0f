/* 4 KiB pages touched in random order; the SIGBUS handler writes each into a page of its own and moves that into the hole. */
#include "floor.h"

#define PAGE (4 * KIB)

static uint8_t *region, *source, *staging;
static size_t length;
static int fd;

static void handler(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)context;
    size_t offset = ((uintptr_t)info->si_addr - (uintptr_t)region) & -PAGE;
    memcpy(staging, source + offset, PAGE); /* a fresh page each time: the last one was moved away */
    move_in(fd, region + offset, staging, PAGE);
}

static void evict(void)
{
    if (madvise(region, length, MADV_DONTNEED))
        die("madvise");
}

int main(int argc, char **argv)
{
    size_t pages = number(argc, argv, 1);
    length = pages * PAGE;
    pin_to(number(argc, argv, 2));
    region = memory(length, 0);
    staging = memory(PAGE, 0);
    source = numbered_memory(length);
    fd = descriptor(UFFD_FEATURE_SIGBUS);
    watch(fd, region, length);
    on_bus_error(handler);
    play(region, positions(pages, PAGE, 1), pages, number(argc, argv, 3), evict);
    return 0;
}
