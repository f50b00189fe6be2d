import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from mtl.engine.engine import Engine
from mtl.evaluate import evaluate_checkpoint
from mtl.losses import TokenCrossEntropy
from mtl.model import MultiTaskModel
from mtl.runs.files import read_metrics
from mtl.runs.terminal import only_metrics
from mtl.tasks import Task
from mtl.training.evaluation import evaluate


@pytest.mark.parametrize("weights", [[], ["losses.left.weight={_target_: torch.ones, _args_: [10]}"]])
def test_a_checkpoint_alone_reproduces_its_metrics_to_the_last_bit(train_tiny, weights):
    folder = train_tiny("trainer.max_steps=6", *[f"+{w}" for w in weights])
    best = folder / "checkpoints" / "best.pt"
    alone = best.rename(folder.parent / "alone.pt")
    test = read_metrics(folder, "test")[0]
    val = next(row for row in read_metrics(folder, "val") if row["step"] == test["step"])
    assert evaluate_checkpoint(alone, "test") == only_metrics(test)
    assert evaluate_checkpoint(alone, "val") == only_metrics(val)
    assert only_metrics(test) != only_metrics(val)


def test_the_command(train_tiny, forked):
    folder = train_tiny()
    done = forked("mtl.evaluate", str(folder), "--split", "val")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().splitlines()
    best = min(read_metrics(folder, "val"), key=lambda row: row["loss/total"])
    assert json.loads(lines[-1]) == only_metrics(best)
    words = f"best.pt: step {best['step']}, the best so far by loss/total = {best['loss/total']:.6g} on val"
    assert lines[0] == f"{folder / 'checkpoints'}/{words}"
    assert lines[1].split() == ["best.pt:", "val", "loss", "accuracy"]


def test_a_checkpoint_by_itself_chooses_no_other_code(train_tiny, tmp_path):
    """Not a function of torch that loads a pickle, nor a class of another package; the run's own config.yaml may."""
    from mtl.evaluate import evaluate_checkpoint
    from mtl.runs import checkpoint

    mine = ["~backbone", "+backbone._target_=support.networks.Tiny", "data.image_size=8"]
    folder = train_tiny(*mine)
    assert evaluate_checkpoint(folder / "checkpoints" / "best.pt", "test")
    content = checkpoint.load(folder / "checkpoints" / "best.pt")
    alone = tmp_path / "alone.pt"
    checkpoint.save(alone, content)
    with pytest.raises(ValueError, match=r"names support\.networks\.Tiny, and a checkpoint by itself may name classes"):
        evaluate_checkpoint(alone, "test")
    content["config"]["data"] = {"_target_": "torch.load", "f": str(alone), "weights_only": False}
    for path in (alone, folder / "checkpoints" / "best.pt"):
        checkpoint.save(path, content)
        with pytest.raises(ValueError, match=r"names (support|torch\.load)"):
            evaluate_checkpoint(path, "test")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.pt"], "mtl-eval: There is no checkpoint nowhere.pt; a run's folder is outputs/"),
        (["broken.pt"], "mtl-eval: broken.pt cannot be read as a checkpoint:"),
    ],
)
def test_a_checkpoint_that_cannot_be_read_is_one_sentence(forked, tmp_path, arguments, message):
    (tmp_path / "broken.pt").write_text("text")
    done = forked("mtl.evaluate", *arguments)
    assert done.returncode != 0 and done.stderr.startswith(message) and "Traceback" not in done.stderr


WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; sys.argv = {argv}; from mtl.evaluate import main; main()"


@pytest.mark.parametrize(
    ("there", "answer"), [(False, "There is no checkpoint x.pt; a run's folder is "), (True, "import of torch halted")]
)
def test_a_path_that_does_not_exist_is_answered_without_torch(tmp_path, there, answer):
    """And one that exists is not: the negative control."""
    if there:
        (tmp_path / "x.pt").touch()
    script = WITHOUT_TORCH.format(argv=["mtl-eval", "x.pt"])
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and answer in done.stderr


def test_a_batchs_loss_counts_by_its_labels():
    """The loss is the mean over all labels, not over samples: as if all batches were one."""
    torch.manual_seed(0)
    model = MultiTaskModel(nn.Identity(), {"a": nn.Identity(), "b": nn.Identity()})
    tasks = [Task("a", TokenCrossEntropy()), Task("b", nn.MSELoss())]
    logits, targets = torch.randn(6, 5, 4), {"a": torch.randint(4, (6, 5)), "b": torch.randn(6, 5, 4)}
    targets["a"][:3, 1:] = -100
    batches = [
        (logits[part], {name: target[part] for name, target in targets.items()}) for part in ([0, 1, 2, 3], [4, 5])
    ]
    results = evaluate(Engine(model, tasks), batches, torch.device("cpu"))
    for task in tasks:
        assert results[f"loss/{task.name}"] == pytest.approx(task.loss(logits, targets[task.name]).item(), rel=1e-6)
    by_samples = sum(len(z) * tasks[0].loss(z, y["a"]).item() for z, y in batches) / 6
    assert by_samples != pytest.approx(results["loss/a"], rel=1e-3)  # negative control
