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
- ``kinds``, for images: target -> how ``examples/`` shows it; see mtl.training.examples. Optional, also without images:
  ``class_names`` (target -> names by index, of classes, labels or several numbers) and ``scales`` (target -> mean and
  deviation of standardised numbers);
- ``units``, optional: target -> the unit of its numbers, as ``m``;
- ``columns``, of tables: target -> mtl.data.columns.Column, which tells its head and its loss where none are chosen;
- ``preprocess``, optional: turns one raw input of a user into what the evaluation's splits give; the splits use the
  same object. See mtl.data.preprocess;
- ``metadata``, where it learns from its files: a dict of plain types and tensors with everything that the numbers mean,
  as the names of classes in the order of their indices, means and deviations, or a vocabulary. The constructor then
  takes ``metadata=None``: that of another run, with which the files are to be read. Checkpoints carry it;
- ``names`` and ``digest`` of the splits, optional: the samples' names, and a fingerprint of labels or text. By them a
  resumed run knows that the data are the same, and mtl-eval that no sample was trained on. See mtl.data.metadata;
- ``normalize``, for images in colour: a torchvision.transforms.v2.Normalize which the splits apply to their images. Its
  mean and deviation become those that the backbone's weights want, before the first sample is read;
- ``inputs_per_task``: true if every task has inputs of its own. Then a batch's inputs are a dict task -> inputs, and
  the data sets have ``samples(task, indices)``: the indices of a batch for which the task has a sample. Where the
  tasks' sets differ in size, mtl.data.mixture says which samples are drawn how often.
"""

SPLITS = ("train", "val", "test")
