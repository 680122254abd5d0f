/* 4 KiB pages touched in random order; the SIGBUS handler writes each into a page of its own and moves that into the hole. */
#include "bus.h"

static void fill(int fd, uint8_t *hole, const uint8_t *data)
{
    static uint8_t *staging;
    if (!staging)
        staging = memory(PAGE, 0);
    memcpy(staging, data, PAGE); /* a fresh page each time: the last one was moved away */
    move_in(fd, hole, staging, PAGE);
}
