"""Mistakes on the command line: one sentence each, with the name that was meant, and no folder."""

import re

import pytest
from hydra import compose, initialize_config_dir

from mtl.config import CONF
from mtl.errors import ConfigError
from mtl.jobs.composition import check_sweep, explain


def sentence(*arguments):
    """What is said of Hydra's error for this command line."""
    with pytest.raises(Exception) as caught, initialize_config_dir(str(CONF), version_base="1.3"):
        compose("config", overrides=[*arguments])
    return explain(caught.value, arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["strategy=mdga"], ["strategy=mdga: strategy has no option mdga; did you mean mgda", "-cd <their folder>"]),
        (["data=mine"], ["data=mine: data has no option mine; there are celeba, cityscapes, dataset, digits"]),
        (["data=mine.Blots"], ["a class is named as data=dataset data.dataset._target_=mine.Blots."]),
        (["backbone=mine.Net"], ["a class is named as backbone._target_=mine.Net."]),
        (["data=image_table", "data.kinds.age=class"], ["data.kinds.age is not a key", "yet: write +data.kinds.age=…"]),
        (["head@heads.left=mpl"], ["head@heads.left=mpl: head has no option mpl; did you mean mlp"]),
        (["+experiment=toyy"], ["+experiment=toyy: experiment has no option toyy; did you mean toy"]),
        (["+experimnt=toy", "strategy=null"], ["strategy=null: strategy needs one of its options, aligned_mtl"]),
        (["trainer.max_step=10"], ["trainer.max_step is not a key of", "did you mean trainer.max_steps?"]),
        (["seed=1", "trainer={max_steps: 3, max_epoch: 4}"], ["did you mean trainer.max_epochs"]),
        (["lr=0.01"], ["lr is not a key of the configuration; did you mean optimizer.lr or"]),
        (["stratgy=mgda"], ["did you mean strategy"]),
        (["~trainer.max_step"], ["did you mean trainer.max_steps"]),
        (["backbone.featuers=pooled"], ["did you mean backbone.features"]),
        (["strategy=mgda", "strategy.evry=2"], ["did you mean strategy.every"]),
        (["strategy.scael=2"], ["nor is scael an argument of mtl.strategies.Detached; did you mean +"]),
        (["backbone.optoins.x=1"], ["backbone.optoins.x is not a key", "did you mean +backbone.options=…."]),
        (["scheduler=constant", "scheduler.warmup_t=3"], ["nor is warmup_t an argument of", "scheduler has factor"]),
        (["architecture=cross_stitch", "architecture.from_stage=2"], ["nor is from_stage an argument of mtl."]),
        (["strategy=mgda", "strategy.on_solver_falure=skip"], ["did you mean +strategy.on_solver_failure=…"]),
        (["strategy.mesure=1"], ["strategy has token_chunks."]),
        (["~backbone.features"], ["backbone.features is null, and so has no value to take away."]),
        (["optimizer.backbone.lr=0"], ["optimizer.backbone.lr is not", "mean optimizer.groups.backbone.lr"]),
        (["heads.left._args_=[1]"], ["heads.left._args_ is not a key", "write +heads.left._args_=…."]),
        (["hydra.run.dirr=x"], ["mtl-train --cfg hydra prints Hydra's own keys"]),
        (["experiment=toy"], ["experiment is a group without a default: write +experiment=<option>"]),
        (["head=mlp"], ["write head@heads.<task>=<option>; its options are attention_pool, deeplab"]),
        (["trainer.max_steps=ten"], ["trainer.max_steps=ten must be a whole number."]),
        (["trainer.ema=a"], ["trainer.ema=a must be a number."]),
        (["tasks=left"], ["tasks=left must be a list: write 'tasks=[left]'."]),
        (["trainer.monitor=[a]"], ["Cannot convert 'list' to string: '['a']'."]),
        (["trainer.compile=3.5"], ["trainer.compile=3.5 must be true or false."]),
        (["+seed=1"], ["seed is a key already: leave the + out."]),
        (["trainer.max_steps"], ["trainer.max_steps cannot be read", "write key=value"]),
        (["a={b"], ["a={b cannot be read", "quotes around special characters"]),
        (["strategy=naive,mgda"], ["strategy=naive,mgda has several values: add -m", "'strategy=[naive,mgda]'"]),
        (["seed=range(3)"], ["seed=range(3) has several values: add -m"]),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence_with_what_is_meant(arguments, words):
    said = sentence(*arguments)
    for expected in words:
        assert expected in said
    assert "\n" not in said and said.endswith((".", "?"))


