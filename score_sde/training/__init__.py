"""Training: state, step, loop, checkpoints, mesh."""
