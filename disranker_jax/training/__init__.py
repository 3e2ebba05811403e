"""The training loop, its feeds, optimizers, checkpoints and logs."""
