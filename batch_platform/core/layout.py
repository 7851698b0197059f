"""Where everything of one pipeline lies under the root.

The only place that spells folder names; nothing here reads or writes.
"""

from dataclasses import dataclass
from pathlib import Path

from batch_platform.core.data import files
from batch_platform.core.data.files import Location
from batch_platform.settings import Settings


@dataclass(frozen=True)
class Layout:
    """The folders of one pipeline.

    Attributes:
        root: the platform's root, a folder or a prefix of a bucket.
        pipeline: the pipeline's name.
    """

    root: Location
    pipeline: str

    @classmethod
    def of(cls, settings: Settings, pipeline: str) -> "Layout":
        return cls(settings.root, pipeline)

    def table(self, name: str) -> Location:
        return self.root / "lake" / self.pipeline / name

    def staging(self, partition_key: str) -> Location:
        return self.root / "staging" / self.pipeline / _folder(partition_key)

    def scratch(self, partition_key: str) -> Path:
        """Files in the making, on this machine; nothing there is needed again by another process."""
        return files.scratch(self.root) / self.pipeline / _folder(partition_key)

    def receipts(self, table: str, partition_key: str) -> Location:
        return self.root / "receipts" / self.pipeline / table / _folder(partition_key)

    def outcome(self, partition_key: str) -> Location:
        return self.root / "receipts" / self.pipeline / "outcomes" / f"{_folder(partition_key)}.json"

    def report(self, partition_key: str) -> Location:
        return self.root / "reports" / self.pipeline / _folder(partition_key)

    @property
    def trend(self) -> Location:
        return self.root / "reports" / self.pipeline / "trend.html"

    @property
    def monitoring(self) -> Location:
        return self.root / "monitoring" / self.pipeline


def _folder(partition_key: str) -> str:
    # Hourly keys carry a colon, which URLs and some file systems would have to escape.
    return partition_key.replace(":", "-")
