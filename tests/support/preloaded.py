"""Imported once by the server that test processes are forked from: torch and our modules, and nothing was run yet."""

import gc
from importlib import import_module

gc.disable()  # imports make a million objects and no garbage
for module in (
    "mtl.train",
    "mtl.training.loop",
    "mtl.backbones",
    "mtl.data.digits",
    "wandb",
    "matplotlib.backends.backend_agg",
):
    import_module(module)
gc.freeze()  # no collection in a forked process visits them, and so copies their memory
gc.enable()
