"""Adds the licence of each component to an SBOM (CycloneDX, JSON).

    python .ci/sbom.py FILE

The licences are those of docs/licences.md, which `make lint` holds against the packages' own metadata. What
is locked for other systems than ours is not in it, does not ship, and goes without.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

LICENCES = Path(__file__).parents[1] / "docs" / "licences.md"
_ROW = re.compile(r"^\| (\S+) \| (.+?) \| Python \|$", re.MULTILINE)
_ONE = re.compile(r"[A-Za-z0-9.+-]+")


def _stated(licence: str) -> list[dict[str, Any]]:
    """A licence of SPDX, or an expression of several."""
    if _ONE.fullmatch(licence):
        return [{"license": {"acknowledgement": "declared", "id": licence}}]
    return [{"acknowledgement": "declared", "expression": licence}]


def main(file: Path) -> None:
    """Writes the file anew; the same packages and licences give the same bytes.

    Raises:
        SystemExit: a package whose licence is known is not in the SBOM.
    """
    known = {canonicalize_name(name): licence for name, licence in _ROW.findall(LICENCES.read_text("utf-8"))}
    bom = json.loads(file.read_text("utf-8"))
    for component in bom["components"]:
        licence = known.pop(canonicalize_name(component["name"]), None)
        if licence is not None:
            component["licenses"] = _stated(licence)
    if known:
        sys.exit(f"not in the SBOM, but in {LICENCES.name}: {', '.join(sorted(known))}")
    file.write_text(json.dumps(bom, indent=2, sort_keys=True) + "\n", "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
