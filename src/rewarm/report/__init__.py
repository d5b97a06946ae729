"""The report: figures, verdicts and one page, from the run folders alone."""
