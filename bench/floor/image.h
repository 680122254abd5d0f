/* The frames of an image, found one after the other; the table at its end, itself a frame to be skipped, is not needed. */
#ifndef IMAGE_H
#define IMAGE_H

#include "floor.h"

#include <sys/stat.h>
#include <zstd.h>

struct frame {
    const uint8_t *bytes;
    size_t length;
};

static struct frame *frames;
static ZSTD_DCtx *decoder;

static inline void open_image(const char *path, size_t count)
{
    struct stat about;
    int file = path ? open(path, O_RDONLY) : -1;
    if (file < 0 || fstat(file, &about))
        die("open");
    const uint8_t *at = mmap(NULL, about.st_size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, file, 0);
    if (at == MAP_FAILED)
        die("mmap");
    const uint8_t *end = at + about.st_size;
    frames = malloc(count * sizeof *frames);
    for (size_t found = 0; found < count;) {
        uint32_t magic;
        size_t length = ZSTD_findFrameCompressedSize(at, end - at);
        if (ZSTD_isError(length))
            die("a frame of the image");
        memcpy(&magic, at, sizeof magic);
        if ((magic & ZSTD_MAGIC_SKIPPABLE_MASK) != ZSTD_MAGIC_SKIPPABLE_START)
            frames[found++] = (struct frame){at, length};
        at += length;
    }
    decoder = ZSTD_createDCtx();
}

static inline void decode(size_t number, void *to, size_t bytes)
{
    if (ZSTD_decompressDCtx(decoder, to, bytes, frames[number].bytes, frames[number].length) != bytes)
        die("decoding");
}

#endif
