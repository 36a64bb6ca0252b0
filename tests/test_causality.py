"""Causality of the whole model: text encoder, fusion and head. A later token changes no logit before it, not by one bit."""

import pytest
import torch

from fusionkit.tasks.decoding import Prompts, fuse_causal, word_logits
from tests.toys import SEP, VOCABULARY, choices, toy_batch, toy_dims, toy_fusion, toy_model, toy_task

CAUSAL = [name for name in choices("fusion") if "causal" in toy_fusion(name).func.provides]


@pytest.mark.parametrize("regions", [False, True], ids=["pixels", "regions"])
@pytest.mark.parametrize("name", CAUSAL)
def test_a_later_token_changes_no_logit_before_it(name, regions):
    if regions and name == "prefix_shuffle":
        pytest.skip("joins neighbours of a square, which regions are not")
    torch.manual_seed(0)
    model = toy_model(name, regions).eval()
    task = toy_task("captioning", toy_dims(model)).eval()
    batch = toy_batch(images=2, texts_per_image=2)
    rows, memory = batch["captions"], model.encode(batch, []).memory
    length = rows["input_ids"].shape[1]
    prefix = torch.ones(4, dtype=torch.long)

    def logits(ids):
        text = Prompts(ids, torch.ones_like(ids), rows["image_index"], prefix)
        return word_logits(model, task.head, fuse_causal(model, memory, text))

    ids = rows["input_ids"].clamp(min=SEP)
    with torch.no_grad():
        before = logits(ids)
        for token in range(1, length):
            changed = ids.clone()
            changed[:, token] = (ids[:, token] + 7) % VOCABULARY
            after = logits(changed)
            assert (after[:, :token] - before[:, :token]).abs().max() == 0
            assert (after[:, token] - before[:, token]).abs().max() > 0


def test_most_fusions_are_causal():
    assert len(CAUSAL) >= 8
