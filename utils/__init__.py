"""What all other packages use: config, errors, files, checkpoints, processes. Imports no other package."""
