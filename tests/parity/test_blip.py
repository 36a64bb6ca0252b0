"""BLIP's four published models, number for number, over every fixture of them, and transformers' three."""

import pytest
import torch
from torch import Tensor
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
)

from fusionkit.tasks.answering import RankAnswers
from fusionkit.tasks.classic_beams import ClassicBeamSearch
from fusionkit.tasks.decoding import DecoderInputs, Prompts, decoder_state_of, fuse_causal
from fusionkit.tasks.generation import GenerationConfig, Greedy
from fusionkit.types import Tokens
from tests.parity.published import (
    Published,
    ScriptedNegatives,
    check_gradients,
    close,
    close_laws,
    close_where,
    fixtures,
    import_network,
    imported,
    known,
    rows,
    step,
    taken,
)

VIT = ("embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias")
BERT = (
    "vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers",
    "max_position_embeddings", "layer_norm_eps", "hidden_act",
)  # fmt: skip
IDS = ("cls", "sep", "pad", "bos_DEC", "ENC")
PLAIN = ("image_size", "patch_size", "embed_dim", "queue_size", "momentum", "alpha")
OTHERS = ("blip_caption", "blip_vqa", "blip_retrieval")


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    def of(path) -> Published:
        groups = {"vit": VIT, "bert": BERT, "ids": IDS}
        return imported(path, tmp_path_factory.mktemp("blip"), lambda sizes: taken(sizes, groups, *PLAIN))

    return of


def pairs(io: dict[str, Tensor], keys: Tensor) -> dict:
    captions = rows(io["in.input_ids"], io["in.attention_mask"])
    return {"image_keys": keys, "pixel_values": io["in.image"], "captions": captions}


def check_contrast(published: Published, encoded, seen, outputs) -> None:
    """What pre-training and retrieval share: features, losses, laws and queues."""
    io, network = published.io, published.network
    close(encoded.image.embeds, io["out.image_embeds"])
    close(encoded.image_feats, io["out.image_feat"])
    close(encoded.text_feats["captions"], io["out.text_feat"])
    close(seen.image_feats, io["out.image_feat_m"])
    close(seen.text_feats["captions"], io["out.text_feat_m"])
    alone = network.model.fusion.encode_unimodal(encoded.text["captions"]).embeds
    close_where(io["in.attention_mask"], alone, io["out.text_hidden"])
    close(outputs["itc"].loss, io["loss.itc"])
    close(outputs["itm"].loss, io["loss.itm"])
    close(outputs["itm"].logits, io["out.itm_logits"])
    close_laws(network.tasks["itm"].negatives.laws, io["out.weights_t2i"], io["out.weights_i2t"])
    for side in ("image", "text"):
        queue = getattr(network.tasks["itc"], f"{side}_queue")
        close(queue.feats.T, io[f"out.{side}_queue_after"])


@pytest.mark.parametrize("path", fixtures("blip_", but=OTHERS))
def test_pretraining(load, path):
    published = load(path)
    io, network, tasks = published.io, published.network, published.network.tasks
    draws = io["in.negative_image"], io["in.negative_text"]
    tasks["itm"].negatives = ScriptedNegatives(*draws, by_teacher=True, floor=1e-4)
    batch = pairs(io, torch.arange(len(io["in.image"])))
    encoded, seen, outputs = step(published, batch, "captions", "itc", "itm", "captioning")
    check_contrast(published, encoded, seen, outputs)
    index, mask, text = batch["captions"]["image_index"], io["in.attention_mask"], encoded.text["captions"]
    close_where(mask, network.model.fuse(encoded.memory, text, index).text, io["out.multimodal_hidden_pos"])
    close(outputs["captioning"].loss, io["loss.lm"])
    said = mask[:, 1:].bool()
    close(outputs["captioning"].logits, io["out.lm_logits"][:, :-1][said])
    assert tasks["itc"].text_queue.pointer == io["out.queue_ptr_after"]
    teacher = network.teacher.model
    close(teacher.image_projection.weight, io["out.vision_proj_m_weight_after"])
    close(teacher.text_encoder.word_embeddings.weight, io["out.text_encoder_m_word_embeddings_after"])
    sum(output.loss for output in outputs.values()).backward()
    check_gradients(published)


@pytest.mark.parametrize("path", fixtures("blip_retrieval"))
def test_retrieval(load, path):
    published = load(path)
    io, tasks = published.io, published.network.tasks
    tasks["itm"].negatives = ScriptedNegatives(io["in.negative_image"], io["in.negative_text"])
    encoded, seen, outputs = step(published, pairs(io, io["in.idx"]), "captions", "itc", "itm")
    check_contrast(published, encoded, seen, outputs)
    assert tasks["itc"].image_queue.keys.equal(io["out.idx_queue_after"][0])
    assert tasks["itc"].image_queue.pointer == io["out.ptr_queue_after"]
    (outputs["itc"].loss + outputs["itm"].loss).backward()
    check_gradients(published)


