"""ALBEF's five published models, number for number, over every fixture of them."""

import pytest
import torch
import torch.nn.functional as F

from fusionkit.tasks.answering import RankAnswers
from fusionkit.tasks.entailment import LABELS
from tests.parity.published import (
    Published,
    ScriptedNegatives,
    check_averages,
    check_gradients,
    close,
    close_laws,
    close_where,
    fixtures,
    imported,
    known,
    rows,
    step,
    taken,
)

VIT = ("embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias", "layer_norm_eps")
BERT = (
    "vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "fusion_layer",
    "max_position_embeddings", "type_vocab_size", "layer_norm_eps", "hidden_act",
)  # fmt: skip
PLAIN = ("image_size", "patch_size", "embed_dim", "queue_size", "momentum", "alpha", "ids")
OTHERS = ("albef_vqa", "albef_retrieval", "albef_ve", "albef_nlvr")


def options(sizes: dict) -> dict:
    return taken(sizes, {"vit": VIT, "bert": BERT, "decoder": ("num_layers",)}, *PLAIN)


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    def of(path) -> Published:
        return imported(path, tmp_path_factory.mktemp("albef"), options)

    return of


@pytest.mark.parametrize("path", fixtures("albef_", but=OTHERS))
def test_pretraining(load, path):
    published = load(path)
    io, network, tasks = published.io, published.network, published.network.tasks
    tasks["itm"].negatives = ScriptedNegatives(io["negative_image"], io["negative_text"], by_teacher=True)
    tasks["mlm"].masking = lambda *_: (io["mlm_input_ids"], io["mlm_labels"])
    captions = rows(io["input_ids"], io["attention_mask"])
    batch = {"image_keys": captions["image_index"], "pixel_values": io["pixel_values"], "captions": captions}
    encoded, seen, outputs = step(published, batch, "captions", "itc", "itm", "mlm")
    close(encoded.image.embeds, io["image_embeds"])
    close(encoded.image_feats, io["image_feats"])
    close(encoded.text_feats["captions"], io["text_feats"])
    close(seen.image_feats, io["image_feats_m"])
    close(seen.text_feats["captions"], io["text_feats_m"])
    for name, output in outputs.items():
        close(output.loss, io[f"loss_{name}"])
    close(outputs["itm"].logits, io["itm_logits"])  # true pairs, (text, wrong image), (wrong text, image)
    sum(output.loss for output in outputs.values()).backward()
    check_gradients(published)
    close(tasks["itc"].image_queue.feats.T, io["image_queue_after"])
    assert tasks["itc"].image_queue.pointer == io["queue_ptr_after"]
    assert network.origin["family"] == "albef"


@pytest.mark.parametrize("path", fixtures("albef_retrieval"))
def test_retrieval(load, path):
    published = load(path)
    io, tasks = published.io, published.network.tasks
    tasks["itm"].negatives = ScriptedNegatives(io["negative_image"], io["negative_text"], by_teacher=True)
    tasks["itm"].uses_teacher = True
    published.network.model.temperature_range = (0, torch.inf)  # which this published class alone does not keep
    captions = rows(io["input_ids"], io["attention_mask"])
    batch = {"image_keys": io["idx"], "pixel_values": io["pixel_values"], "captions": captions}
    encoded, seen, outputs = step(published, batch, "captions", "itc", "itm")
    close(encoded.image.embeds, io["image_embeds"])
    close_where(io["attention_mask"], encoded.text["captions"].embeds, io["text_embeds"])
    close(encoded.image_feats, io["image_feats"])
    close(encoded.text_feats["captions"], io["text_feats"])
    close(seen.image_feats, io["image_feats_m"])
    close(seen.text_feats["captions"], io["text_feats_m"])
    close(outputs["itc"].logits, io["sim_i2t"])
    close(outputs["itc"].loss, io["loss_ita"])
    close(outputs["itm"].loss, io["loss_itm"])
    close(outputs["itm"].logits, io["itm_logits"])
    close_laws(tasks["itm"].negatives.laws, io["negative_image_weights"], io["negative_text_weights"])
    (outputs["itc"].loss + outputs["itm"].loss).backward()
    check_gradients(published)
    check_averages(published)
    for side in ("image", "text"):
        queue = getattr(tasks["itc"], f"{side}_queue")
        close(queue.feats.T, io[f"{side}_queue_after"])
        assert queue.keys.equal(io["idx_queue_after"][0])
        assert queue.pointer == io["queue_ptr_after"]
    _, _, again = step(published, batch, "captions", "itc")
    close(again["itc"].loss, io["loss_ita_second"])


