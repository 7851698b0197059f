"""S3 servers for tests: moto's for the fast ones, in a process of its own, and what a test needs to talk to one."""

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import boto3

from batch_platform_tests.project import free_port, wait_for

_MOTO = """
import logging, sys
from moto.server import main
logging.getLogger("werkzeug").setLevel(logging.ERROR)
main(["-H", "127.0.0.1", "-p", sys.argv[1]])
"""
REGION = "us-east-1"
KEY, SECRET = "testkey", "testsecret"


@contextmanager
def moto_s3() -> Iterator[str]:
    """Moto's S3 server, which keeps everything in memory; yields its address."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-c", _MOTO, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        endpoint = f"http://127.0.0.1:{port}"
        wait_for(lambda: _answers(endpoint, process), "moto")
        yield endpoint
    finally:
        process.kill()
        process.wait()


def _answers(endpoint: str, process: "subprocess.Popen[bytes]") -> bool:
    assert process.poll() is None, "moto ended"
    try:
        client(endpoint).list_buckets()
    except Exception:  # noqa: BLE001 - not up yet: whatever the client says
        return False
    return True


def client(endpoint: str):
    """A boto3 client of a server."""
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
        region_name=REGION,
    )


def new_bucket(endpoint: str) -> str:
    """Make a bucket under a name that was never used."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    client(endpoint).create_bucket(Bucket=name)
    return name


def environment(endpoint: str) -> dict[str, str]:
    """What a process needs to find the server by the standard chain."""
    return {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
