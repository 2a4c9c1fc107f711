"""A stand-in for S3, as nothing that speaks its protocol for real comes as a package."""

import boto3
from moto.server import ThreadedMotoServer

BUCKET = "adapters"


class Storage:
    """A stand-in for S3: moto's server, which real clients talk to."""

    def __init__(self) -> None:
        self._server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self._server.start()
        address = "http://{}:{}".format(*self._server.get_host_and_port())
        self.environment = {
            "MLFLOW_S3_ENDPOINT_URL": address,
            "AWS_ACCESS_KEY_ID": "a-name",
            "AWS_SECRET_ACCESS_KEY": "a-third-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        self._client = boto3.client(
            "s3",
            endpoint_url=address,
            region_name="us-east-1",
            aws_access_key_id="a-name",
            aws_secret_access_key="a-third-secret",  # noqa: S106 - a stand-in takes any
        )
        self._client.create_bucket(Bucket=BUCKET)

    def files(self) -> dict[str, int]:
        """Return what is there, with the sizes in bytes."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        return {one["Key"]: one["Size"] for page in pages for one in page.get("Contents", ())}

    def stop(self) -> None:
        """End it."""
        self._server.stop()