def labelled(published: Published, kind: str) -> dict:
    """A batch of texts with classes: shares of labels (SNLI-VE), or a second image each (NLVR2)."""
    io = published.io
    texts, targets = rows(io["input_ids"], io["attention_mask"]), io["targets"]
    if kind == "statements":
        texts |= {"other_index": texts["image_index"] + len(targets), "label": targets}
    else:
        texts |= dict(zip(LABELS, F.one_hot(targets, len(LABELS)).T, strict=True))
    return {"image_keys": torch.arange(len(io["pixel_values"])), "pixel_values": io["pixel_values"], kind: texts}


@pytest.mark.parametrize(
    ("path", "kind", "name"),
    [
        *(pytest.param(*f.values, "hypotheses", "entailment", id=f.id, marks=f.marks) for f in fixtures("albef_ve")),
        *(pytest.param(*f.values, "statements", "nlvr2", id=f.id, marks=f.marks) for f in fixtures("albef_nlvr")),
    ],
)
def test_classes(load, path, kind, name):
    published = load(path)
    io, network, task = published.io, published.network, published.network.tasks[name]
    batch = labelled(published, kind)
    encoded, seen, outputs = step(published, batch, kind, name)
    index = batch[kind]["image_index"]
    if kind == "statements":
        index = torch.stack([index, batch[kind]["other_index"]], dim=1)
    close(encoded.image.embeds, io["image_embeds"])
    states = network.model.fuse(encoded.memory, encoded.text[kind], index).text
    close_where(io["attention_mask"], states, io["fused_states"])
    close(outputs[name].logits, io["logits"])
    if network.teacher is not None:
        states = network.teacher.model.fuse(seen.memory, seen.text[kind], index).text
        close_where(io["attention_mask"], states, io["fused_states_m"])
        close(network.teacher.heads[name](states[:, 0]), io["logits_m"])
    close(outputs[name].loss, io["loss"])
    close(task(network.model, batch, encoded).loss, io["loss_nodistill"])
    outputs[name].loss.backward()
    check_gradients(published)
    check_averages(published)


@pytest.mark.parametrize("path", fixtures("albef_vqa"))
def test_answers(load, path):
    published = load(path)
    io, network, task = published.io, published.network, published.network.tasks["vqa_decoder"]
    task.share = False  # the published weights of a question need not sum to 1
    task.decoding.set_answers(*known(io["answer_ids"], io["answer_mask"]))
    questions = torch.arange(len(io["question_ids"])).repeat_interleave(io["answers_per_question"])
    scores = torch.zeros(len(io["question_ids"]), len(questions))
    scores[questions, torch.arange(len(questions))] = io["answer_weights"]
    texts = rows(io["question_ids"], io["question_mask"], answer_scores=scores)
    batch = {"image_keys": texts["image_index"], "pixel_values": io["pixel_values"], "questions": texts}
    encoded, _, outputs = step(published, batch, "questions", "vqa_decoder")
    close(encoded.image.embeds, io["image_embeds"])
    fused = network.model.fuse(encoded.memory, encoded.text["questions"], texts["image_index"]).text
    close_where(io["question_mask"], fused, io["question_states"])
    said = io["answer_mask"][:, 1:].bool()
    close(outputs["vqa_decoder"].logits, io["decoder_logits"][:, :-1][said])
    close(outputs["vqa_decoder"].loss, io["loss"])
    close(task(network.model, batch, encoded).loss, io["loss_nodistill"])
    outputs["vqa_decoder"].loss.backward()
    check_gradients(published)
    check_averages(published)
    check_ranking(published, batch)


def check_ranking(published: Published, batch: dict) -> None:
    """The chosen answers, their order and their scores; the weights are those before the step."""
    io, network, task = published.io, published.network, published.network.tasks["vqa_decoder"]
    task.eval()
    task.decoding.set_answers(*known(io["answer_list_ids"], io["answer_list_mask"]))
    ranking = RankAnswers(k=published.sizes["k_test"], score="albef")
    with torch.no_grad():
        encoded = network.model.encode(batch, ["questions"])
        steps = task.steps(network.model, batch, encoded)
        close(steps.start()[0], io["rank_start_logits"])
        scores, candidates = ranking.scores(steps, task.decoding.known)
    first = F.softmax(io["rank_start_logits"], dim=1)[:, task.decoding.ids[:, 0]]
    close(first, io["rank_first_token_probs"])
    order = scores.argsort(dim=1, descending=True)
    assert candidates.gather(1, order).equal(io["rank_topk_ids"])
    close(scores.softmax(dim=1).gather(1, order), io["rank_topk_probs"])
