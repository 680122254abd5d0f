/* Written memory is given to the kernel and taken back, while it has no reason to take any: what the two calls cost.
 *
 * The memory is watched, as that of a volatile buffer is: a page that was taken would be a fault, and end this program.
 */
#include "floor.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

int main(int argc, char **argv)
{
    size_t pages = number(argc, argv, 1), length = pages * 4 * KIB;
    pin_to(number(argc, argv, 2));
    size_t repeats = number(argc, argv, 3);
    uint8_t *buffer = memory(length, 0);
    memset(buffer, 1, length);
    watch(descriptor(UFFD_FEATURE_SIGBUS), buffer, length);
    char line[16];
    puts("{\"ready\": true}");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        uint64_t spent = 0, sum = 0;
        for (size_t i = 0; i < repeats; i++) {
            uint64_t start = nanoseconds();
            if (madvise(buffer, length, MADV_FREE) || madvise(buffer, length, MADV_POPULATE_WRITE))
                die("madvise");
            spent += nanoseconds() - start;
        }
        for (size_t i = 0; i < pages; i++)
            sum += buffer[i * 4 * KIB];
        printf("{\"ns_per_touch\": %.1f, \"touches\": %zu, \"sum\": %llu}\n", (double)spent / (pages * repeats),
               pages * repeats, (unsigned long long)sum);
        fflush(stdout);
    }
    return 0;
}