def padded(tokens: Tensor, end: int, width: int) -> Tensor:
    """Generated tokens as transformers writes them: padding 0 after the first end."""
    is_after = (tokens == end).cumsum(dim=1) - (tokens == end).long() > 0
    return torch.nn.functional.pad(tokens.masked_fill(is_after, 0), (0, width - tokens.shape[1]))


@pytest.mark.parametrize("path", fixtures("blip_caption"))
def test_captions(load, path):
    published = load(path)
    io, network, task = published.io, published.network, published.network.tasks["captioning"]
    sizes, cls, end = published.sizes, published.sizes["ids"]["cls"], published.sizes["ids"]["sep"]
    prompt = sizes["prompt_ids"]
    task.writer.prompt_ids = [cls, *prompt]
    texts = rows(
        torch.cat([io["in.input_ids"][:, :1], io["in.input_ids"][:, 1 + len(prompt) :]], dim=1),
        io["in.attention_mask"][:, len(prompt) :],
    )
    batch = {"image_keys": texts["image_index"], "pixel_values": io["in.image"], "captions": texts}
    encoded = network.model.encode(batch, [])
    close(encoded.image.embeds, io["out.image_embeds"])
    output = task(network.model, batch, encoded)
    close(output.loss, io["loss.lm"])
    output.loss.backward()
    check_gradients(published)
    ones = torch.ones_like(texts["image_index"])
    whole = Prompts(io["in.input_ids"], io["in.attention_mask"], texts["image_index"], ones)
    states = fuse_causal(network.model, encoded.memory, whole)
    words = network.model.text_encoder.word_embeddings.weight
    close_where(io["in.attention_mask"], task.head(states, words), io["out.lm_logits"])
    opening = torch.tensor(task.writer.prompt_ids).expand(len(texts["ids"]), -1)
    prompts = Prompts(
        opening, torch.ones_like(opening), texts["image_index"], torch.ones(len(opening), dtype=torch.long)
    )
    before = (sizes["ids"]["bos_DEC"], *prompt)

    def rules(longest: int, shortest: int) -> GenerationConfig:
        return GenerationConfig(end, longest - len(before), max(0, shortest - len(before)), prompt=before)

    with torch.no_grad():
        steps = decoder_state_of(DecoderInputs(network.model, task.head, encoded.memory, prompts))
        found = {
            "greedy_ids": Greedy()(steps, rules(30, 10)),
            "beam3_ids": ClassicBeamSearch(3)(steps, rules(30, 10)),
            "beam5_penalty_ids": ClassicBeamSearch(5, repetition_penalty=1.3)(steps, rules(20, 9)),
        }
        hypotheses = [best for row in ClassicBeamSearch(3).search(steps, rules(30, 10)) for best in row]
    for name, generated in found.items():
        theirs = io[f"out.{name}"][:, len(before) :]
        assert padded(generated.tokens, end, theirs.shape[1]).equal(theirs), name
    close(torch.tensor([score for score, _ in hypotheses]), io["out.beam3_all_scores"])
    for (_, tokens), theirs in zip(hypotheses, io["out.beam3_all_ids"][:, len(before) :], strict=True):
        assert tokens.equal(theirs[: len(tokens)])


@pytest.mark.parametrize("path", fixtures("blip_vqa"))
def test_answers(load, path):
    published = load(path)
    io, network, task = published.io, published.network, published.network.tasks["vqa_decoder"]
    task.share = False  # the published weights of a question need not sum to 1
    task.decoding.set_answers(*known(io["in.answer_ids"], io["in.answer_mask"]))
    questions = torch.arange(len(io["in.question_ids"])).repeat_interleave(io["in.n_answers"])
    scores = torch.zeros(len(io["in.question_ids"]), len(questions))
    scores[questions, torch.arange(len(questions))] = io["in.weights"]
    texts = rows(io["in.question_ids"], io["in.question_mask"], answer_scores=scores)
    batch = {"image_keys": texts["image_index"], "pixel_values": io["in.image"], "questions": texts}
    encoded = network.model.encode(batch, ["questions"])
    close(encoded.image.embeds, io["out.image_embeds"])
    states = network.model.fuse(encoded.memory, encoded.text["questions"], texts["image_index"]).text
    close_where(io["in.question_mask"], states, io["out.question_states"])
    output = task(network.model, batch, encoded)
    close(output.logits, io["out.answer_logits"][:, :-1][io["in.answer_mask"][:, 1:].bool()])
    close(output.loss, io["loss.vqa"])
    output.loss.backward()
    check_gradients(published)
    task.eval()
    task.decoding.set_answers(*known(io["in.candidate_ids"], io["in.candidate_mask"]))
    with torch.no_grad():
        steps = task.steps(network.model, batch, encoded)
        close(steps.start()[0], io["out.rank_first_token_logits"])
        ranking = RankAnswers(k=published.sizes["k_test"], score="blip", label_smoothing=0.1)
        likelihood, candidates = ranking.scores(steps, task.decoding.known)
        assert candidates.equal(io["out.rank_topk_ids"])
        close(likelihood, io["out.rank_log_probs"])
        assert candidates.gather(1, likelihood.argmax(dim=1, keepdim=True))[:, 0].equal(io["out.rank_best"])
        # the published generation attends to the padding of the questions too
        memory = task.head.reader.fusion.prepare(Tokens(io["out.question_states"], None, states[:, 0]))
        start = torch.full((len(states), 1), published.sizes["ids"]["cls"])
        prompts = Prompts(start, torch.ones_like(start), texts["image_index"], torch.ones_like(start[:, 0]))
        steps = decoder_state_of(DecoderInputs(task.head.reader, task.head.words, memory, prompts))
        ids = published.sizes["ids"]
        said = ClassicBeamSearch(3)(steps, GenerationConfig(ids["sep"], 9, prompt=(ids["bos_DEC"],))).tokens
    assert padded(said, ids["sep"], 9).equal(io["out.generate_ids"][:, 1:])


