"""InstructBLIP (Dai et al. 2023): BLIP-2 whose queries read what is asked of the image too, by a tokenizer of their own.

The folders that transformers' InstructBlipForConditionalGeneration saves, over a causal language model (Vicuna) or an
encoder-decoder one (Flan-T5). The queries' tokenizer is the folder's qformer_tokenizer/.
"""

from collections.abc import Sequence
from typing import Any

from fusionkit.checkpoints import runs
from fusionkit.checkpoints.base import Key, Plan
from fusionkit.checkpoints.directory import CONFIG
from fusionkit.checkpoints.families.blip2 import PROJECTOR, Looking, plan_of
from fusionkit.checkpoints.families.language import require_tasks
from fusionkit.checkpoints.folder import completed, own_tokenizer, require_possible
from fusionkit.checkpoints.source import Source
from fusionkit.data.tokenizer import companion_of, load_tokenizer, text_format
from fusionkit.errors import DataError

EMBEDDINGS = {
    "word_embeddings.": "words.",
    "position_embeddings.": "positions.",
    "layernorm.": "norm.",
}
WORDS = {  # in classes of their own, beside those of the queries
    "intermediate.dense.": "feed_forward.0.",
    "output.dense.": "feed_forward.2.",
    "output.LayerNorm.": "norm_feed_forward.",
}


def plan(source: Source, tasks: Sequence[str]) -> Plan:
    """What a folder of InstructBLIP is; ``tasks`` are those of the run that goes on from it."""
    runs.of_class(source, {"InstructBlipForConditionalGeneration": None})
    source, tasks = completed(source, "InstructBlipConfig"), require_tasks(tasks)
    queries = (source.config or {})["qformer_config"]
    require_possible(source, "qformer_config", unread=["encoder_hidden_size"])
    if not 1 <= (longest := queries["max_position_embeddings"]) <= 1_000_000:
        raise DataError(
            f"{source.path / CONFIG}: qformer_config.max_position_embeddings is {runs.shown(longest)}; correct it"
        )
    last = queries["num_hidden_layers"] - 1
    layers = runs.layers(WORDS, last, "qformer.encoder.layer.{}.", PROJECTOR + "word_layers.{}.")
    unread = rf"qformer\.encoder\.layer\.{last}\.(intermediate|output)\..*"
    looking = Looking(
        family="instructblip",
        release="transformers' InstructBLIP",
        groups=("fusion=prefix_instructed", "fusion=encoder_decoder_instructed"),
        fusions=(
            "fusionkit.fusion.instructed.InstructedPrefix",
            "fusionkit.fusion.instructed.InstructedEncoderDecoder",
        ),
        tokenizers=("Salesforce/instructblip-vicuna-7b", "Salesforce/instructblip-flan-t5-xl"),
        projector={
            "_target_": "fusionkit.fusion.instructed.InstructedQFormer",
            "vocab_size": queries["vocab_size"],
            "max_positions": longest,
            "no_words": no_words(source, queries),
        },
        keys=[*(Key(f"qformer.embeddings.{name}", PROJECTOR + ours) for name, ours in EMBEDDINGS.items()), *layers],
        left_out={unread: "what the last layer makes of words, which nothing reads"},
    )
    return plan_of(source, tasks, looking)


def no_words(source: Source, queries: dict[str, Any]) -> list[int]:
    """A text without words, by the queries' own tokenizer; where the folder has none by BERT's, or else by padding."""
    folder = own_tokenizer(source.path)
    if folder and (own := companion_of(load_tokenizer(folder))) is not None:
        form = text_format(own)
        return [form.start, form.end]
    return [101, 102] if queries["vocab_size"] > 102 else [queries["pad_token_id"] or 0]
