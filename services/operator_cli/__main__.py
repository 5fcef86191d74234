"""`python -m services.operator_cli` is `stepstream`."""

from services.operator_cli import interrupts

interrupts.begin()

from services.operator_cli.app import main  # noqa: E402 - the command line takes a moment

main()
