"""What a run leaves for people: report.json, report.html, the table at the end, and comparisons of runs."""

from compressor.report.heat_map import heat_map_svg
from compressor.report.run_report import read_report, summarize_run, write_report

__all__ = ["heat_map_svg", "read_report", "summarize_run", "write_report"]
