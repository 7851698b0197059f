import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa

from batch_platform.core.data.staging import stage


def test_reading_holds_a_row_group_at_a_time(tmp_path: Path) -> None:
    """Read in another process, so that its peak is that of the reading alone."""
    numbers = pa.table({f"n{place}": np.random.default_rng(place).normal(size=65_536) for place in range(20)})
    batches = numbers.to_batches() * 12  # 12 row groups of 10 MB
    (file,) = stage(batches, numbers.schema, tmp_path, "f")
    program = (
        "import sys; from pathlib import Path; import pyarrow as pa\n"
        "from batch_platform.core.data.staging import read_files\n"
        "print(sum(batch.num_rows for batch in read_files([Path(sys.argv[1])])), pa.default_memory_pool().max_memory())"
    )
    made = subprocess.run(
        [sys.executable, "-c", program, str(file.path)], capture_output=True, text=True, check=True
    )
    rows, peak = map(int, made.stdout.split())
    assert rows == 12 * 65_536
    assert file.size > 100e6
    assert peak < file.size / 2
