/* Who answers a touch: the touching thread's SIGBUS handler, or a thread that sleeps in read() on a CPU of its choice. */
#ifndef SERVE_H
#define SERVE_H

#include "floor.h"

static void (*fill)(uintptr_t address);

static inline void fill_in_handler(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)context;
    fill((uintptr_t)info->si_addr);
}

static inline void *fill_in_reader(void *fd)
{
    struct uffd_msg message;
    while (read((int)(intptr_t)fd, &message, sizeof message) == sizeof message)
        fill(message.arg.pagefault.address);
    die("read");
    return NULL;
}

/* A descriptor whose faults `function` resolves, here or in a thread of this CPU. */
static inline int served(int by_signal, void (*function)(uintptr_t))
{
    int fd = descriptor(by_signal ? UFFD_FEATURE_SIGBUS : 0);
    pthread_t reader;
    fill = function;
    if (by_signal)
        on_bus_error(fill_in_handler);
    else if (pthread_create(&reader, NULL, fill_in_reader, (void *)(intptr_t)fd))
        die("pthread_create");
    return fd;
}

static inline void drop(void *start, size_t length)
{
    if (madvise(start, length, MADV_DONTNEED))
        die("madvise");
}

#endif
