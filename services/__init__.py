"""The services of Stepstream, the algebra they share, and the command line."""
