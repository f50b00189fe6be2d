"""The names of a table's targets, without pandas."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Names that no task can have: loss/total is the sum of the tasks' losses, Hydra reads `defaults`, and the others are
# attributes of torch.nn.ModuleDict, written out as torch takes long to import.
TAKEN = {
    "total", "defaults", "T_destination", "add_module", "apply", "bfloat16", "buffers", "call_super_init", "children",
    "clear", "compile", "cpu", "cuda", "double", "dump_patches", "eval", "extra_repr", "float", "forward", "get_buffer",
    "get_extra_state", "get_parameter", "get_submodule", "half", "ipu", "items", "keys", "load_state_dict", "modules",
    "mtia", "named_buffers", "named_children", "named_modules", "named_parameters", "parameters", "pop",
    "register_backward_hook", "register_buffer", "register_forward_hook", "register_forward_pre_hook",
    "register_full_backward_hook", "register_full_backward_pre_hook", "register_load_state_dict_post_hook",
    "register_load_state_dict_pre_hook", "register_module", "register_parameter", "register_state_dict_post_hook",
    "register_state_dict_pre_hook", "set_extra_state", "set_submodule", "share_memory", "state_dict", "to", "to_empty",
    "train", "training", "type", "update", "values", "xpu", "zero_grad",
}  # fmt: skip


def as_list(columns: str | Sequence[str]) -> list[str]:
    """A target's columns, of which one may be given as a text alone."""
    return [columns] if isinstance(columns, str) else list(columns)


def target_name(column: str) -> str:
    """The column's name as a task name: letters, digits, _ and - only, and no name that torch or Hydra has taken."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", column).strip("_") or "column"
    return f"{name}_label" if name in TAKEN else name
