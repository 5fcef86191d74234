"""`python -m stepstream` is `stepstream`."""

from stepstream import main

main()
