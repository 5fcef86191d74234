"""The command `stepstream`, and all that an installed Stepstream has at the top: the one name `stepstream`.

In a wheel the application is under `stepstream/app`, which only a process of ours has on its path: `services`
and `schemas` are names that other packages may have, too. In a checkout they are beside its folder.
"""

import sys
from pathlib import Path

_APP = Path(__file__).resolve().parent / "app"


def main() -> None:
    """Runs the command line."""
    if _APP.is_dir():
        sys.path.insert(0, str(_APP))
    from services.operator_cli.app import main as run

    run()
