"""Kinds of object stores as the tests see them: how an object is named, made and removed, and how its server is found."""

from __future__ import annotations

import http.client
import json
import random
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import pytest

import userfault as uf
from support import azure
from support.servers import KEYS, s3_options
from userfault.testing import Fault, FaultyProxy

#: What there is: the fixture of the server, and what it calls the one bucket that it has.
KINDS = {"s3": ("s3_server", "bucket"), "gs": ("gcs_server", "bucket"), "az": ("azure_server", azure.CONTAINER)}


@dataclass(frozen=True)
class Cloud:
    """One kind, with a server of it.

    Attributes:
        kind: "s3", "gs" or "az": the scheme of its URLs.
        bucket: The one that is there.
        port: Of the server.
    """

    kind: str
    bucket: str
    port: int

    def options(self, port: int | None = None) -> dict[str, Any]:
        """What a Blob needs to reach the server, or what listens at another port in front of it."""
        server = f"http://127.0.0.1:{port or self.port}"
        if self.kind == "s3":
            return s3_options(port or self.port)
        if self.kind == "gs":
            return {"base_url": server, "skip_signature": True}
        # A key signs the range too, and a proxy asks for others.
        key = {"account_key": azure.KEY} if port is None else {"sas_key": azure.SAS}
        return {"account_name": azure.ACCOUNT, "endpoint": f"{server}/{azure.ACCOUNT}", **key}

    def environment(self) -> dict[str, str]:
        """The same as variables, as every program that uses such a store is told."""
        server = f"http://127.0.0.1:{self.port}"
        if self.kind == "gs":
            return {"GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(service_account(self.port))}
        if self.kind == "az":
            keys = {"AZURE_STORAGE_ACCOUNT_NAME": azure.ACCOUNT, "AZURE_STORAGE_ACCOUNT_KEY": azure.KEY}
            return {**keys, "AZURE_STORAGE_ENDPOINT": f"{server}/{azure.ACCOUNT}"}
        keys = {"AWS_ACCESS_KEY_ID": KEYS["access_key_id"], "AWS_SECRET_ACCESS_KEY": KEYS["secret_access_key"]}
        return {**keys, "AWS_REGION": KEYS["region"], "AWS_ENDPOINT": server, "AWS_ALLOW_HTTP": "true"}

    @contextmanager
    def only_friends(self, proxy: FaultyProxy) -> Iterator[dict[str, Any]]:
        """Have the server, or the proxy before it, turn away whoever comes with these options."""
        if self.kind == "az":
            yield {**self.options(), "account_key": "YW5vdGhlcg=="}
        elif self.kind == "s3":  # moto looks at keys when it is told to, and knows none then
            self._call("POST", "/moto-api/reset-auth", b"0")
            try:
                yield self.options()
            finally:
                self._call("POST", "/moto-api/reset-auth", b"inf")
        else:
            proxy.order_always(Fault("status", status=401, methods=("GET", "HEAD")))
            yield {"base_url": f"http://127.0.0.1:{proxy.port}", "bearer_token": "long expired"}

    def url(self, name: str) -> str:
        """Of an object."""
        return f"{self.kind}://{self.bucket}/{quote(name)}"

    def blob(self, name: str, *, port: int | None = None, **options: Any) -> uf.Blob:
        """A source of an object."""
        return uf.Blob(self.url(name), **{**self.options(port), **options})

    def put(self, data: bytes, name: str | None = None) -> str:
        """Make or replace an object; its name, which is a new one unless given."""
        import obstore

        name = name or f"object {random.randrange(1 << 40)}"
        if self.kind == "gs":  # its emulator has the half of the interface for XML that reads
            self._call("POST", f"/upload/storage/v1/b/{self.bucket}/o?uploadType=media&name={quote(name, safe='')}", data)
        else:
            obstore.put(self._store(), name, data)
        return name

    def delete(self, name: str) -> None:
        """Remove an object."""
        import obstore

        if self.kind == "gs":
            self._call("DELETE", f"/storage/v1/b/{self.bucket}/o/{quote(name, safe='')}")
        elif self.kind == "az":  # obstore does it with a batch, of which the stand-in knows nothing
            self._call("DELETE", f"/{azure.ACCOUNT}/{self.bucket}/{quote(name)}?{azure.SAS}")
        else:
            obstore.delete(self._store(), name)

    def _store(self) -> Any:
        from obstore.store import from_url

        client = {"allow_http": True}
        return from_url(f"{self.kind}://{self.bucket}", **{"client_options": client, **self.options()})

    def _call(self, method: str, path: str, data: bytes | None = None) -> None:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)) as connection:
            connection.request(method, path, data, {"Content-Type": "text/plain"})
            answer = connection.getresponse()
            assert answer.status in (200, 202, 204), answer.read()


def cloud_of(request: pytest.FixtureRequest, kind: str) -> Cloud:
    """The one of a kind; its server is started where it does not run yet."""
    server, bucket = KINDS[kind]
    return Cloud(kind, bucket, request.getfixturevalue(server).port)


def service_account(port: int) -> dict[str, Any]:
    """Google's key file for a server that wants none."""
    return {
        "gcs_base_url": f"http://127.0.0.1:{port}",
        "disable_oauth": True,
        **dict.fromkeys(("client_email", "private_key", "private_key_id"), ""),
    }
