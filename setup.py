"""What pyproject.toml has no way to say: the top-level folders are the subpackages of the namespace package `stic`."""

from setuptools import find_packages, setup

FOLDERS = ("compiler", "runtime", "schedules", "targets")

setup(packages=["stic." + name for folder in FOLDERS for name in find_packages(include=(folder, f"{folder}.*"))])
