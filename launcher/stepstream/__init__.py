"""The command `stepstream`, and all that an installed Stepstream has at the top: the one name `stepstream`.

In a wheel the application is under `stepstream/app`, which only a process of ours has on its path: `services`
and `schemas` are names that other packages may have, too. In a checkout they are beside its folder.
"""

import os
import sys


def main() -> None:
    """Runs the command line."""
    app = os.path.join(os.path.dirname(os.path.abspath(__file__)), "app")  # noqa: PTH100, PTH118, PTH120
    if os.path.isdir(app):  # noqa: PTH112
        sys.path.insert(0, app)
    from services.operator_cli import interrupts

    interrupts.begin()
    from services.operator_cli.app import main as run

    run()
