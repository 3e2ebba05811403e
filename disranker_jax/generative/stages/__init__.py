"""The stages of DGR, one per file."""
