"""Hydra jobs and sweeps: where they run, how they resume, how they end."""
