"""Where everything of one pipeline lies under the root.

The only place that spells folder names; nothing here reads or writes.
"""

from dataclasses import dataclass
from pathlib import Path

from batch_platform.settings import Settings


@dataclass(frozen=True)
class Layout:
    """The folders of one pipeline.

    Attributes:
        root: the platform's root folder.
        pipeline: the pipeline's name.
    """

    root: Path
    pipeline: str

    @classmethod
    def of(cls, settings: Settings, pipeline: str) -> "Layout":
        return cls(settings.root, pipeline)

    def table(self, name: str) -> Path:
        return self.root / "lake" / self.pipeline / name

    def staging(self, partition_key: str) -> Path:
        return self.root / "staging" / self.pipeline / _folder(partition_key)

    def receipts(self, table: str, partition_key: str) -> Path:
        return self.root / "receipts" / self.pipeline / table / _folder(partition_key)

    def outcome(self, partition_key: str) -> Path:
        return self.root / "receipts" / self.pipeline / "outcomes" / f"{_folder(partition_key)}.json"

    def report(self, partition_key: str) -> Path:
        return self.root / "reports" / self.pipeline / _folder(partition_key)

    @property
    def monitoring(self) -> Path:
        return self.root / "monitoring" / self.pipeline


def _folder(partition_key: str) -> str:
    # Hourly keys carry a colon, which URLs and some file systems would have to escape.
    return partition_key.replace(":", "-")
