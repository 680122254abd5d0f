/* 4 KiB pages touched in random order; a thread on the same CPU, asleep in read(), copies each from memory. */
#include "floor.h"

#define PAGE (4 * KIB)

static uint8_t *region, *source;
static size_t length;
static int fd;

static void *serve(void *unused)
{
    (void)unused;
    struct uffd_msg message;
    while (read(fd, &message, sizeof message) == sizeof message) {
        if (message.event != UFFD_EVENT_PAGEFAULT)
            die("an event that is no fault");
        size_t offset = (message.arg.pagefault.address - (uintptr_t)region) & -PAGE;
        copy_in(fd, region + offset, source + offset, PAGE);
    }
    die("read");
    return NULL;
}

static void evict(void)
{
    if (madvise(region, length, MADV_DONTNEED))
        die("madvise");
}

int main(int argc, char **argv)
{
    pthread_t server;
    size_t pages = number(argc, argv, 1);
    length = pages * PAGE;
    pin_to(number(argc, argv, 2)); /* the thread inherits it */
    region = memory(length, 0);
    source = numbered_memory(length);
    fd = descriptor(0);
    watch(fd, region, length);
    if (pthread_create(&server, NULL, serve, NULL))
        die("pthread_create");
    play(region, positions(pages, PAGE, 1), pages, number(argc, argv, 3), evict);
    return 0;
}
