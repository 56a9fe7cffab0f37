"""What every other part stands on: config, files, masks, metrics, checkpoints. Imports nothing of the project but itself."""
