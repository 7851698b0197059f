"""How a model of MLflow's registry is written in a pipeline file. Needs the standard library only."""

import re

MLFLOW_PREFIX = "models:/"
MLFLOW_REFERENCE = re.compile(
    r"models:/(?P<name>[A-Za-z0-9][\w. -]*)(@(?P<alias>[\w-]+)|/(?P<version>[1-9][0-9]{0,8}))"
)
