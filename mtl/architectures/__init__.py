"""Architectures: what tasks share, and what each head reads of it. One file per architecture."""
