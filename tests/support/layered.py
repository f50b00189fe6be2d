"""A model of our own tests with a Balance layer in it, and what its backward leaves; and the same by hand."""

import torch

import mtl


def layered_losses(layer, model, tasks, inputs, targets):
    """The losses of the tasks that have a target, of features that went through the layer."""
    features = layer(model.backbone(inputs))
    return {t.name: t.loss(model.heads[t.name](features[t.name]), targets[t.name]) for t in tasks if t.name in targets}


def layered_gradients(layer, model, tasks, inputs, targets, factor=1.0):
    """Every parameter's gradient (zeros if it has none) after one backward from the random state of ``gradients``."""
    model.zero_grad()
    torch.manual_seed(1)
    (factor * sum(layered_losses(layer, model, tasks, inputs, targets).values())).backward()
    return gradients_of(model)


def gradients_of(model):
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


def rows_by_hand(losses, leaves):
    """The tasks' gradients at the leaves ``[K, n]``, in float64, by one call of autograd.grad a task."""
    rows = []
    for loss in losses.values():
        own = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
        pairs = zip(leaves, own, strict=True)
        rows.append(torch.cat([(torch.zeros_like(z) if g is None else g).double().flatten() for z, g in pairs]))
    return torch.stack(rows)


def equal(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def balance(rule, tasks, **options):
    return mtl.Balance(rule, [task.name for task in tasks], **options)
