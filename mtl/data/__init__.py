"""Data sets, one file each.

The object that ``data`` in the configuration names has

- ``train``, ``val``, ``test``: map-style data sets with samples ``(inputs, targets)``; ``targets`` is a dict target ->
  value. Optional: ``batch(indices, epoch)``, which reads a whole batch at once, and ``path(index)``, the file of a
  sample, for error messages;
- ``metrics(target)``: new torchmetrics metrics of a target, by name; ValueError for an unknown target;
- ``targets``: the names of all targets; the head set selects the tasks among them;
- ``input_info``: arguments for the backbone's constructor, such as ``in_channels`` and ``image_size`` of images, or
  ``vocabulary`` and ``context`` of text;
- ``batch_size``;
- ``kinds``, for images: target -> how ``examples/`` shows it, see mtl.training.examples;
- ``inputs_per_task``: true if every task has inputs of its own. Then a batch's inputs are a dict task -> inputs, and
  the data sets have ``samples(task, indices)``: the indices of a batch for which the task has a sample.
"""
