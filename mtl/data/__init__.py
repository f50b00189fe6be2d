"""Data sets, one file each.

What ``data`` in the configuration names is an object with

- ``train``, ``val``, ``test``: map-style data sets whose samples are ``(inputs, targets)``, targets a dict
  target -> value. A data set that can draw whole batches faster has ``batch(indices, epoch)`` as well, one whose
  samples are files ``path(index)``, for the errors;
- ``metrics(target)``: fresh torchmetrics metrics of a target, by name; ValueError for one it does not have;
- ``targets``: the names of all targets; the head set chooses which of them are tasks;
- ``input_info``: what a backbone's constructor may ask for, as ``in_channels`` and ``image_size`` of images,
  ``vocabulary`` and ``context`` of text;
- ``batch_size``;
- ``kinds``, for data of images: target -> how one is drawn in ``examples/``, see mtl.training.examples;
- ``multi_input``, true where every task has inputs of its own: then a batch's inputs are a dict task -> inputs, and the
  data sets have ``samples(task, indices)``, those of a batch's indices that the task has.
"""
