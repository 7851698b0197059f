"""Installs the package with the pipeline files (YAML) in it; all else is declared in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=find_packages(include=["batch_platform", "batch_platform.*"]),
    package_data={"batch_platform": ["py.typed", "defs/**/*.yaml"]},
)
