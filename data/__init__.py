"""Images, masks and batches. Import from the modules: `data.holes`, for one, needs no torch."""
