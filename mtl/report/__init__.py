"""The command mtl-report: runs compared, from their folders alone; no torch."""
