"""`disranker plan`: a stage's real step, compiled for a TPU slice on a machine without one."""
