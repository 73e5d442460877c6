"""Encoders: what a head reads, where a prompt stands, what a text looks like, and a whole run on tiny checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from harness.backbone.load import load_backbone, meta_backbone
from harness.backbone.names import is_encoder
from harness.backbone.network import Backbone
from harness.backbone.network_kinds import num_table_positions
from harness.backbone.seal import Seal
from harness.data.examples import Example, TaskData
from harness.data.record import DataRecord
from harness.data.tasks import all_tasks
from harness.data.tasks.task import Task
from harness.data.tokenization import Encoded, encode
from harness.errors import UserError
from harness.method.export import export_result, load_export
from harness.method.layers import sublayers_of
from harness.method.linear_head import HeadReader, LinearHead, head_answers, head_targets, num_outputs
from harness.method.method import Method
from harness.method.registry import discover
from harness.results.store import load_results
from harness.runner.plan import make_plan
from harness.runner.preflight import find_misfits, lines_of
from harness.runner.run_suite import run
from harness.suite.blocks import ProtocolReference
from harness.suite.cell import Cell
from harness.suite.file_schema import Recipe
from harness.suite.make_groups import Overrides
from harness.train.batch_input import BatchInput, Rows
from harness.train.evaluate import answer_split
from harness.train.loop import BundleTrainer
from harness.train.method_fit import misfit
from harness.train.network_limits import require_positions

pytestmark = pytest.mark.usefixtures("few_rows")

Write = Callable[[str], Path]
REGISTRY = discover()
TASKS = all_tasks()
SENTIMENT, SIMILARITY = TASKS["micro_sentiment"], TASKS["micro_similarity"]
WORDS = [
    "the",
    "a",
    "film",
    "was",
    "good",
    "bad",
    "and",
    "very",
    "dull",
    "great",
    "sentence",
    "sentence1",
    "sentence2",
    ":",
    "entailment",
    "warm",
    "no",
    "yes",
]
TEXTS = ["the film was good", "a very very dull film and a bad film", "great", "[SEP] was </s> the [CLS] bad <s> film"]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
         "max_position_embeddings": 48, "type_vocab_size": 2}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": SIZES,
    "roberta": SIZES | {"max_position_embeddings": 50, "type_vocab_size": 1, "pad_token_id": 1},
    "deberta-v2": SIZES | {"type_vocab_size": 0, "relative_attention": True, "position_buckets": 8,
                           "norm_rel_ebd": "layer_norm", "share_att_key": True, "pos_att_type": ["p2c", "c2p"],
                           "position_biased_input": False, "max_relative_positions": -1},
    "modernbert": SIZES | {"local_attention": 6, "global_attn_every_n_layers": 2, "pad_token_id": 0,
                           "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3},
    "electra": SIZES | {"embedding_size": 16},
}  # fmt: skip
INPUT_SIDE = ("prompt_tuning", {"prompt_length": 3}, 0.1, 1, 4)


def make_checkpoint(family: str, folder: Path) -> Path:
    """A random network wide enough apart that positions and padding would show, and a tokenizer for WORDS."""
    first, last = ("<s>", "</s>") if family == "roberta" else ("[CLS]", "[SEP]")
    specials = ["<s>", "<pad>", "</s>", "<unk>"] if family == "roberta" else ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: index for index, word in enumerate([*specials, *WORDS, *map(str, range(10)), "."])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=specials[3 if family == "roberta" else 1]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    marks = [(first, vocabulary[first]), (last, vocabulary[last])]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{first} $A {last}", special_tokens=marks)
    names = {"unk_token": "<unk>", "pad_token": "<pad>"} if family == "roberta" else {"unk_token": "[UNK]",
                                                                                     "pad_token": "[PAD]"}  # fmt: skip
    if family == "roberta":
        names |= {"bos_token": first, "eos_token": last}
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, cls_token=first, sep_token=last, **names)
    made.save_pretrained(folder)
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, vocab_size=len(vocabulary), **FAMILIES[family])
    model = AutoModel.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """By family, a folder with a tiny checkpoint."""
    folder = tmp_path_factory.mktemp("encoders")
    return {family: str(make_checkpoint(family, folder / family)) for family in FAMILIES}


@pytest.fixture(params=FAMILIES, scope="module")
def backbone(request: pytest.FixtureRequest, checkpoints: dict[str, str]) -> Backbone:
    return load_backbone(checkpoints[request.param], "float64", "cpu")


def examples(task: Task = SENTIMENT) -> list[Example]:
    targets = ["3.4", "0.6", "4.8", "1.2"] if task.kind == "regression" else task.targets * 2
    return [Example(text, target, (target,)) for text, target in zip(TEXTS, targets, strict=False)]


def encoded(backbone: Backbone, task: Task = SENTIMENT, limit: int = 24) -> Encoded:
    return head_targets(encode(examples(task), backbone, task, limit), examples(task), task)


def make_method(
    name: str, hp: dict[str, Any], backbone: Backbone, task: Task = SENTIMENT, seed: int = 1, head: str = "linear"
) -> Method:
    cls = REGISTRY[name].cls
    assert cls is not None
    assert issubclass(cls, Method)
    torch.manual_seed(seed)
    method = cls(cls.HP(**hp), backbone)
    method.linear_head = LinearHead(num_outputs(task), backbone, head == "hidden")
    return method


@torch.no_grad()
def outputs(methods: list[Method], backbone: Backbone, rows: Rows, pooling: Any = None) -> Tensor:
    """What the heads give for these rows, in their order."""
    fused = BatchInput(methods, backbone, 24, pooling=pooling)
    fused.refresh(grad=False, cells=range(len(methods)))
    embeds, mask, built = fused.build(encoded(backbone), rows)
    with fused.attached():
        found = fused.head_reader(built).outputs(embeds, mask)
    order = np.lexsort((rows.rows, rows.cells)).argsort()
    return found[np.lexsort((built.rows, built.cells))[order]]


def rows_of(*rows: int, cell: int = 0) -> Rows:
    return Rows(np.full(len(rows), cell, np.int64), np.array(rows, np.int64))


def theirs(backbone: Backbone, pooling: str, row: int) -> Tensor:
    """The state of one row by transformers' own forward pass from token ids, without padding: [W]."""
    ids = torch.as_tensor(encoded(backbone).sources(np.array([row]), 0))
    states = backbone.model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
    state: Tensor = states[0] if pooling == "first" else states.mean(0)
    return state


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_a_head_reads_what_transformers_gives_for_the_ids_alone(backbone: Backbone, pooling: str) -> None:
    method = make_method("head_only", {}, backbone)
    head = method.linear_head
    assert head is not None
    assert head.bias is not None
    torch.nn.init.normal_(head.bias)
    found = outputs([method], backbone, rows_of(0, 1, 2, 3), pooling)  # padded to the longest
    for row in range(4):
        with torch.no_grad():
            expected = theirs(backbone, pooling, row) @ head.weight.T + head.bias
        torch.testing.assert_close(found[row], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("pooling", ["first", "mean"])
@pytest.mark.parametrize("name", ["prompt_tuning", "by_text"])
def test_a_prompt_stands_behind_the_first_token(backbone: Backbone, pooling: str, name: str) -> None:
    method = make_method("prompt_tuning", {"prompt_length": 3, "init": "normal"}, backbone)
    if name == "by_text":  # the path of methods whose prompt depends on the text: they put it in front
        method.__class__ = type("ByText", (type(method),), {"forward": lambda own, e, m: Method.forward(own, e, m)})
    head, prompt = method.linear_head, method.prompt()
    assert head is not None
    assert prompt is not None
    found = outputs([method], backbone, rows_of(0, 1, 2, 3), pooling)
    for row in range(4):
        ids = torch.as_tensor(encoded(backbone).sources(np.array([row]), 0))
        with torch.no_grad():
            vectors = backbone.embedding(ids)
            embeds = torch.cat([vectors[:, :1], prompt[None], vectors[:, 1:]], 1)
            states = backbone.model(inputs_embeds=embeds, attention_mask=torch.ones(embeds.shape[:2])).last_hidden_state
            state = states[0, 0] if pooling == "first" else torch.cat([states[0, :1], states[0, 4:]]).mean(0)
            torch.testing.assert_close(found[row], state @ head.weight.T, rtol=1e-10, atol=1e-10)


def test_special_tokens_stand_once_each_and_the_last_survives_a_cut(backbone: Backbone) -> None:
    tokenizer = backbone.tokenizer
    for limit in (24, 5):
        made = encode(examples(), backbone, SENTIMENT, limit)
        for row in range(4):
            ids = made.sources(np.array([row]), -1)[0].tolist()
            assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
            assert ids.count(tokenizer.cls_token_id) == ids.count(tokenizer.sep_token_id) == 1
            assert len(ids) <= limit
    assert encode(examples(), backbone, SENTIMENT, 5).num_cut_sources >= 2


def test_positions_are_counted_as_the_network_numbers_them(backbone: Backbone) -> None:
    family = backbone.config.model_type
    limit = {"bert": 48, "roberta": 48, "electra": 48, "modernbert": None, "deberta-v2": None}[family]
    assert num_table_positions(backbone.model) == limit
    if family == "deberta-v2":  # positions are relative, in buckets
        require_positions(backbone, 40, 20, 0)
        return
    require_positions(backbone, 8, 40, 99)  # an encoder reads no answer
    with pytest.raises(UserError, match=r"needs 49 positions \(9 prompt \+ 40 source\), backbone '.*' has 48"):
        require_positions(backbone, 9, 40, 0)
    if limit is not None:  # the last position is there
        backbone.text_states(torch.zeros(1, 48, backbone.hidden, dtype=torch.float64), torch.ones(1, 48))


def test_no_pooler_and_no_head_come_with_the_network(backbone: Backbone) -> None:
    names = {name for name, _ in backbone.model.named_parameters()}
    assert not any("pooler" in name or "cls." in name or "lm_head" in name for name in names)
    with pytest.raises(TypeError, match="writes no text"):
        backbone.decode(torch.zeros(1, 4, backbone.hidden), torch.ones(1, 4), 2)


def test_a_checkpoint_that_lacks_weights_is_refused(checkpoints: dict[str, str], tmp_path: Path) -> None:
    folder = make_checkpoint("bert", tmp_path / "cut")
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    lacking = r"lack 1 of the network's \d+ weights, such as encoder\.layer\.1\.output\.dense\.weight"
    with pytest.raises(UserError, match=lacking):
        load_backbone(str(folder))


def test_the_parts_of_every_family_are_found(backbone: Backbone) -> None:
    parts = sublayers_of(backbone)
    assert [part.key for part in parts] == [f"encoder/{i}/{kind}" for i in (0, 1) for kind in ("attention", "ffn")]
    assert {part.output.in_features for part in parts if part.kind == "ffn"} == {64}
    assert {part.output.out_features for part in parts} == {32}


def make_trainer(
    specs: list[Any], backbone: Backbone, task: Task, pooling: Any = "first", steps: int = 5, head: Any = "linear"
) -> Any:
    """A bundle of (method, hp, lr, seed, batch size) in training on TEXTS."""
    cells = []
    for name, hp, lr, seed, batch_size in specs:
        recipe = Recipe(steps=steps, batch_size=batch_size, lr=lr, warmup_steps=0, eval_every=steps, head=head,
                        head_lr=0.05, pooling=pooling, precision="float64", backbone_dropout=False,
                        max_source_length=24)  # fmt: skip
        cells.append(Cell(suite="s", label=name, method=name, hp=hp, task=task.name, task_version=1, backbone="tiny",
                          seed=seed, recipe=recipe, search_seed=seed, protocol=ProtocolReference()))  # fmt: skip
    rows = examples(task)
    count: dict[str, Any] = dict.fromkeys(("num_train", "num_dev", "num_test"), 4)
    record = DataRecord(source="", revision="", split_rule="", fingerprint="", **count)
    splits = dict.fromkeys(("train", "dev", "test"), encoded(backbone, task))
    methods = [make_method(cell.method, cell.hp, backbone, task, cell.seed, head) for cell in cells]
    return BundleTrainer(cells, methods, TaskData(task, rows, rows, rows, record), splits, backbone, 60)


LAYERS = [("adapter", {"reduction": 8}, 0.01, 1, 4), ("bitfit", {}, 0.02, 2, 3),
          ("adapter_drop", {"reduction": 4}, 0.01, 3, 2)]  # fmt: skip
PROMPTS = [INPUT_SIDE, ("head_only", {}, 0.1, 2, 3),
           ("dept", {"prompt_length": 2, "budget_length": 12, "source_length": 24, "added_lr": 0.01}, 0.1, 3, 2),
           ("p_tuning", {"prompt_length": 2}, 0.01, 4, 3)]  # fmt: skip


@pytest.mark.parametrize("family", ["bert", "modernbert"])
@pytest.mark.parametrize("specs", [PROMPTS, LAYERS], ids=["prompts", "layers"])
@pytest.mark.parametrize(("task", "pooling"), [(SENTIMENT, "first"), (SIMILARITY, "mean")], ids=["classes", "numbers"])
def test_cells_of_a_bundle_train_as_if_alone(
    checkpoints: dict[str, str], family: str, specs: list[Any], task: Task, pooling: str
) -> None:
    backbone = load_backbone(checkpoints[family], "float64", "cpu")
    seal = Seal(backbone)
    together = make_trainer(specs, backbone, task, pooling)
    with together.fused.attached():
        together.run(lambda *_: None, lambda _: None)
    for index, spec in enumerate(specs):
        alone = make_trainer([spec], backbone, task, pooling)
        with alone.fused.attached():
            alone.run(lambda *_: None, lambda _: None)
        ours, own = together.states[index].outcome, alone.states[0].outcome
        assert ours.failure is None
        for name, tensor in own.method.state_dict().items():
            torch.testing.assert_close(ours.method.state_dict()[name], tensor, rtol=1e-9, atol=1e-9)
        assert ours.answers == own.answers
    assert seal.difference() is None


def test_the_loss_is_cross_entropy_or_the_squared_error() -> None:
    logits = torch.tensor([[[0.3, -1.0]], [[2.0, 0.5]]], dtype=torch.float64)
    labels = torch.tensor([[1], [0]])
    expected = torch.nn.functional.cross_entropy(logits[:, 0], labels[:, 0], reduction="none")
    torch.testing.assert_close(HeadReader.cross_entropy(logits, labels)[:, 0], expected)
    numbers = HeadReader.cross_entropy(torch.tensor([[[1.5]], [[-2.0]]]), torch.tensor([[3.0], [-2.0]]))
    assert numbers.tolist() == [[2.25], [0.0]]
    assert head_answers(torch.tensor([[3.25], [-0.5]]), SIMILARITY) == ["3.25", "-0.5"]


@pytest.mark.parametrize("name", ["prefix_tuning", "finetune", "adamix", "hyperformer", "ia3", "bitfit"])
def test_methods_train_and_leave_the_network_as_it_was(checkpoints: dict[str, str], name: str) -> None:
    backbone = load_backbone(checkpoints["roberta"], "float64", "cpu")
    seal = Seal(backbone)
    hp = {"prefix_length": 2} if name == "prefix_tuning" else {}
    trainer = make_trainer([(name, hp, 0.01, 1, 4)], backbone, SENTIMENT, steps=20)
    before = {key: tensor.clone() for key, tensor in trainer.states[0].outcome.method.state_dict().items()}
    losses: list[float] = []
    record = trainer.states[0].record_loss

    def noting(loss: Tensor) -> None:
        losses.append(float(loss))
        record(loss)

    trainer.states[0].record_loss = noting
    with trainer.fused.attached():
        trainer.run(lambda *_: None, lambda _: None)
    outcome = trainer.states[0].outcome
    assert outcome.failure is None
    assert losses[-1] < losses[0]
    moved = [key for key, tensor in outcome.method.state_dict().items() if not torch.equal(tensor, before[key])]
    assert any(not key.startswith("linear_head") for key in moved)
    assert seal.difference() is None


def test_a_prefix_acts_on_every_row_alike_with_and_without_padding(checkpoints: dict[str, str]) -> None:
    for family in ("bert", "modernbert"):
        backbone = load_backbone(checkpoints[family], "float64", "cpu")
        method = make_method("prefix_tuning", {"prefix_length": 2}, backbone)
        padded = outputs([method], backbone, rows_of(0, 1, 2, 3))
        for row in range(4):
            torch.testing.assert_close(
                padded[row], outputs([method], backbone, rows_of(row))[0], rtol=1e-10, atol=1e-10
            )
        plain = outputs([make_method("head_only", {}, backbone)], backbone, rows_of(0))
        assert not torch.allclose(padded[0], plain[0])
    deberta = misfit_of("prefix_tuning", checkpoints["deberta-v2"])
    assert deberta == "keys and values go in front of those of SDPA, and DebertaV2Model has its own"


def misfit_of(name: str, folder: str) -> str | None:
    cls = REGISTRY[name].cls
    assert cls is not None
    assert issubclass(cls, Method)
    return misfit(cls, {}, folder)


def test_what_does_not_fit_is_told_in_one_sentence(checkpoints: dict[str, str]) -> None:
    assert "only T5's parts are known" in str(misfit_of("hyperdecoder", checkpoints["bert"]))
    assert "adds positions in front of its" in str(misfit_of("lst", checkpoints["bert"]))
    assert "layers of 'electra' are 32 wide, its embeddings 16" in str(misfit_of("adapter", checkpoints["electra"]))
    assert "no modules of their own" in str(misfit_of("ia3", checkpoints["modernbert"]))
    for name in ("prompt_tuning", "dept", "ept", "head_only", "finetune", "bitfit"):
        for family in FAMILIES:
            assert misfit_of(name, checkpoints[family]) is None, (name, family)


def test_layers_computed_twice_change_no_gradient(checkpoints: dict[str, str]) -> None:
    found = []
    for recomputes in (False, True):
        backbone = load_backbone(checkpoints["modernbert"], "float64", "cpu")
        if recomputes:
            backbone.recompute_layers()
        trainer = make_trainer([INPUT_SIDE], backbone, SENTIMENT, steps=1)
        trainer._train_step(0)
        found.append(trainer.states[0].outcome.method.state_dict()["vectors"])
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


SUITE = """\
suite: encoders
backbones: [{backbone}]
tasks: [micro_sentiment, micro_similarity]
seeds: [1]
recipe: {{steps: 4, batch_size: 4, eval_every: 2, warmup_steps: 0, max_source_length: 24, backbone_dropout: true}}
methods:
  majority:
  head_only:
  prompt_tuning: {{prompt_length: 3, recipe: {{lr: 0.05}}}}
  bitfit: {{recipe: {{lr: 0.001}}}}
"""


@pytest.fixture(scope="module")
def stored(checkpoints: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of SUITE on a BERT."""
    folder = tmp_path_factory.mktemp("stored")
    (folder / "suite.yaml").write_text(SUITE.format(backbone=checkpoints["bert"]))
    summary = run(folder / "suite.yaml", results=folder / "out", quiet=True)
    assert (summary.num_trained, summary.num_failed, summary.unfit) == (8, 0, ())
    return folder


def test_a_run_takes_a_head_by_itself_and_counts_it_apart(stored: Path) -> None:
    plan = make_plan(stored / "suite.yaml", Overrides(), stored / "out", None)
    for group, results in zip(plan.groups, plan.results, strict=True):
        result = results[(0, 1)]
        if group.label == "majority":
            continue
        recipe, params = result.cell.recipe, result.params
        assert (recipe.head, recipe.pooling) == ("linear", "first")
        assert params is not None
        assert params.num_head == (33 if group.task == "micro_similarity" else 66)
        assert (params.num_trained == 0) == (group.label == "head_only")
        assert result.test is not None
        assert result.test.num_unreadable == 0
    assert len(load_results(stored / "out")) > 0
    again = run(stored / "suite.yaml", results=stored / "out", quiet=True)
    assert again.num_trained == 0


def test_a_trained_head_answers_from_its_export_as_it_did(stored: Path, checkpoints: dict[str, str]) -> None:
    backbone = load_backbone(checkpoints["bert"], device="cpu")
    for label in ("prompt_tuning", "head_only"):
        (path,) = (stored / "out").glob(f"**/micro_sentiment/{label}/**/*.json")
        done = export_result(path, stored / f"{label}.safetensors", checkpoints["bert"])
        assert done.shapes["linear_head.bias"] == [2]
        method = load_export(stored / f"{label}.safetensors", backbone)
        answers = answer_split(BatchInput([method], backbone, 24), [0], encoded(backbone), SENTIMENT, 1_000)
        assert set(answers[0]) <= set(SENTIMENT.targets)


def refusals(path: Path) -> str:
    """What a plan says of the cells that do not fit, before anything is trained or stored."""
    plan = make_plan(path, Overrides(), path.parent / "out", None)
    try:
        return "; ".join(lines_of(find_misfits(plan, plan.asked())))
    except UserError as error:
        return str(error)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (
            "micro_sentiment, micro_similarity",
            "micro_qa",
            "'bert' is an encoder and writes no text, which task 'micro_qa'",
        ),
        ("steps: 4,", "steps: 4, head: label,", "'bert' is an encoder and writes no text; its head must be linear or"),
        ("micro_sentiment, micro_similarity", "both", "linear serves one task; 'both' is a mixture of 2"),
        (
            "[micro_sentiment, micro_similarity]\nseeds: [1]\nrecipe: {",
            "[both]\nseeds: [1]\nrecipe: {head: hidden, ",
            "hidden serves one task; 'both' is a mixture of 2",
        ),
        ("max_source_length: 24", "max_source_length: 46", "needs 49 positions (3 prompt + 46 source)"),
    ],
)
def test_what_an_encoder_cannot_do_is_told_before_a_run(
    write_suite: Write, checkpoints: dict[str, str], old: str, new: str, problem: str
) -> None:
    text = SUITE.format(backbone=checkpoints["bert"]).replace(old, new)
    path = write_suite(text + "define_mixtures: {both: {tasks: [micro_sentiment, micro_entailment]}}\n")
    assert problem in refusals(path)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (
            "head_only:",
            "head_only: {recipe: {head: label}}",
            "'head_only' trains a head alone; recipe.head must be linear or hidden",
        ),
        ("steps: 4,", "steps: 4, pooling: mean,", "mean is for heads of encoders; 'micro-t5' is"),
        (
            "steps: 4,",
            "steps: 4, head: linear,",
            "linear needs an encoder or a decoder-only backbone; 'micro-t5' is both",
        ),
        (
            "steps: 4,",
            "steps: 4, head: hidden,",
            "hidden needs an encoder or a decoder-only backbone; 'micro-t5' is both",
        ),
    ],
)
def test_heads_are_refused_where_a_network_writes(write_suite: Write, old: str, new: str, problem: str) -> None:
    assert problem in refusals(write_suite(SUITE.format(backbone="micro-t5").replace(old, new)))


def test_a_name_alone_tells_an_encoder(checkpoints: dict[str, str]) -> None:
    assert all(map(is_encoder, checkpoints.values()))
    assert not any(map(is_encoder, ("micro-t5", "t5-base", "llama-3-8b", "no-such-name", "/no/such/folder")))
    assert meta_backbone(checkpoints["electra"]).kind.name == "encoder"
