/* A file that the page cache has is read into memory that is there: `pread_mapped COUNT CPU REPEATS FILE`, 2 MiB a call. */
#include "floor.h"

static uint8_t *buffer;
static size_t count, repeats;
static int file;

static void read_all(void)
{
    for (size_t offset = 0; offset < count * HUGE_PAGE; offset += HUGE_PAGE)
        if (pread(file, buffer + offset, HUGE_PAGE, offset) != HUGE_PAGE)
            die("pread");
}

static uint64_t round_of(uint64_t *sum)
{
    read_all(); /* the kernel may have dropped some of it since */
    uint64_t start = nanoseconds();
    for (size_t i = 0; i < repeats; i++)
        read_all();
    uint64_t spent = nanoseconds() - start;
    for (size_t i = 0; i < count; i++)
        *sum += buffer[i * HUGE_PAGE];
    return spent;
}

int main(int argc, char **argv)
{
    count = number(argc, argv, 1);
    pin_to(number(argc, argv, 2));
    repeats = number(argc, argv, 3);
    file = argc > 4 ? open(argv[4], O_RDONLY) : -1;
    if (file < 0)
        die("open");
    buffer = memory(count * HUGE_PAGE, 1);
    play_calls(round_of, count * repeats);
    return 0;
}
