"""``lordfast profile``: run the real code of a command for a few steps and say where its time goes.

May import everything up to defense, and report; imported by the command line.
"""

from lordfast.report.profile.jobs import JOBS
from lordfast.report.profile.run import run_profile

__all__ = ["JOBS", "run_profile"]
