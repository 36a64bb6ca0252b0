"""Names of parts in configurations that earlier versions stored, and where the parts are today."""

from typing import Any

RENAMES = {
    # modules, then single names; of several that a name begins with the longest holds
    "fusionkit.balance.window": "fusionkit.balance.dwa",
    "fusionkit.data.caption_lists": "fusionkit.data.readers.caption_lists",
    "fusionkit.data.coco": "fusionkit.data.readers.coco",
    "fusionkit.data.flickr30k_entities": "fusionkit.data.readers.flickr30k_entities",
    "fusionkit.data.nlvr2": "fusionkit.data.readers.nlvr2",
    "fusionkit.data.refcoco": "fusionkit.data.readers.refcoco",
    "fusionkit.data.snli_ve": "fusionkit.data.readers.snli_ve",
    "fusionkit.data.visual_genome": "fusionkit.data.readers.visual_genome",
    "fusionkit.data.vqa": "fusionkit.data.readers.vqa",
    "fusionkit.encoders.text.TextEncoder": "fusionkit.encoders.text.HFTextEncoder",
    "fusionkit.encoders.views": "fusionkit.encoders.region_encoder",
    "fusionkit.evaluation.benchmarks": "fusionkit.scoring.scorers",
    "fusionkit.evaluation.captioning": "fusionkit.scoring.captioning",
    "fusionkit.evaluation.captioning.CaptionMeasure": "fusionkit.scoring.captioning.Captions",
    "fusionkit.evaluation.grounding": "fusionkit.scoring.grounding",
    "fusionkit.evaluation.grounding.GroundingMeasure": "fusionkit.scoring.grounding.Grounding",
    "fusionkit.evaluation.labels": "fusionkit.scoring.classification",
    "fusionkit.evaluation.labels.EntailmentMeasure": "fusionkit.scoring.classification.Entailment",
    "fusionkit.evaluation.labels.NLVR2Measure": "fusionkit.scoring.classification.NLVR2",
    "fusionkit.evaluation.masked": "fusionkit.scoring.masked",
    "fusionkit.evaluation.matching": "fusionkit.scoring.matching",
    "fusionkit.evaluation.prediction.EvaluationOptions": "fusionkit.assembly.evaluation_options.EvaluationOptions",
    "fusionkit.evaluation.published.Published": "fusionkit.scoring.benchmark.Published",
    "fusionkit.evaluation.ranking": "fusionkit.scoring.retrieval",
    "fusionkit.evaluation.ranking.RetrievalMeasure": "fusionkit.scoring.retrieval.Retrieval",
    "fusionkit.evaluation.reranking.Reranking": "fusionkit.assembly.evaluation_options.Reranking",
    "fusionkit.evaluation.retrieval": "fusionkit.scoring.retrieval",
    "fusionkit.evaluation.submission": "fusionkit.scoring.submission",
    "fusionkit.evaluation.vqa": "fusionkit.scoring.vqa",
    "fusionkit.evaluation.vqa.VQAMeasure": "fusionkit.scoring.vqa.VQA",
    "fusionkit.fusion.entry": "fusionkit.fusion.input_projection",
    "fusionkit.fusion.entry.Typed": "fusionkit.fusion.input_projection.TypedProjection",
    "fusionkit.fusion.entry.Untyped": "fusionkit.fusion.input_projection.Projection",
    "fusionkit.model.VisionLanguageModel": "fusionkit.model.model.VisionLanguageModel",
    "fusionkit.model.assemble": "fusionkit.model.model.assemble",
    "fusionkit.model.text_decoder": "fusionkit.model.model.text_decoder",
    "fusionkit.momentum": "fusionkit.model.momentum",
    "fusionkit.negatives.law": "fusionkit.negatives.sampling",
    "fusionkit.scoring.captioning.CaptionMeasure": "fusionkit.scoring.captioning.Captions",
    "fusionkit.scoring.classification.EntailmentMeasure": "fusionkit.scoring.classification.Entailment",
    "fusionkit.scoring.classification.NLVR2Measure": "fusionkit.scoring.classification.NLVR2",
    "fusionkit.scoring.grounding.GroundingMeasure": "fusionkit.scoring.grounding.Grounding",
    "fusionkit.scoring.ranked_retrieval.RetrievalMeasure": "fusionkit.scoring.retrieval.Retrieval",
    "fusionkit.scoring.vqa.VQAMeasure": "fusionkit.scoring.vqa.VQA",
    "fusionkit.tasks.answering.Ranking": "fusionkit.tasks.answering.RankAnswers",
    "fusionkit.tasks.answering.Saying": "fusionkit.tasks.answering.GenerateAnswer",
    "fusionkit.tasks.itm.tossed_pairs": "fusionkit.tasks.itm.bernoulli_pairs",
}

SPLIT = {
    # classes that were taken apart: what an option of theirs makes of them today
    "fusionkit.encoders.text.TextEncoder": {
        "added_tokens": "fusionkit.encoders.blip.BLIPTextEncoder",
        "first_token_id": "fusionkit.encoders.blip.BLIPTextEncoder",
        "token_types": "fusionkit.encoders.blip.BLIPTextEncoder",
        "before_norm": "fusionkit.encoders.flava.FLAVATextEncoder",
        "top_layers": "fusionkit.encoders.bridgetower.BridgeTowerTextEncoder",
    },
}


def today(block: dict[Any, Any]) -> dict[Any, Any]:
    """A stored block with the class that its options belong to today, where what it names was taken apart."""
    options = SPLIT.get(block["_target_"], {}) if isinstance(block.get("_target_"), str) else {}
    found = next((name for option, name in options.items() if option in block), None)
    return block if found is None else block | {"_target_": found}


def renamed(name: str) -> str:
    """Today's name of a part that was stored as ``name``; any other text as it is."""
    if name.startswith("fusionkit."):
        for old in sorted(RENAMES, key=len, reverse=True):
            if f"{name}.".startswith(f"{old}."):
                return RENAMES[old] + name[len(old) :]
    return name
