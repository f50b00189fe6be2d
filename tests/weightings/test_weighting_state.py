"""A weighting's state: continued bit for bit in a new object, refused for other tasks."""

import io

import pytest
import torch
from support.weighting_zoo import BUILD, LEARNED, STATEFUL, TASKS, drive, optimizer_of

import mtl.weightings


def test_every_exported_weighting_is_in_the_collection():
    exported = {value for value in vars(mtl.weightings).values() if isinstance(value, type)}
    assert {type(build(TASKS)) for build in BUILD.values()} == exported - {mtl.weightings.Weighting}


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("stop", [1, 4, 6, 8])
@pytest.mark.parametrize("name", BUILD)
def test_a_fresh_object_goes_on_bit_for_bit(name, stop):
    absent = {3: ["b"], 4: ["a", "c"], 5: TASKS, 7: ["c"]}
    first = BUILD[name](TASKS)
    optimizer = optimizer_of(first)
    whole = []
    for step in range(12):
        if step == stop:
            state = through_a_file([first.state_dict(), optimizer and optimizer.state_dict()])
        whole.append(drive(first, optimizer, step, absent=absent.get(step, ())))

    second = BUILD[name](TASKS)
    optimizer = optimizer_of(second)
    second.load_state_dict(state[0])
    if optimizer:
        optimizer.load_state_dict(state[1])
    resumed = [drive(second, optimizer, step, absent=absent.get(step, ())) for step in range(stop, 12)]
    assert resumed == whole[stop:]


@pytest.mark.parametrize("name", STATEFUL)
def test_an_object_without_the_state_does_not_go_on(name):
    """Negative control: the weights of the test above do depend on the state."""
    first, second = BUILD[name](TASKS), BUILD[name](TASKS)
    optimizer = optimizer_of(first)
    for step in range(8):
        drive(first, optimizer, step)
    assert drive(first, optimizer, 8) != drive(second, None, 8)


@pytest.mark.parametrize("name", STATEFUL)
@pytest.mark.parametrize("others", [["a", "b"], ["a", "b", "c", "d"], ["b", "a", "c"]], ids="+".join)
def test_the_state_of_other_tasks_is_refused(name, others):
    state = BUILD[name](others).state_dict()
    with pytest.raises(ValueError, match=rf"has {len(others)} tasks .*, but the run has 3 \(a, b, c\)"):
        BUILD[name](TASKS).load_state_dict(state)


@pytest.mark.parametrize("name", STATEFUL)
def test_nothing_learned_is_left_out_of_the_state(name):
    """All tensors of the object are in the state, except those that follow from the constructor's arguments."""
    weighting = BUILD[name](TASKS)
    tensors = {key for key, _ in (*weighting.named_buffers(), *weighting.named_parameters())}
    given = {"min_losses", "log_preference"}
    assert tensors - given == {key for key in weighting.state_dict() if not key.endswith("_extra_state")}


@pytest.mark.parametrize("name", [name for name in STATEFUL if name != "random"])
def test_an_absent_task_keeps_its_state(name):
    weighting = BUILD[name](TASKS)
    optimizer = optimizer_of(weighting)
    for step in range(6):  # two epochs
        drive(weighting, optimizer, step)
    before = entries(weighting, name)
    for step in range(6, 10):  # a whole epoch without it, and more
        drive(weighting, optimizer, step, absent=["b"])
    after = entries(weighting, name)
    assert {key: value[1] for key, value in after.items()} == {key: value[1] for key, value in before.items()}
    if name != "stch":  # whose nadir stands from the end of warm-up
        assert after != before


def entries(weighting, name):
    """The state, K numbers each, without the losses of the current epoch and step."""
    if name in LEARNED:
        return {"parameters": [parameter.item() for parameter in weighting.parameters()]}
    passing = ("sums", "counts" if name != "famo" else "", "before", "min_losses", "current" if name == "dwa" else "")
    return {k: v.tolist() for k, v in weighting.named_buffers() if not k.endswith(tuple(p for p in passing if p))}


@pytest.mark.parametrize("name", STATEFUL)
def test_a_step_without_any_label_teaches_nothing(name):
    weighting = BUILD[name](TASKS)
    optimizer = optimizer_of(weighting)
    for step in range(4):
        drive(weighting, optimizer, step)
    before = tensors_of(weighting)
    drive(weighting, optimizer, 4, absent=TASKS)
    changed = {key for key, value in tensors_of(weighting).items() if not torch.equal(value, before[key])}
    assert changed == {"random": {"current"}, "famo": {"before"}}.get(name, set())


def tensors_of(weighting):
    state = {key: value for key, value in weighting.state_dict().items() if isinstance(value, torch.Tensor)}
    return {key: value.nan_to_num(nan=-1.0).clone() for key, value in state.items()}


@pytest.mark.parametrize("name", [name for name in STATEFUL if name not in (*LEARNED, "random")])
def test_a_loss_that_is_not_finite_teaches_nothing(name):
    weighting, other = BUILD[name](TASKS), BUILD[name](TASKS)
    for step in range(8):
        drive(weighting, None, step)
        drive(other, None, step)
    gram = torch.diag(torch.tensor([1.0, torch.inf, 4.0]).double())
    losses = {"a": torch.tensor(1.0), "b": torch.tensor(torch.nan), "c": torch.tensor(2.0)}
    without = {task: loss for task, loss in losses.items() if task != "b"}
    weighting.observe(losses, gram)
    other.observe(without, torch.diag(torch.tensor([1.0, 4.0]).double()))
    weighting.observe_after_update(losses)
    other.observe_after_update(without)
    for step in range(8, 12):
        weights = drive(weighting, None, step)
        assert weights == drive(other, None, step)
        assert all(0 < weight < 100 for weight in weights.values())


@pytest.mark.parametrize("name", BUILD)
def test_weights_are_scalars_without_a_graph(name):
    weighting = BUILD[name](TASKS)
    losses = {task: torch.tensor(1.5) for task in TASKS}
    for dtype in (torch.float32, torch.float64):
        losses = {task: torch.tensor(1.5, dtype=dtype) for task in TASKS}
        if weighting.needs_all_losses:
            weights = weighting.weights(losses)
            assert list(weights) == TASKS
            assert all(w.shape == () and not w.requires_grad for w in weights.values())
        else:
            scaled = weighting("b", losses["b"])
            assert scaled.shape == () and scaled.dtype == dtype
    assert all(p.dtype == torch.float32 for p in weighting.parameters())
    assert bool(list(weighting.parameters())) == (name in LEARNED)


@pytest.mark.parametrize("name", [name for name in BUILD if not BUILD[name](TASKS).needs_all_losses])
def test_a_weighting_that_needs_one_loss_says_so(name):
    with pytest.raises(TypeError, match="call it with a task and its loss"):
        BUILD[name](TASKS).weights({"a": torch.tensor(1.0)})


@pytest.mark.parametrize("name", ["gls", "famo", "stch"])
def test_a_late_weighting_says_so(name):
    with pytest.raises(TypeError, match=r"call weights\(\)"):
        BUILD[name](TASKS)("a", torch.tensor(1.0))
