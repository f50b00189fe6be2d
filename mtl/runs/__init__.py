"""A run's folder: its record, checkpoints and W&B run, and the tables and figures of a single run."""
