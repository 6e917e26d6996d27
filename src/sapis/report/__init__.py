"""One HTML page from records only; never computes."""

from sapis.report.page import write_report
from sapis.report.story import Report

__all__ = ["Report", "write_report"]
