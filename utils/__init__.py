"""What every other part stands on: config, files, masks, metrics, checkpoints. Imports only itself."""
