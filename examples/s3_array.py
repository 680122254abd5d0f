"""An ndarray that lies in S3: only the chunks that are touched are fetched.

    python examples/s3_array.py          # starts a server of its own; needs pip install 'userfault[objects]' 'moto[server,s3]'

With a bucket of yours all of it is: array = userfault.load("s3://bucket/weights.npy")
"""

from __future__ import annotations

import io
import logging
import os

import boto3
import numpy as np
from moto.server import ThreadedMotoServer

import userfault as uf

SHAPE = (8192, 1024)


def upload(endpoint: str) -> None:
    """32 MiB of numbers, as `numpy.save` writes them."""
    file = io.BytesIO()
    np.save(file, np.arange(SHAPE[0] * SHAPE[1], dtype="f4").reshape(SHAPE))
    store = boto3.client("s3", endpoint_url=endpoint)
    store.create_bucket(Bucket="bucket")
    store.put_object(Bucket="bucket", Key="weights.npy", Body=file.getvalue())


def main() -> None:
    """Touch a few rows."""
    os.environ.update(AWS_ACCESS_KEY_ID="any", AWS_SECRET_ACCESS_KEY="any", AWS_DEFAULT_REGION="us-east-1")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    os.environ["AWS_ENDPOINT"] = "http://{}:{}".format(*server.get_host_and_port())
    try:
        upload(os.environ["AWS_ENDPOINT"])
        look()
    finally:
        server.stop()


def look() -> None:
    """What the program is about."""
    source = uf.Cached(uf.Blob("s3://bucket/weights.npy"), chunk="1MiB")  # what the URL alone means too
    weights = uf.load(source)
    with uf.checked():
        assert weights[5000, 77] == 5000 * 1024 + 77
        mean = weights[2000:2010].mean(dtype="f8")
    print(f"{weights.shape}, {weights.nbytes >> 20} MiB: mean of ten rows {mean}; fetched {source.statistics().fetched} MiB")


if __name__ == "__main__":
    main()
