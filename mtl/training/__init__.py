"""The loop over steps, its state, and the evaluation."""
