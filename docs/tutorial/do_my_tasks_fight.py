r"""
Do my tasks fight?
==================

You train two tasks on one trunk, and one of them is worse than alone. Do their gradients conflict, and would a rule
help? This page goes from two losses to a fair answer. It is run when the documentation is built: what it prints and
draws is what came out.

The data ship with mtl: two handwritten digits in one image, one task each. They overlap, so that the trunk has to tell
them apart, and the trunk is small on purpose.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import mtl
from mtl.data.digits import Digits

TASKS = ["left", "right"]
data = Digits(offset=1, image_size=8)
images, labels = data.train.batch(range(6), epoch=0)

figure, axes = plt.subplots(1, 6, figsize=(8, 1.6), layout="constrained")
for axis, image, left, right in zip(axes, images, labels["left"], labels["right"], strict=True):
    axis.imshow(image[0], cmap="gray")
    axis.set(title=f"{left} and {right}", xticks=[], yticks=[])

# %%
# One trunk, two heads
# --------------------
#
# The balance layer stands between them. Without a rule it only measures: the gradients are those of the sum of the
# losses.


class Net(nn.Module):
    """A trunk of ``width`` and a linear head for each task."""

    def __init__(self, tasks, rule=None, width=10):
        super().__init__()
        self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
        self.heads = nn.ModuleDict({task: nn.Linear(width, 10) for task in tasks})
        self.balance = mtl.Balance(rule, tasks, scale="tasks" if rule is not None else 1)

    def forward(self, x):
        """The scores of every task."""
        z = self.balance(self.trunk(x))
        return {task: head(z[task]) for task, head in self.heads.items()}


# %%
# Two losses, two gradients
# -------------------------
#
# First by hand, for one batch and a fresh network: the gradient of each loss with respect to the shared features, and
# with respect to the trunk's parameters. The cosine between the two tasks' gradients is what *conflict* means: below
# zero, a small step that helps one task hurts the other.


def gradients(model, images, labels, wrt):
    """Each task's gradient as a row, ``[K, n]``."""
    z = model.trunk(images)
    rows = []
    for task, head in model.heads.items():
        loss = cross_entropy(head(z), labels[task])
        parts = torch.autograd.grad(
            loss, [z] if wrt == "features" else list(model.trunk.parameters()), retain_graph=True
        )
        rows.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(rows)


torch.manual_seed(0)
images, labels = data.train.batch(range(256), epoch=0)
model = Net(TASKS)
for wrt in ("features", "parameters"):
    rows = gradients(model, images, labels, wrt)
    cosine = torch.cosine_similarity(rows[0], rows[1], dim=0)
    print(f"{wrt:10}  D = {rows.shape[1]:4}  cosine {cosine:+.3f}  two random directions: ±{rows.shape[1] ** -0.5:.3f}")

# %%
# A cosine means something only beside what chance gives, :math:`\pm 1/\sqrt{D}` for random directions in D
# dimensions. And the two rows of the output differ: conflict at the features and conflict at the parameters are
# different things.
#
# Everything else that mtl measures follows from the same matrix of inner products:

rows = gradients(model, images, labels, "features")
for name, value in mtl.conflict_metrics(rows @ rows.T, TASKS).items():
    print(f"{name:32} {value:.3f}")

# %%
# Over the training
# -----------------
#
# One batch says little. The layer measures every step; a run of ``mtl-train`` logs the same numbers under the same
# names.

SIZE, STEPS = 64, 200
every_image, every_label = data.train.batch(range(len(data.train)), epoch=0)


