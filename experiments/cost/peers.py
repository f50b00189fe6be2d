"""Placeholder until the steps of other libraries come."""


def torchjd_steps(problem):
    """None."""
    return {}


def libmtl_steps(problem):
    """None."""
    return {}
