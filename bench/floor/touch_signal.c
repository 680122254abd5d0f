/* 4 KiB pages touched in random order; the SIGBUS handler of the touching thread copies each from memory. */
#include "bus.h"

static void fill(int fd, uint8_t *hole, const uint8_t *data)
{
    copy_in(fd, hole, data, PAGE);
}
