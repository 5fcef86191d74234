"""`stepstream`, the operator's command line."""
