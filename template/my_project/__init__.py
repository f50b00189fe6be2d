"""A multi-task project of your own, on mtl."""
