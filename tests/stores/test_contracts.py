"""Every source that comes with the package holds the contract of sources."""

import numpy as np
import pytest
from support.clouds import cloud_of

import userfault as uf
from userfault.testing import ChaosSource, SourceContract

pytestmark = pytest.mark.kernel


class Contract(SourceContract):
    """All of the same bytes, unless a class says other ones."""

    @pytest.fixture(autouse=True)
    def bytes_of_the_run(self, data):
        self.data = data

    def expected(self):
        return self.data


class TestBytes(Contract):
    def make_source(self):
        return uf.Bytes(self.data)


class TestZero(SourceContract):
    def make_source(self):
        return uf.Zero(10_001)

    def expected(self):
        return bytes(10_001)


class OnDisk(Contract):
    @pytest.fixture(autouse=True)
    def file(self, tmp_path, data):
        self.path = tmp_path / "bytes"
        self.path.write_bytes(data)


class TestFile(OnDisk):
    def make_source(self):
        return uf.File(self.path)


class TestImage(OnDisk):
    def make_source(self):
        packed = self.path.with_suffix(".zst")
        if not packed.exists():
            uf.image.pack(self.path, packed)
        return uf.Image(packed)


class TestImageInAnotherSource(TestImage):
    def make_source(self):
        return uf.Image(uf.Cached(uf.File(super().make_source().path), chunk="4KiB"))


class TestImageInAFile(TestImage):
    """Native in native."""

    def make_source(self):
        return uf.Image(uf.Retry(uf.File(super().make_source().path)))

    deliveries = ("thread",)  # a layer may wait, so no signal handler reads it


def fill(offset, buffer):
    buffer[:] = bytes((offset + index) * 7 % 251 for index in range(len(buffer)))


class TestFunction(SourceContract):
    def make_source(self):
        return uf.Function(fill, 50_001)

    def expected(self):
        return bytes(index * 7 % 251 for index in range(50_001))


async def fill_slowly(offset, buffer):
    import asyncio

    await asyncio.sleep(0)
    fill(offset, buffer)


class TestAsynchronousFunction(TestFunction):
    def make_source(self):
        return uf.Function(fill_slowly, 50_001)


def product(row, column):
    return row * column + 1


class TestComputed(SourceContract):
    """Elements of 12 bytes: no page begins with one."""

    def make_source(self):
        return uf.Computed(product, (77, 91), "f8,i4")

    def expected(self):
        numbers = np.fromfunction(product, (77, 91))
        whole = np.empty((77, 91), "f8,i4")
        whole["f0"] = whole["f1"] = numbers
        return whole.tobytes()


class TestCached(Contract):
    """Chunks that are no multiple of a page, and hold an odd part of the last one."""

    def make_source(self):
        return uf.Cached(uf.Function(self.fill, len(self.data)), chunk=10_007)

    def fill(self, offset, buffer):
        buffer[:] = self.data[offset : offset + len(buffer)]


class TestCachedWithoutMemory(OnDisk):
    """Then nothing is kept, and all is right."""

    def make_source(self):
        return uf.Cached(uf.File(self.path), memory=0)


class TestBlobInADirectory(OnDisk):
    def make_source(self):
        store = pytest.importorskip("obstore.store").LocalStore(self.path.parent)
        return uf.Blob(store, self.path.name)


class TestCachedOnDisk(TestBlobInADirectory):
    def make_source(self):
        cache = self.path.parent / "cache"
        return uf.Cached(super().make_source(), chunk="16KiB", memory=0, directory=cache, disk="100KiB")


class TestBlobOnTheWeb(Contract):
    @pytest.fixture(autouse=True)
    def server(self, web_server, data):
        pytest.importorskip("obstore")
        (web_server.root / "a file+more").write_bytes(data)
        self.url = f"http://127.0.0.1:{web_server.port}/a%20file+more"

    def make_source(self):
        return uf.Blob(self.url)


class TestBlobInS3(Contract):
    kind = "s3"

    @pytest.fixture(autouse=True)
    def server(self, request, data):
        pytest.importorskip("obstore")
        self.cloud = cloud_of(request, self.kind)
        self.name = self.cloud.put(data)

    def make_source(self):
        return self.cloud.blob(self.name)


class TestBlobInGoogle(TestBlobInS3):
    kind = "gs"


class TestBlobInAzure(TestBlobInS3):
    kind = "az"


class TestFsspecOnTheWeb(TestBlobOnTheWeb):
    def make_source(self):
        pytest.importorskip("aiohttp")
        return uf.Fsspec(self.url)


class TestFsspecFile(OnDisk):
    def make_source(self):
        pytest.importorskip("fsspec")
        return uf.Fsspec(f"local://{self.path}")


class TestRedis(Contract):
    @pytest.fixture(autouse=True)
    def server(self, redis_server, data):
        pytest.importorskip("redis")
        self.url = f"redis://127.0.0.1:{redis_server.port}/0/contract"
        uf.Redis.put(self.url, data, chunk=10_007)

    def make_source(self):
        return uf.Redis(self.url)


class TestServed(Contract):
    """Through another process."""

    @pytest.fixture(autouse=True)
    def pager(self, shared_pager):
        self.place = shared_pager

    def make_source(self):
        return uf.Served(self.place, "bytes")


class TestRetry(OnDisk):
    deliveries = ("thread",)

    def make_source(self):
        return uf.Retry(uf.File(self.path))


class TestDeadline(TestRetry):
    def make_source(self):
        return uf.Deadline(uf.File(self.path), "10s")


class TestChaosThatDoesNothing(OnDisk):
    def make_source(self):
        return ChaosSource(uf.File(self.path), how="short")
