"""`stepstream demo`: the whole pipeline with simulated people, shown in the terminal."""

from services.demo.run import run_demo, run_on_running_services

__all__ = ["run_demo", "run_on_running_services"]
