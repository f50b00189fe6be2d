"""What the layer saw: metrics without a rule, for a log, and of a backward in parts."""

from support.layered import balance, equal, layered_gradients
from support.networks import gradients, make
from support.two_heads import strategy, two, two_losses

import mtl
from mtl.rules import Sum, UPGrad


def test_without_a_rule_it_measures_and_changes_no_bit():
    model, tasks, inputs, targets = make("tokens", 3)
    names = [task.name for task in tasks]
    layer = balance(None, tasks, every=2)
    plain = layered_gradients(layer.eval(), model, tasks, inputs, targets)
    for measured in (True, False, True):
        assert equal(plain, layered_gradients(layer.train(), model, tasks, inputs, targets))
        assert (layer.last.gram is not None) == measured
    _, result = gradients(strategy(Sum(), tasks), model, tasks, inputs, targets)
    assert layer.last.conflict == mtl.conflict_metrics(result.gram, names)
    assert layer.rule is None


def test_the_log_gets_the_runs_names_after_each_backward_that_measured():
    model, x = two(UPGrad(), every=2)
    records = []
    model.balance.log_to(records.append)
    for _ in range(3):
        sum(two_losses(model(x)).values()).backward()
    assert len(records) == 2
    assert records[-1] == model.balance.last.metrics
    assert {"conflict/cos/a~b", "conflict/norm/a", "weight/a", "weight/b"} <= set(records[-1])
    assert all(isinstance(value, int | float) for value in records[-1].values())
    model.balance.log_to(None)
    sum(two_losses(model(x)).values()).backward()
    assert len(records) == 2


def test_a_forward_sent_backward_in_parts_is_warned_of_once(caplog):
    model, x = two()
    for _ in range(2):
        losses = two_losses(model(x))
        losses["a"].backward(retain_graph=True)
        losses["b"].backward()
    assert [record.getMessage().count("b came in another backward") for record in caplog.records] == [1]
    caplog.clear()
    model, x = two()
    total = sum(two_losses(model(x)).values())
    total.backward(retain_graph=True)
    total.backward()
    two_losses(model(x))["a"].backward()
    assert not caplog.records
