"""Small trained runs that the tests of predictions only read, each made once."""

import pytest

TINY = ["trainer.max_steps=4", "tracker=jsonl", "trainer.examples=0", "device=cpu"]
DATA = {
    "image_table": ["data.image_size=16", "data.batch_size=5"],
    "scenes": [
        "data.image_size=32", "data.size=10", "data.batch_size=2", "+head@heads.edges=fpn",
        "heads.edges.out_channels=1", "+losses.edges._target_=mtl.losses.BalancedBCE",
    ],
    "table": ["data.batch_size=32", "data.targets=[basket,amount,again]"],
    "stdlib": ["data.context=16", "data.batch_size=2", "heads=next_2", "backbone.width=16", "backbone.depth=1"],
}  # fmt: skip


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The folder of a tiny run of a data set, and its own folder of files."""
    from support.composing import configuration

    from mtl.data import image_table, table
    from mtl.train import train

    made = {}

    def run(name, *overrides):
        key = (name, *overrides)
        if key not in made:
            root = tmp_path_factory.mktemp(name)
            given = [f"data={name}", *DATA[name]]
            if name == "image_table":
                image_table.make_fixture(root / "data", rows=40)
                given.append(f"data.root={root / 'data'}")
            if name == "table":
                table.make_fixture(root / "data")
                given.append(f"data.root={root / 'data'}")
            if name == "stdlib":
                (root / "data").mkdir()
                for i in range(3):
                    (root / "data" / f"{i}.txt").write_text(f"file {i}: " + "the cat sat on the mat. " * 40)
                given.append(f"data.path={root / 'data'}")
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("mtl.runs.figures.draw_run", lambda folder: None)
                train(configuration(*TINY, *given, *overrides), root / "run")
            made[key] = root / "run"
        return made[key]

    return run
