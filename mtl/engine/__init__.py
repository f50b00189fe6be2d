"""One step on this machine: everything that a strategy must not see."""
