"""report.html of any run folder, finished or not: what every run has in common, and what its command adds.

May import data, files and training, and the rest of report; imported by the command line.
"""

from lordfast.report.runs.page import run_page, write_report
from lordfast.report.runs.read import Run, read_run

__all__ = ["Run", "read_run", "run_page", "write_report"]
