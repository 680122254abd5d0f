/* The loop that a program writes without us: decode a frame into a warm buffer, add it up: `decode_scan COUNT CPU FRAME IMAGE`. */
#include "image.h"

static uint8_t *buffer;
static size_t count, frame_bytes;

static uint64_t round_of(uint64_t *sum)
{
    uint64_t start = nanoseconds();
    for (size_t i = 0; i < count; i++) {
        uint64_t part;
        decode(i, buffer, frame_bytes);
        touch_all(buffer, frame_bytes, &part);
        *sum += part;
    }
    return nanoseconds() - start;
}

int main(int argc, char **argv)
{
    count = number(argc, argv, 1);
    pin_to(number(argc, argv, 2));
    frame_bytes = number(argc, argv, 3);
    open_image(argc > 4 ? argv[4] : NULL, count);
    buffer = memory(frame_bytes, frame_bytes >= HUGE_PAGE);
    memset(buffer, 1, frame_bytes);
    play_calls(round_of, count);
    return 0;
}
