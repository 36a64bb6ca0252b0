"""Labels of words: what is scored, what is predicted, and what is refused."""

import pytest
import torch

from fusionkit.errors import ConfigError
from fusionkit.tasks.token_classification import TokenClassification
from tests.toys import measured, toy_batch, toy_dims, toy_model


def made(**options):
    torch.manual_seed(0)
    model = toy_model().eval()
    return model, TokenClassification(toy_dims(model), **{"labels": ["B-LOC", "O"], **options})


def test_loss_accuracy_and_records_are_of_the_words():
    model, task = made()
    batch = toy_batch(images=3)
    rows = batch["tagged"]
    rows["label_words"][0, 2] = -1  # a word that has lost its token
    encoded = model.encode(batch, ["tagged"])
    out, logits = task(model, batch, encoded), task.logits(model, batch, encoded)
    pairs = [
        (logits[row, place], task.labels.index(rows["word_labels"][row][word]))
        for row, words in enumerate(rows["label_words"].tolist())
        for place, word in enumerate(words)
        if word >= 0
    ]
    targets = torch.tensor([target for _, target in pairs])
    both = torch.stack([each for each, _ in pairs])
    torch.testing.assert_close(out.loss, torch.nn.functional.cross_entropy(both, targets))
    assert measured(task, out)["accuracy"] == pytest.approx((both.argmax(dim=1) == targets).float().mean().item())
    records = task.predict(model, batch, encoded)
    assert [record["text_id"] for record in records] == rows["ids"]
    said = [each for record in records for each in record["labels"]]
    assert [each["label"] for each in said] == [task.labels[n] for n in both.argmax(dim=1).tolist()]
    assert records[0]["labels"][1]["start"] == 4  # the third word
    assert records[0]["labels"][1]["end"] == 5


def test_dropout_is_of_training_alone():
    model, task = made(dropout=0.9)
    batch = toy_batch(images=3)
    encoded = model.encode(batch, ["tagged"])
    assert not task.train().logits(model, batch, encoded).equal(task.logits(model, batch, encoded))
    assert task.eval().logits(model, batch, encoded).equal(task.logits(model, batch, encoded))


def test_labels():
    for labels in ([], ["O", "O"]):
        with pytest.raises(ConfigError, match=r"labels is \[.*\]; name each label once"):
            made(labels=labels)
    model, task = made(labels=["B-LOK", "O"])
    batch = toy_batch(images=3)
    with pytest.raises(ConfigError, match="labels lacks 'B-LOC', which a word has; did you mean 'B-LOK'"):
        task(model, batch, model.encode(batch, ["tagged"]))
