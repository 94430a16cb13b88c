"""One module for each group of golden values; each has `make(folder)`."""

import json
from importlib.metadata import version


def made_with(*packages: str) -> dict[str, str]:
    """The versions that a file was made with, to be stored in it."""
    return {package: version(package) for package in packages}


def metadata(**about: dict) -> dict[str, str]:
    """Metadata of a safetensors file under one key; with several, their order would change from run to run."""
    return {"about": json.dumps(about)}
