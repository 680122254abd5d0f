/* A page of each frame is touched in random order, and its frame decoded and copied in: `decode_touch COUNT CPU FRAME SIGNAL IMAGE`. */
#include "image.h"
#include "serve.h"

#define PAGE (4 * KIB)

static uint8_t *region, *buffer;
static uint64_t *order;
static size_t count, frame_bytes;
static int fd;

static void decode_in(uintptr_t address)
{
    size_t offset = (address - (uintptr_t)region) & -frame_bytes;
    decode(offset / frame_bytes, buffer, frame_bytes);
    copy_in(fd, region + offset, buffer, frame_bytes);
}

static uint64_t round_of(uint64_t *sum)
{
    uint64_t spent = touch(region, order, count, sum);
    drop(region, count * frame_bytes);
    return spent;
}

int main(int argc, char **argv)
{
    count = number(argc, argv, 1);
    pin_to(number(argc, argv, 2));
    frame_bytes = number(argc, argv, 3);
    open_image(argc > 5 ? argv[5] : NULL, count);
    region = memory(count * frame_bytes, 0);
    buffer = memory(frame_bytes, 0);
    order = positions(count, frame_bytes, 1);
    for (size_t i = 0; i < count; i++) /* some page of the frame, the same on both sides */
        order[i] += order[i] / frame_bytes * 7 % (frame_bytes / PAGE) * PAGE;
    fd = served(number(argc, argv, 4), decode_in);
    watch(fd, region, count * frame_bytes);
    play_calls(round_of, count);
    return 0;
}
