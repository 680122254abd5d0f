"""One server of each kind for the whole run, with a proxy in between where something is to go wrong."""

from __future__ import annotations

import random

import pytest
from support import servers
from support.clouds import KINDS, cloud_of

from userfault.testing import FaultyProxy

LENGTH = 300_001


@pytest.fixture(scope="session")
def data():
    """Bytes of which no page is like another, nor zeros; the last page is short."""
    return random.Random(42).randbytes(LENGTH)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory):
    with servers.redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def web_server(tmp_path_factory):
    with servers.nginx(tmp_path_factory.mktemp("nginx")) as server:
        yield server


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    pytest.importorskip("obstore")
    with servers.s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="session")
def gcs_server(tmp_path_factory):
    pytest.importorskip("obstore")
    with servers.gcs_server(tmp_path_factory.mktemp("gcs")) as server:
        yield server


@pytest.fixture(scope="session")
def azure_server(tmp_path_factory):
    pytest.importorskip("obstore")
    with servers.azure_server(tmp_path_factory.mktemp("azure")) as server:
        yield server


@pytest.fixture(params=KINDS)
def cloud(request):
    """A `support.clouds.Cloud` of each kind."""
    return cloud_of(request, request.param)


@pytest.fixture
def cloud_proxy(cloud):
    with FaultyProxy("127.0.0.1", cloud.port) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def shared_pager(tmp_path_factory, data):
    with servers.pager_of_a_file(tmp_path_factory.mktemp("pager"), data) as place:
        yield place


@pytest.fixture
def web_proxy(web_server):
    with FaultyProxy("127.0.0.1", web_server.port) as proxy:
        yield proxy


@pytest.fixture
def redis_proxy(redis_server):
    with FaultyProxy("127.0.0.1", redis_server.port, raw=True) as proxy:
        yield proxy
