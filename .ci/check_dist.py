"""Holds a wheel and an sdist against the tree that they were built from.

python .ci/check_dist.py TREE FILE...
"""

import re
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

#: What of the tree an installed Stepstream needs.
_SUFFIXES = (".py", ".sql", ".json")
_APP = "stepstream/app/"


def wanted_files(tree: Path) -> set[str]:
    """What has to be in the wheel, beside its metadata."""
    static = tree / "services/analytics_api/static"
    found = {
        f"{_APP}{file.relative_to(tree)}"
        for folder in ("services", "schemas", "migrations")
        for file in (tree / folder).rglob("*")
        if file.is_file() and (file.suffix in _SUFFIXES or file.is_relative_to(static))
    }
    found = {name for name in found if "/analytics_api/dashboard/" not in name}
    client = tree / "clients/python"
    found |= {f"{_APP}{file.relative_to(client)}" for file in (client / "stepstream_client").rglob("*.py")}
    launcher = tree / "launcher"
    return found | {str(file.relative_to(launcher)) for file in launcher.rglob("*.py")}


def problems_of_wheel(tree: Path, wheel: Path, version: str) -> list[str]:
    """What is wrong with a wheel, in words."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(f"stepstream-{version}.dist-info/METADATA").decode()
    info = f"stepstream-{version}.dist-info"
    problems = [f"{name} is not in the wheel" for name in sorted(wanted_files(tree) - names)]
    if tops := {name.partition("/")[0] for name in names} - {"stepstream", info}:
        problems.append(f"at the top of the wheel there is {', '.join(sorted(tops))}")
    strange = [n for n in names if re.search(r"(^|/)(tests?|node_modules|\.env|__pycache__)(/|$)|\.tsx?$", n)]
    problems += [f"{name} is in the wheel" for name in sorted(strange)]
    if f"{info}/licenses/LICENSE" not in names:
        problems.append("the licence is not in the wheel")
    if "\nLicense-Expression: Apache-2.0\n" not in metadata:
        problems.append("the metadata do not say the licence")
    return problems


def problems_of_sdist(sdist: Path, version: str) -> list[str]:
    """What is wrong with an sdist, in words."""
    with tarfile.open(sdist) as archive:
        names = {name.removeprefix(f"stepstream-{version}/") for name in archive.getnames()}
    wanted = {"LICENSE", "CHANGELOG.md", "README.md", "pyproject.toml", "requirements.txt", "ops/roles.sql"}
    problems = [f"{name} is not in the sdist" for name in sorted(wanted - names)]
    return problems + [f"{name} is in the sdist" for name in sorted(names) if name.startswith("tests")]


def main() -> None:
    """Ends with what is wrong."""
    tree, files = Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]]
    version = tomllib.loads((tree / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    problems = []
    if sorted(file.name for file in files) != [
        f"stepstream-{version}-py3-none-any.whl",
        f"stepstream-{version}.tar.gz",
    ]:
        problems.append(f"built were {', '.join(file.name for file in files)}")
    changes = (tree / "CHANGELOG.md").read_text("utf-8").splitlines()
    if not any(line.startswith(f"## [{version}]") for line in changes):
        problems.append(f"CHANGELOG.md has no section [{version}]")
    for file in files:
        of_wheel = file.suffix == ".whl"
        problems += problems_of_wheel(tree, file, version) if of_wheel else problems_of_sdist(file, version)
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
