"""The machine: environment, memory, time, signals."""
