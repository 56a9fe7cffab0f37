"""What evaluate.py makes of the scores: means with intervals, tables, plots and a gallery; the classical methods."""
