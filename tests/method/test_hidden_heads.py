"""A head with a hidden layer is transformers' own classifier: outputs, gradients, dropout and first draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_encoders import SENTIMENT, encoded, make_checkpoint, make_trainer
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    RobertaConfig,
    RobertaForSequenceClassification,
    get_linear_schedule_with_warmup,
)
from transformers.models.roberta.modeling_roberta import RobertaClassificationHead

from harness.backbone.load import load_backbone
from harness.backbone.network import Backbone
from harness.method.linear_head import STARTING_STD, HeadReader, LinearHead, head_dropout
from harness.train.row_order import RowOrder
from harness.train.tiny_backbones import tiny_backbone

SIZES = {"vocab_size": 1_000, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 32, "max_position_embeddings": 40, "attention_probs_dropout_prob": 0.0,
         "hidden_dropout_prob": 0.0}  # fmt: skip
IDS = torch.tensor([[5, 9, 7, 8, 4], [8, 4, 11, 6, 3], [6, 6, 9, 12, 5], [7, 3, 5, 5, 9]])
MASK = torch.ones_like(IDS)


def random_weights(model: torch.nn.Module) -> None:
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> RobertaForSequenceClassification:
    """A classifier of transformers in float64, whose `name_or_path` is a folder with its body."""
    folder = tmp_path_factory.mktemp("roberta")
    torch.manual_seed(0)
    config = RobertaConfig(**SIZES, num_labels=3, pad_token_id=1, classifier_dropout=0.3, type_vocab_size=1)
    model = RobertaForSequenceClassification(config)
    random_weights(model)
    return saved(model, model.roberta, folder)


def saved(model: Any, body: Any, folder: Path) -> Any:
    """Store the body of a classifier, and a tokenizer whose ids it has room for."""
    from transformers import AutoTokenizer

    from harness.backbone.names import SHIPPED

    body.save_pretrained(folder)
    AutoTokenizer.from_pretrained(SHIPPED["micro-t5"]).save_pretrained(folder)
    model.name_or_path = str(folder)
    return model.double().eval()


def reader_of(theirs: Any, cells: int = 1) -> tuple[HeadReader, LinearHead]:
    """Our head with the tensors of a classifier of transformers, all rows its own."""
    backbone = load_backbone(theirs.name_or_path, "float64", "cpu")
    head = LinearHead(3, backbone, has_hidden=True)
    assert head.hidden is not None
    assert head.bias is not None
    with torch.no_grad():
        for ours, their in pairs(head, theirs):
            ours.copy_(their)
    return HeadReader(backbone, [head] * cells, np.zeros(len(IDS), np.int64)), head


def pairs(head: LinearHead, theirs: Any) -> list[tuple[Tensor, Tensor]]:
    """Our tensors beside theirs: RoBERTa's head holds both layers, BERT has the first in its pooler."""
    if isinstance(theirs, RobertaForSequenceClassification):
        dense, out = theirs.classifier.dense, theirs.classifier.out_proj
    else:
        dense, out = theirs.bert.pooler.dense, theirs.classifier
    assert head.hidden is not None
    assert head.bias is not None
    return [(head.hidden.weight, dense.weight), (head.hidden.bias, dense.bias),
            (head.weight, out.weight), (head.bias, out.bias)]  # fmt: skip


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> BertForSequenceClassification:
    """BERT's pooler, with its classifier, is the same head but for a dropout in front."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**SIZES, num_labels=3))
    random_weights(model)
    return saved(model, model.bert, tmp_path_factory.mktemp("bert"))


@pytest.mark.parametrize("family", ["roberta", "bert"])
def test_outputs_and_gradients_are_those_of_transformers(family: str, request: pytest.FixtureRequest) -> None:
    theirs = request.getfixturevalue(family)
    reader, head = reader_of(theirs)
    labels = torch.tensor([0, 2, 1, 2])
    reader.model.eval()
    vectors = reader.embedding(IDS).detach().requires_grad_()
    found = reader.outputs(vectors, MASK)
    their_vectors = vectors.detach().clone().requires_grad_()
    expected = theirs(inputs_embeds=their_vectors, attention_mask=MASK).logits
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.nn.functional.cross_entropy(found, labels).backward()
    theirs.zero_grad()
    torch.nn.functional.cross_entropy(expected, labels).backward()
    for ours, their in [*pairs(head, theirs), (vectors, their_vectors)]:
        assert ours.grad is not None
        assert ours.grad.abs().sum() > 0
        torch.testing.assert_close(ours.grad, their.grad, rtol=1e-10, atol=1e-12)


def test_it_drops_what_transformers_drops_and_only_where_the_backbone_does(
    roberta: RobertaForSequenceClassification,
) -> None:
    reader, _ = reader_of(roberta)
    vectors = reader.embedding(IDS).detach()
    drawn = []
    for model, compute in (
        (reader.model, lambda: reader.outputs(vectors, MASK)),
        (roberta, lambda: roberta(inputs_embeds=vectors, attention_mask=MASK).logits),
    ):
        model.train()
        torch.manual_seed(7)
        drawn.append(compute().detach())
        model.eval()
    torch.testing.assert_close(*drawn, rtol=1e-12, atol=1e-12)
    still = reader.outputs(vectors, MASK).detach()
    assert not torch.allclose(drawn[0], still)
    torch.testing.assert_close(reader.outputs(vectors, MASK).detach(), still, rtol=0, atol=0)


def test_the_share_to_drop_is_the_network_s_own() -> None:
    for config in (RobertaConfig(hidden_dropout_prob=0.2), RobertaConfig(classifier_dropout=0.0)):
        assert head_dropout(config) == RobertaClassificationHead(config).dropout.p
    assert head_dropout(LlamaConfig()) == 0.0


def test_it_starts_as_transformers_starts_it() -> None:
    backbone = tiny_backbone("encoder", "float64")
    torch.manual_seed(3)
    plain = LinearHead(2, backbone)
    torch.manual_seed(3)
    head = LinearHead(2, backbone, has_hidden=True)
    assert head.hidden is not None
    assert torch.equal(head.weight, plain.weight), "the layer on top starts alike with and without one below it"
    assert RobertaConfig().initializer_range == STARTING_STD
    weight = head.hidden.weight.detach()
    assert abs(float(weight.std()) - STARTING_STD) < 4 * STARTING_STD / (2 * weight.numel()) ** 0.5
    assert not head.hidden.bias.any()


def losses_of(backbone: Backbone, num_outputs: int, labels: Tensor) -> list[float]:
    """The mean loss of each of a few steps on the head alone; labels are classes, or numbers."""
    torch.manual_seed(0)
    head = LinearHead(num_outputs, backbone, has_hidden=True)
    reader = HeadReader(backbone, [head], np.zeros(len(IDS), np.int64))
    optimizer, found = torch.optim.AdamW(head.parameters(), 0.02, weight_decay=0.0), []
    for _ in range(25):
        optimizer.zero_grad()
        loss = reader.token_losses(backbone.embedding(IDS), MASK, labels).mean()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    assert head.hidden is not None
    assert all(p.grad is not None and p.grad.any() for p in head.parameters())
    return found


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_it_learns_classes_and_numbers(kind: Any) -> None:
    backbone = tiny_backbone(kind, "float64")
    backbone.model.eval()
    classes = losses_of(backbone, 3, torch.tensor([[0], [2], [1], [2]]))
    numbers = losses_of(backbone, 1, torch.tensor([[0.5], [-1.0], [2.0], [0.0]], dtype=torch.float64))
    assert classes[-1] < 0.7 * classes[0]
    assert numbers[-1] < 0.7 * numbers[0]


def test_rows_in_any_order_go_through_the_layer_of_their_own_cell() -> None:
    backbone = tiny_backbone("encoder", "float64")
    backbone.model.eval()
    torch.manual_seed(1)
    heads = [LinearHead(2, backbone, has_hidden=True) for _ in range(4)]
    for head in heads:
        random_weights(head)
    vectors = backbone.embedding(IDS.repeat(2, 1) + torch.arange(8)[:, None])
    mask = torch.ones(8, 5, dtype=torch.long)
    cells = np.array([3, 0, 3, 1, 0, 3, 3, 1])  # 2, 2, 0 and 4 rows
    found = HeadReader(backbone, heads, cells).outputs(vectors, mask)
    for row, cell in enumerate(cells):
        alone = HeadReader(backbone, [heads[cell]], np.zeros(1, np.int64))
        expected = alone.outputs(vectors[row : row + 1], mask[row : row + 1])
        torch.testing.assert_close(found[row], expected[0], rtol=1e-12, atol=1e-12)


def test_bitfit_under_it_trains_as_a_classifier_of_transformers_whose_biases_alone_train(tmp_path: Path) -> None:
    """Tensor for tensor, beside a plain loop of PyTorch over `BertForSequenceClassification` and the same rows."""
    steps, lr, head_lr, batch_size = 6, 0.02, 0.05, 3  # 0.05 is that of make_trainer
    backbone = load_backbone(str(make_checkpoint("bert", tmp_path / "bert")), "float64", "cpu")
    trainer = make_trainer([("bitfit", {}, lr, 2, batch_size)], backbone, SENTIMENT, steps=steps, head="hidden")
    method, recipe = trainer.states[0].outcome.method, trainer.states[0].recipe
    theirs = BertForSequenceClassification.from_pretrained(tmp_path / "bert", num_labels=2).double().eval()
    with torch.no_grad():
        for ours, their in pairs(method.linear_head, theirs):
            their.copy_(ours)
    before = {name: parameter.detach().clone() for name, parameter in theirs.named_parameters()}
    with trainer.fused.attached():
        trainer.run(lambda *_: None, lambda _: None)
    assert trainer.states[0].outcome.failure is None

    for name, parameter in theirs.named_parameters():
        parameter.requires_grad = name.endswith(".bias") or name.startswith(("bert.pooler", "classifier"))
    head = [parameter for _, parameter in pairs(method.linear_head, theirs)]
    body = [p for p in theirs.parameters() if p.requires_grad and all(p is not own for own in head)]
    groups = [{"params": body, "lr": lr}, {"params": head, "lr": head_lr}]
    optimizer = torch.optim.AdamW(groups, eps=recipe.eps, weight_decay=0.0)
    schedule, order = get_linear_schedule_with_warmup(optimizer, 0, steps), RowOrder(4, 2)
    rows = encoded(backbone)
    for _ in range(steps):
        chosen = order.draw(batch_size)
        ids = torch.as_tensor(rows.sources(chosen, -1))
        labels = torch.as_tensor(rows.targets(chosen))[:, 0]
        optimizer.zero_grad()
        logits = theirs(input_ids=ids.clamp(min=0), attention_mask=(ids >= 0).long()).logits
        torch.nn.functional.cross_entropy(logits, labels).backward()
        torch.nn.utils.clip_grad_norm_(body + head, recipe.clip_norm)
        optimizer.step()
        schedule.step()

    vectors = {name.replace("/", "."): vector.detach() for name, vector in method.biases.vectors.items()}
    moved = {name.removesuffix(".bias").removeprefix("bert."): parameter.detach() - before[name]
             for name, parameter in theirs.named_parameters()
             if parameter.requires_grad and not name.startswith(("bert.pooler", "classifier"))}  # fmt: skip
    assert set(vectors) == set(moved)
    for name, vector in vectors.items():
        torch.testing.assert_close(vector, moved[name], rtol=1e-6, atol=1e-9)
    for ours, their in pairs(method.linear_head, theirs):
        torch.testing.assert_close(ours, their, rtol=1e-6, atol=1e-9)
