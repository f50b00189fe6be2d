"""What turns the tasks' Gram matrix into one weight a task."""
