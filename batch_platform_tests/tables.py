"""Delta tables as readers outside the platform see them."""

import polars as pl

from batch_platform.core.data.files import Location
from batch_platform.core.data.objects import ObjectPath


def scan_delta(folder: Location) -> pl.LazyFrame:
    """A table, lazily; the server of object storage is found by this process's environment."""
    options = folder.bucket.delta_options if isinstance(folder, ObjectPath) else None
    return pl.scan_delta(str(folder), storage_options=options)
