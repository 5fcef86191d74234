"""Which release this is: pyproject.toml says it, and the installed package."""

from importlib import metadata
from typing import Final

#: As in SemVer, `0.1.0`.
VERSION: Final = metadata.version("stepstream")
