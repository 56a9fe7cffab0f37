"""Where pictures and masks come from. Import from the modules: `data.holes` alone needs no torch."""
