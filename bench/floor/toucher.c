/* The measured loop as a shared library, for ctypes. */
#include "toucher.h"

uint64_t timed_touch(const volatile uint8_t *base, const uint64_t *order, size_t count, uint64_t *sum);

uint64_t timed_touch(const volatile uint8_t *base, const uint64_t *order, size_t count, uint64_t *sum)
{
    return touch(base, order, count, sum);
}
