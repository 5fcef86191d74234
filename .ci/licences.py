"""Writes the licences of what Stepstream ships with, or checks them.

    python .ci/licences.py [--check]

What ships is what requirements.txt locks for Linux, what the dashboard's bundle is made from, and what
comes with the client for TypeScript. Of a package that this version of Python does not need, the licence
stays as it is in the file.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from license_expression import get_spdx_licensing
from packaging.markers import Marker
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docs" / "licences.md"
#: Of each what it is called, and its lock.
_LOCKS = {
    "dashboard": ROOT / "services" / "analytics_api" / "dashboard" / "package-lock.json",
    "TypeScript client": ROOT / "clients" / "typescript" / "package-lock.json",
}

#: Licences under which a package may be passed on with ours: permissive ones, and the MPL, whose terms end at
#: the package's own files.
ALLOWED = frozenset(
    {
        *("0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "ISC", "MIT", "MIT-0"),
        *("MPL-2.0", "PSF-2.0", "Unlicense", "Zlib"),
    }
)
#: What packages call a licence that SPDX has another name for.
_SPDX = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
}
_PYTHONS = ("3.11", "3.12", "3.13", "3.14")
_LOCKED = re.compile(r"^([A-Za-z0-9._-]+)==\S+(?: ; (.*?))? \\$", re.MULTILINE)
_ROW = re.compile(r"^\| (\S+) \| (.+?) \| (.+?) \|$", re.MULTILINE)
_HEAD = """\
# Licences of what Stepstream ships with

Written by `make generate` and checked by `make lint`, where a licence that is not allowed fails:
`.ci/licences.py` has the list of those that are. The packages of the base images, and what only tests and
`stepstream stack` use, are not in it.

| package | licence | where |
|---|---|---|
"""


def _locked() -> set[str]:
    """The packages that are installed on Linux with some version of Python."""
    found = set()
    for name, marker in _LOCKED.findall((ROOT / "requirements.txt").read_text("utf-8")):
        environments = (
            {"sys_platform": "linux", "python_version": v, "python_full_version": f"{v}.0"} for v in _PYTHONS
        )
        if not marker or any(Marker(marker).evaluate(e) for e in environments):
            found.add(str(canonicalize_name(name)))
    return found


def _spdx(text: str) -> str:
    """The licence as an expression of SPDX; several classifiers are held to all of them."""
    parts = [_SPDX.get(part.strip(), part.strip()) for part in text.split(";")]
    return " AND ".join(sorted(set(parts)))


def _of_python(known: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    names = sorted(_locked())
    command = [Path(sys.executable).with_name("pip-licenses"), "--format", "json", "--packages", *names]
    listed = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    here = {canonicalize_name(row["Name"]): _spdx(row["License"]) for row in listed}
    for name in names:
        yield name, here.get(canonicalize_name(name)) or known.get(name, "UNKNOWN"), "Python"


def _of_typescript() -> Iterator[tuple[str, str, str]]:
    for where, lock in _LOCKS.items():
        for path, package in json.loads(lock.read_text("utf-8"))["packages"].items():
            if path and not package.get("dev"):
                yield path.rpartition("node_modules/")[2], _spdx(package.get("license", "UNKNOWN")), where


def _is_allowed(licence: str) -> bool:
    spdx = get_spdx_licensing()
    parsed = spdx.parse(licence)
    # An expression holds when the licences that are allowed make it true.
    return bool(
        parsed.subs({one: spdx.TRUE for one in parsed.symbols if one.key in ALLOWED}).simplify() == spdx.TRUE
    )


def main() -> None:
    """Writes or checks."""
    before = FILE.read_text("utf-8") if FILE.exists() else ""
    known = {name: licence for name, licence, where in _ROW.findall(before) if where == "Python"}
    rows = sorted({*_of_python(known), *_of_typescript()})
    if wrong := [f"{name} ({where}): {licence}" for name, licence, where in rows if not _is_allowed(licence)]:
        sys.exit("licences that are not allowed, or not known:\n  " + "\n  ".join(wrong))
    text = _HEAD + "".join(f"| {name} | {licence} | {where} |\n" for name, licence, where in rows)
    if sys.argv[1:] == ["--check"]:
        if text != before:
            sys.exit(f"{FILE.relative_to(ROOT)} is not what ships: run `make generate`")
    else:
        FILE.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
