"""A data set of one's own that is not as mtl.data describes it: one sentence before anything is trained."""

from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from support.composing import configuration

from mtl import metrics
from mtl.config.build import build
from mtl.config.data_checks import check_data, check_keys, make_metrics, read_two
from mtl.errors import ConfigError


class Samples(torch.utils.data.Dataset):
    """Samples with the targets that ``make(index)`` gives."""

    def __init__(self, make, size=12):
        self.make, self.size = make, size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return torch.full((1, 8, 8), float(index)), self.make(index)


def fine(index):
    return {"c": index % 3, "y": torch.tensor([float(index)])}


class Own:
    """A data set with a class c and a number y; members, and the targets of each split, may be replaced."""

    def __init__(self, make=fine, training=None, **members):
        self.targets, self.input_info, self.batch_size = ("c", "y"), {"in_channels": 1, "image_size": 8}, 4
        self.train, self.val, self.test = Samples(training or make), Samples(make), Samples(make)
        for name, value in members.items():
            delattr(self, name) if value is None else setattr(self, name, value)

    def metrics(self, target):
        return metrics.classification(3) if target == "c" else metrics.regression()


def own_configuration(**data):
    cfg = configuration("data.batch_size=4")
    OmegaConf.set_struct(cfg, False)
    cfg.data = {"_target_": f"{__name__}.Own"} | data
    cfg.backbone = {"_target_": "torch.nn.Flatten"}
    cfg.heads = {t: {"_target_": "torch.nn.Linear", "out_features": n} for t, n in (("c", 3), ("y", 1))}
    cfg.losses = {"c": {"_target_": "torch.nn.CrossEntropyLoss"}, "y": {"_target_": "torch.nn.MSELoss"}}
    return cfg


def test_a_data_set_as_described_passes_in_silence(caplog):
    data = Own()
    check_data(data)
    check_keys(data, "val", read_two(data, "val", 0, "raise")[1])
    assert not caplog.records


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({name: None}, f"data (Own) has no member {name}; a data set has targets, metrics, input_info, batch_size")
        for name in ("targets", "input_info", "batch_size", "train", "val", "test")
    ]
    + [
        ({"test": None, "tests": 1}, "data (Own) has no member test; it has tests, and a data set has"),
        ({"targets": "c"}, "data (Own).targets='c' must be a list with the names"),
        ({"targets": ()}, "data (Own).targets=() must be a list"),
        ({"input_info": 3}, "data (Own).input_info=3 must be a dict"),
        ({"batch_size": 0}, "data (Own).batch_size=0 must be a whole number of 1 or more."),
        ({"batch_size": "8"}, "data (Own).batch_size='8' must be a whole number of 1 or more."),
        ({"train": Samples(fine, 0)}, "data (Own).train has no sample; it must have one or more."),
        ({"val": Samples(fine, 0)}, "data (Own).val has no sample"),
        ({"test": []}, "data (Own).test has no sample"),
        ({"val": iter([1])}, "data (Own).val (list_iterator) has no __len__: a split is a map-style data set."),
        ({"val": {1}}, "data (Own).val (set) has no __getitem__"),
    ],
)
def test_a_member_that_is_missing_or_empty_is_named(members, words):
    with pytest.raises(ConfigError) as caught:
        check_data(Own(**members))
    assert str(caught.value).startswith(words) and "\n" not in str(caught.value)


def test_a_plain_data_set_is_told_what_splits_it():
    with pytest.raises(ConfigError, match=r"^data \(TensorDataset\) is a data set without splits: name"):
        check_data(torch.utils.data.TensorDataset(torch.zeros(4)))


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda i: (i % 3, float(i)), "must be a dict with the keys c, y, but they are a list of 2."),
        (lambda i: i % 3, "must be a dict with the keys c, y, but they are a Tensor."),
    ],
)
def test_targets_that_are_no_dict_are_refused(split, make, words):
    data = Own(**{split: Samples(make)})
    with pytest.raises(ConfigError) as caught:
        read_two(data, split, 0, "raise")
    assert str(caught.value) == f"data.{split}: the targets of a sample {words}"


def test_a_sample_must_be_a_pair():
    data = Own(val=[{"x": 1.0}, {"x": 2.0}])
    with pytest.raises(ConfigError, match=r"data.val: a sample must be \(inputs, targets\), but it is a dict"):
        read_two(data, "val", 0, "raise")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["C", "y"], "have the key C, which is not in data.targets, and none for c; "),
        (["class", "number"], "have the key class, which is not in data.targets, and none for c, y; accepted: c, y."),
        (["c", "Y"], "have the key Y"),
    ],
)
def test_a_key_that_is_misspelt_is_an_error(keys, words):
    with pytest.raises(ConfigError) as caught:
        check_keys(Own(), "train", dict.fromkeys(keys))
    assert words in str(caught.value)


def test_a_key_that_is_longer_is_matched_by_its_name():
    with pytest.raises(ConfigError, match=r"the key colour, .* none for color; did you mean color"):
        check_keys(SimpleNamespace(targets=("color", "size")), "train", {"colour": 1, "size": 2})


def test_targets_that_may_be_meant_are_warned_of_and_others_are_not(caplog):
    check_keys(Own(), "train", {"c": 1, "y": 2, "file": 3})  # all targets, and something else
    check_keys(Own(), "train", {"c": 1})  # partly labelled
    assert not caplog.records
    check_keys(Own(), "train", {"c": 1, "file": 3})
    assert "the key file, which is not in data.targets, and the first samples have none for y" in caplog.text


def test_metrics_are_a_dict():
    with pytest.raises(
        ConfigError, match=r"data.metrics\('c'\) must give a dict of metrics by name, but gives a NoneT"
    ):
        make_metrics(SimpleNamespace(metrics=lambda target: None), "c")


def test_a_run_looks_at_training_samples_before_it_starts(monkeypatch):
    build(own_configuration())  # the negative control
    for train, words in (
        (lambda i: {"C": i % 3, "y": torch.zeros(1)}, "have the key C"),
        (lambda i: {"c": i + 3, "y": torch.zeros(1)}, "train samples: the target of c in sample 0 is 3"),
        (lambda i: (0, 1), "train samples: the targets are a list, not a dict of them"),
    ):
        monkeypatch.setattr(f"{__name__}.Own.__init__", _with_training(train))
        with pytest.raises(ConfigError) as caught:
            build(own_configuration())
        assert words in str(caught.value), caught.value


def _with_training(make, original=Own.__init__):
    return lambda self, **arguments: original(self, training=make)


def test_no_split_spins_or_stops_where_it_is_empty(monkeypatch):
    for split in ("train", "val", "test"):
        monkeypatch.setattr(f"{__name__}.Own.__init__", _with_empty(split))
        with pytest.raises(ConfigError, match=rf"data \(Own\).{split} has no sample"):
            build(own_configuration())


def _with_empty(split, original=Own.__init__):
    return lambda self, **arguments: original(self, **{split: Samples(fine, 0)})
