/* Touches with work in between, and the usual server: `think_poll COUNT CPU THINK_NS`.
 *
 * One thread, poll() and then read(), and the scheduler decides where it and the toucher run. CPU is not looked at.
 */
#include "serve.h"

#include <poll.h>

#define PAGE (4 * KIB)

static uint8_t *region, *source;
static uint64_t *order;
static size_t count, think;
static int fd;

static void *serve(void *unused)
{
    (void)unused;
    struct pollfd one = {.fd = fd, .events = POLLIN};
    struct uffd_msg message;
    while (poll(&one, 1, -1) > 0) {
        if (read(fd, &message, sizeof message) != sizeof message)
            continue;
        size_t offset = (message.arg.pagefault.address - (uintptr_t)region) & -PAGE;
        copy_in(fd, region + offset, source + offset, PAGE);
    }
    die("poll");
    return NULL;
}

static uint64_t round_of(uint64_t *sum)
{
    uint64_t spent = touch_thinking(region, order, count, think, NULL, sum);
    drop(region, count * PAGE);
    return spent;
}

int main(int argc, char **argv)
{
    pthread_t server;
    count = number(argc, argv, 1);
    think = number(argc, argv, 3);
    region = memory(count * PAGE, 0);
    source = numbered_memory(count * PAGE);
    order = positions(count, PAGE, 1);
    fd = descriptor(0);
    if (fcntl(fd, F_SETFL, O_NONBLOCK)) /* without it poll() says POLLERR */
        die("fcntl");
    watch(fd, region, count * PAGE);
    if (pthread_create(&server, NULL, serve, NULL))
        die("pthread_create");
    play_calls(round_of, count);
    return 0;
}
