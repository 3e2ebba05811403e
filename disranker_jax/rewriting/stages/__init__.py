"""The stages of the system that rewrites queries."""
