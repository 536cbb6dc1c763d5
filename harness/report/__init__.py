"""Leaderboards from records only: tables, plots and pages of every board, with reproducible bytes."""

from harness.report.leaderboards import FILES as FILES
from harness.report.leaderboards import INDEX as INDEX
from harness.report.leaderboards import frame as frame
from harness.report.leaderboards import report as report
