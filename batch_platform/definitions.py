"""What Dagster loads: every pipeline under `defs/`."""

from pathlib import Path

import dagster as dg

# In process: the stages of a run share the loaded model, and a process per step would start Python again.
defs = dg.Definitions.merge(
    dg.load_from_defs_folder(path_within_project=Path(__file__).parent),
    dg.Definitions(executor=dg.in_process_executor),
)
