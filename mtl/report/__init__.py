"""Tables and figures of runs, made from their folders alone.

This package imports no other part of mtl but ``mtl.errors``, and no torch. The imports below load no NumPy either,
because mtl-train imports them before it answers: they are the tables and figures of a single run. The rest is the
command mtl-report.
"""

from mtl.report.figures import CELL as CELL
from mtl.report.figures import draw_run as draw_run
from mtl.report.figures import heat_map as heat_map
from mtl.report.files import read_metrics as read_metrics
from mtl.report.terminal import conflict_table as conflict_table
from mtl.report.terminal import final_report as final_report
from mtl.report.terminal import mean_conflict as mean_conflict
from mtl.report.terminal import one_line as one_line
from mtl.report.terminal import only_metrics as only_metrics
from mtl.report.terminal import overview as overview
from mtl.report.terminal import table as table
from mtl.report.terminal import task_names as task_names
from mtl.report.terminal import task_table as task_table