TEXT = {
    "vocab_size": 60, "hidden_size": 24, "encoder_hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 20, "bos_token_id": 58, "eos_token_id": 3, "sep_token_id": 3,
    "attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0,
}  # fmt: skip
VISION = {
    "hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": 32,
    "patch_size": 8, "hidden_act": "gelu_new",
}  # fmt: skip


@pytest.fixture
def transformed(tmp_path):
    """A small random BLIP of transformers, of a class, and what we make of the folder that it saves."""

    def of(kind: type) -> tuple:
        torch.manual_seed(0)
        config = BlipConfig(text_config=TEXT, vision_config=VISION, image_text_hidden_size=16)
        theirs = kind(config).eval()
        for parameter in theirs.parameters():
            parameter.data.normal_(std=0.1)
        theirs.save_pretrained(tmp_path / "theirs")
        ids = {"cls": 2, "sep": 3, "pad": 0, "mask": 4}
        return theirs, import_network("blip", tmp_path / "theirs", tmp_path / "ours", {"ids": ids}).network

    return of


def texts_of_three() -> tuple[Tensor, dict]:
    ids = torch.randint(5, 58, (3, 9), generator=torch.Generator().manual_seed(1))
    ids[:, 0] = 2
    mask = (torch.arange(9) < torch.tensor([[9], [5], [7]])).long()
    texts = rows(ids, mask, answer_scores=torch.eye(3))
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2)), texts


@torch.no_grad()
def test_retrieval_of_transformers(transformed):
    theirs, ours = transformed(BlipForImageTextRetrieval)
    pixels, texts = texts_of_three()
    encoded = ours.model.encode({"pixel_values": pixels, "captions": texts}, ["captions"])
    inputs = {"input_ids": texts["input_ids"], "attention_mask": texts["attention_mask"], "pixel_values": pixels}
    close(encoded.image_feats @ encoded.text_feats["captions"].T, theirs(**inputs, use_itm_head=False).itm_score)
    matched = ours.tasks["itm"].score_pairs(ours.model, encoded.memory, encoded.text["captions"], texts["image_index"])
    close(matched, theirs(**inputs).itm_score)


@torch.no_grad()
def test_captions_of_transformers(transformed):
    theirs, ours = transformed(BlipForConditionalGeneration)
    pixels, texts = texts_of_three()
    ids = texts["input_ids"].index_fill(1, torch.tensor([0]), 58)  # as their processor begins a caption
    logits = theirs(pixel_values=pixels, input_ids=ids, attention_mask=texts["attention_mask"]).logits
    encoded = ours.model.encode({"pixel_values": pixels}, [])
    whole = Prompts(ids, texts["attention_mask"], texts["image_index"], torch.ones(3, dtype=torch.long))
    states = fuse_causal(ours.model, encoded.memory, whole)
    found = ours.tasks["captioning"].head(states, ours.model.text_encoder.word_embeddings.weight)
    close_where(texts["attention_mask"], found, logits)


@torch.no_grad()
def test_answers_of_transformers(transformed):
    theirs, ours = transformed(BlipForQuestionAnswering)
    pixels, texts = texts_of_three()
    texts["attention_mask"] = torch.ones_like(texts["input_ids"])  # transformers 5.23 lets the decoder read padding
    task = ours.tasks["vqa_decoder"]
    task.decoding.set_answers("abc", [[7, 8], [9, 10], [11, 12]])
    batch = {"pixel_values": pixels, "questions": texts}
    encoded = ours.model.encode(batch, ["questions"])
    output = task(ours.model, batch, encoded)
    questions = theirs.text_encoder(
        input_ids=texts["input_ids"],
        attention_mask=texts["attention_mask"],
        encoder_hidden_states=theirs.vision_model(pixels).last_hidden_state,
    ).last_hidden_state
    answers = torch.tensor([[58, 7, 8], [58, 9, 10], [58, 11, 12]])
    logits = theirs.text_decoder(
        input_ids=answers,
        encoder_hidden_states=questions,
        encoder_attention_mask=texts["attention_mask"],
    ).logits
    close(output.logits, logits.flatten(0, 1))
