/* The measured loops as a shared library, for ctypes. */
#include "toucher.h"

uint64_t timed_touch(const volatile uint8_t *base, const uint64_t *order, size_t count, uint64_t *sum);
uint64_t timed_thinking(const volatile uint8_t *base, const uint64_t *order, size_t count, uint64_t think, uint64_t *sum);
uint64_t timed_several(size_t touchers, const uint8_t *const *base, const uint64_t *const *order, size_t count, uint64_t *sum);
uint64_t timed_all(const volatile uint8_t *base, size_t length, uint64_t *sum);

uint64_t timed_touch(const volatile uint8_t *base, const uint64_t *order, size_t count, uint64_t *sum)
{
    return touch(base, order, count, sum);
}

uint64_t timed_thinking(const volatile uint8_t *base, const uint64_t *order, size_t count, uint64_t think, uint64_t *sum)
{
    return touch_thinking(base, order, count, think, NULL, sum);
}

uint64_t timed_several(size_t touchers, const uint8_t *const *base, const uint64_t *const *order, size_t count, uint64_t *sum)
{
    return touch_several(touchers, base, order, count, sum);
}

uint64_t timed_all(const volatile uint8_t *base, size_t length, uint64_t *sum)
{
    return touch_all(base, length, sum);
}
