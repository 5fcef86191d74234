"""`python -m services.operator_cli` is `stepstream`."""

from services.operator_cli.app import main

main()
