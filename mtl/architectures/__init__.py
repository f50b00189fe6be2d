"""What tasks share, and what each head reads of it."""
