"""Tensors only: the cut, the tasks' gradients as rows, their Gram matrix."""
