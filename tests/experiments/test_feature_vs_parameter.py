"""The study's own measurements against those of mtl-train on the same run."""

import sys
from pathlib import Path

import pytest

from mtl.runs.files import read_metrics

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "feature_vs_parameter"))


@pytest.mark.slow
@pytest.mark.parametrize(("trunk", "driver"), [("mlp", "mgda"), ("cnn", "detached")])
def test_the_audits_are_those_of_the_ordinary_loop(train_tiny, monkeypatch, trunk, driver):
    import run as study

    from mtl.strategies import audit

    monkeypatch.setattr(audit, "ALL_TASKS", 6)  # the loop would audit one pair at a time
    overrides = [*study.TRUNKS[trunk], f"strategy={driver}", "seed=2", "trainer.max_steps=600", "data.batch_size=64"]
    short = ["trainer.val_every=40", "trainer.limit_train_batches=null", "device=cpu"]
    lines = list(study.audits(trunk, driver, 2, steps=40))
    ended = {"stop_after": 40}
    folder = train_tiny("+experiment=feature_vs_parameter", *overrides, *short, **ended)
    logged = {row["step"]: row for row in read_metrics(folder, "train") if "audit/sign_agreement" in row}
    assert sorted(logged) == [20, 40]
    for line in lines:
        if line["space"] == "features":
            row = logged[line["step"]]
            for name in study.MEASURES[:-1]:
                assert line[name] == pytest.approx(row[f"audit/{name}"], rel=1e-4, abs=1e-6), name
            if driver == "mgda":
                assert line["update/mgda"] == pytest.approx(row["audit/update_cosine"], rel=1e-4)
        elif line["space"] == "features_sum":  # the negative control
            assert line["cos_correlation"] != pytest.approx(logged[line["step"]]["audit/cos_correlation"], rel=1e-3)
