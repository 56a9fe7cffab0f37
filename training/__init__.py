"""Training: the run's folder, its events and its end."""
