/* Pages touched in random order: the SIGBUS handler of the touching thread has `fill` bring each. For programs of one function. */
#include "floor.h"

#define PAGE (4 * KIB)

/* The data of a page are wanted in the hole. */
static void fill(int fd, uint8_t *hole, const uint8_t *data);

static uint8_t *region, *source;
static size_t length;
static int fd;

static void handler(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)context;
    size_t offset = ((uintptr_t)info->si_addr - (uintptr_t)region) & -PAGE;
    fill(fd, region + offset, source + offset);
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
    source = numbered_memory(length);
    fd = descriptor(UFFD_FEATURE_SIGBUS);
    watch(fd, region, length);
    on_bus_error(handler);
    play(region, positions(pages, PAGE, 1), pages, number(argc, argv, 3), evict);
    return 0;
}