def test_an_own_file_is_named_where_it_is_wrong(tmp_path):
    (tmp_path / "heads").mkdir()
    (tmp_path / "heads" / "mine.yaml").write_text("defaults: [{/head@left: mpl}]\n")
    folder = f"hydra.searchpath=['file://{tmp_path}']"
    assert "heads/mine.yaml names the option mpl, which head does not have; did you mean mlp" in sentence(
        folder, "heads=mine"
    )
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "own.yaml").write_text("_target_: mine.Data\n")
    said = sentence(folder, "data=own")
    assert re.match(r"(heads|losses) follows data, and has no option own: give one, as in \1=digits", said)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["strategy=naive,mdga"], "strategy=mdga: strategy has no option mdga; did you mean mgda"),
        (["head@heads.left=mlp,linear,mpl", "seed=0,1"], "head@heads.left=mpl: head has no option mpl"),
        (["trainer.max_stps=1,2"], "did you mean trainer.max_steps"),
        (["seed=0,1", "lr=3"], "did you mean optimizer.lr"),
        (["seed=-1,0"], "seed=-1 must be from 0"),
        (["seed=range(3)", "+trainer.max_stepp=0,1"], "trainer.max_stepp is not a key of the configuration"),
    ],
)
def test_a_mistake_in_a_sweep_is_told_before_its_first_job(overrides, words):
    with pytest.raises(ConfigError) as caught:
        check_sweep(overrides, None)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["strategy=glob(m*)", "seed=range(3)"],
        ["tasks=[left],[right],null", "heads=digits", "losses=digits"],
        ["data=toy,digits", "backbone=theta,tiny_resnet"],
        ["head@heads.left=choice(mlp,linear)", "+trainer.ema=0.9"],
    ],
)
def test_a_sweep_without_a_mistake_passes(overrides):
    check_sweep(overrides, None)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["strategy=mdga"], "did you mean mgda"),
        (["seed=-1"], "seed=-1 must be from 0 to 4294967295."),
        (["-m", "strategy=naive,mdga"], "did you mean mgda"),
        (["-cd", "nowhere"], "nowhere: there is no such folder."),
        (["trainer.monitor=left/acuracy"], "trainer.monitor=left/acuracy is not a metric of this run"),
    ],
)
def test_a_mistake_leaves_no_folder(tmp_path, forked, arguments, words):
    done = forked("mtl.train", *arguments)
    assert done.returncode == 1 and words in done.stderr
    assert "Traceback" not in done.stderr and "HYDRA_FULL_ERROR" not in done.stderr
    assert not [*tmp_path.rglob("*.yaml"), *tmp_path.rglob("status.json")]


def test_the_folder_of_a_mistake_keeps_what_is_not_the_runs(tmp_path, forked):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    forked("mtl.train", "hydra.run.dir=mine", "trainer.monitor=nothing")
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_the_folder_of_cd_as_a_word_of_its_own_is_no_override(tmp_path):
    """The keys that may be meant are those of this command line, and not of the default one."""
    (tmp_path / "strategy").mkdir()
    (tmp_path / "strategy" / "mine.yaml").write_text("_target_: mtl.strategies.Naive\nown_option: 1\n")
    overrides = ["strategy=mine", "strategy.own_optoin=2"]
    with pytest.raises(Exception) as caught, initialize_config_dir(str(CONF), version_base="1.3"):
        compose("config", overrides=[f"hydra.searchpath=[file://{tmp_path}]", *overrides])
    for folder in (["-cd", str(tmp_path)], [f"--config-dir={tmp_path}"]):
        assert explain(caught.value, [*folder, *overrides]).endswith("did you mean strategy.own_option?")
