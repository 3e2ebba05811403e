"""Sources, records, preparation, prompts and packing."""