def train(tasks, seed, rule=None, lr=0.01, width=10):
    """Train a network for these tasks. Returns it and the cosine in every step."""
    torch.manual_seed(seed)
    model, cosines = Net(tasks, rule, width), []
    torch.manual_seed(seed)  # of the batches, whatever the number of heads that were made
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        batch = torch.randint(len(every_image), (SIZE,))
        predictions = model(every_image[batch])
        loss = sum(cross_entropy(predictions[task], every_label[task][batch]) for task in tasks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        cosines.append(model.balance.last.metrics.get("conflict/cos_mean"))
    return model, torch.tensor(cosines) if len(tasks) > 1 else None


model, cosines = train(TASKS, seed=0)
chance = (SIZE * 10) ** -0.5
figure, axis = plt.subplots(figsize=(8, 2.6), layout="constrained")
axis.axhspan(-2 * chance, 2 * chance, color="#dddddd", label="twice what chance gives")
axis.plot(cosines, color="#1f77b4", linewidth=0.8, label="cosine of left and right at the features")
axis.set(xlabel="step", ylim=(-0.6, 0.6))
axis.legend(frameon=False, loc="lower right")
print(f"steps with a cosine below -0.05: {(cosines < -0.05).float().mean():.0%}")

# %%
# So do they fight?
# -----------------
#
# The picture cannot tell. A cosine is about one small step; the question is about the end. So train each task alone
# with the same network, and compare. Each arm gets the same learning rates, selected on the validation split; what is
# reported is the test split, and each seed has the same batches in every arm, and the same first weights of a trunk.
# The last arm asks another question: is it the direction of the steps, or the size of the trunk?


@torch.no_grad()
def accuracy(model, split):
    """The share of right answers, by task."""
    images, labels = split.batch(range(len(split)), epoch=0)
    return {task: (scores.argmax(1) == labels[task]).float().mean().item() for task, scores in model(images).items()}


def arm(tasks, rule=lambda: None, width=10, seeds=range(5), rates=(0.01, 0.03)):
    """Test accuracies of the seeds, by task, at the learning rate with the best validation accuracy."""
    found = []
    for lr in rates:
        models = [train(tasks, seed, rule(), lr, width)[0].eval() for seed in seeds]
        score = sum(sum(accuracy(model, data.val).values()) for model in models)
        found.append((score, [accuracy(model, data.test) for model in models]))
    best = max(found, key=lambda one: one[0])[1]
    return {task: torch.tensor([one[task] for one in best]) for task in tasks}


alone = arm(["left"]) | arm(["right"])
results = {
    "each alone": alone,
    "together, equal weighting": arm(TASKS),
    "together, UPGrad": arm(TASKS, mtl.rules.UPGrad),
    "together, twice as wide": arm(TASKS, width=20),
}
T = 2.776  # Student's t for five seeds: a 95 % interval is T std / sqrt(5)
for name, by_task in results.items():
    cells = [f"{task} {values.mean():.3f} ± {T * values.std() / 5**0.5:.3f}" for task, values in by_task.items()]
    print(f"{name:28}{'   '.join(cells)}")

# %%
# Differences are paired by seed, which makes their intervals narrower than those of the means:

equal = results["together, equal weighting"]
differences = {
    "sharing (equal weighting - alone)": [equal[task] - alone[task] for task in TASKS],
    "balancing (UPGrad - equal)": [results["together, UPGrad"][task] - equal[task] for task in TASKS],
    "room (twice as wide - alone)": [results["together, twice as wide"][task] - alone[task] for task in TASKS],
}
figure, axis = plt.subplots(figsize=(8, 2.6), layout="constrained")
for row, (name, values) in enumerate(differences.items()):
    for task, difference, shift, colour in zip(TASKS, values, (0.12, -0.12), ("#1f77b4", "#ff7f0e"), strict=True):
        half = T * difference.std().item() / 5**0.5
        axis.errorbar(difference.mean().item(), row + shift, xerr=half, fmt="o", color=colour, capsize=3,
                      label=task if row == 0 else None)  # fmt: skip
        print(f"{name:36}{task:6} {difference.mean():+.3f} ± {half:.3f}")
axis.axvline(0, color="black", linewidth=0.8)
axis.set(yticks=range(len(differences)), yticklabels=differences, xlabel="difference of test accuracies")
axis.margins(y=0.2)
axis.invert_yaxis()
axis.legend(frameon=False)

# %%
# How to read it
# --------------
#
# - **The first row says whether the tasks fight**: sharing a small trunk costs accuracy where it is below zero beyond
#   its interval. Whatever the cosines were, this is the number that counts.
# - **The second row says whether a rule helps.** An interval that covers zero is no finding, in either direction.
# - **The third row asks whether the trunk was too small.** Where room helps and a rule does not, the tasks compete for
#   the trunk's *capacity* and not for the direction of its steps: a wider trunk, or an architecture with parts of its
#   own for each task, is the remedy. Gradients conflict in such a trunk all the time, and no rule can mend it.
#
# The same with the command line, on larger networks, with static weights among the arms and a report of everything:
#
# .. code-block:: text
#
#     mtl-train -m name=fight data.offset=1 strategy=detached,upgrad optimizer.lr=1e-3,3e-3 seed=0,1,2
#     mtl-train -m name=fight data.offset=1 tasks=[left],[right] optimizer.lr=1e-3,3e-3 seed=0,1,2
#     mtl-report outputs/fight --tune optimizer.lr
#
# Go on with :doc:`/guide/conflict`, :doc:`/guide/choose` and :doc:`/guide/compare`.
