"""The model: two encoders, a fusion, and the contrastive projection. It knows no loss."""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusionkit.encoders.base import (
    ImageEncoder,
    SupportsCausal,
    SupportsExtendText,
    SupportsPooling,
    SupportsPredictWords,
    SupportsUpperLayers,
    SupportsViews,
    TextEncoder,
    tokens_of,
)
from fusionkit.encoders.blip import BLIPTextEncoder
from fusionkit.encoders.probe import undisturbed
from fusionkit.errors import ConfigError
from fusionkit.fusion.base import (
    Fusion,
    SupportsExtend,
    SupportsFreezing,
    SupportsLanguageModel,
    SupportsMetrics,
    SupportsTextLayers,
    SupportsUnimodal,
)
from fusionkit.fusion.cross_attention import CrossAttention
from fusionkit.model import chunks
from fusionkit.types import Batch, Encoded, Fused, Images, Memory, Past, Pixels, Stored, Tokens, Whole, at_least_fp32


class Reader(nn.Module):
    """The text half of a model: an encoder, and a fusion of its tokens with a memory, of images or of other texts."""

    def __init__(self, text_encoder: TextEncoder, fusion: Fusion) -> None:
        super().__init__()
        self.text_encoder, self.fusion = text_encoder, fusion

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tokens:
        """(T, L), mask (T, L) or (T, L, L) -> text tokens; T may be 0."""
        if input_ids.shape[0] == 0:
            blank = self.encode_text(input_ids.new_zeros(1, *input_ids.shape[1:]), _one_row(attention_mask))
            return Tokens(blank.embeds[:0], attention_mask, blank.pooled[:0])
        if chunks.is_on():
            found: Tokens = chunks.by_rows(
                self.text_encoder, (input_ids, attention_mask), [self.get_submodule("text_encoder")]
            )
            return found
        return self.text_encoder(input_ids, attention_mask)

    def prepare(self, image: Tokens) -> Memory:
        """What the fusion makes of images; in chunks (``model.chunks``), each chunk of pairs does so for itself."""
        return chunks.Unprepared(image) if chunks.is_on() else self.fusion.prepare(image)

    def _joint(self) -> list[nn.Module]:
        """What fusing reads the weights of: a fusion may have the text encoder, a language model, read on."""
        return [self.get_submodule("fusion"), self.get_submodule("text_encoder")]

    def fuse(self, memory: Memory, text: Tokens, image_index: Tensor) -> Fused:
        """Fuse T texts with the images of ``memory`` (from ``encode`` or ``fusion.prepare``) that ``image_index`` (T,) names.

        T may be 0, where no image of a batch has a text of a kind: encoders and fusions are then given a blank row, which
        is dropped again, so that none need care and every parameter is part of the graph, as plain DDP needs.
        """
        if image_index.shape[0] == 0:
            fused = self.fuse(memory, _blank(text), image_index.new_zeros(1, *image_index.shape[1:]))
            return Fused(*(None if part is None else part[:0] for part in fused))
        if chunks.is_on():
            return chunks.fuse(self.fusion, memory, text, image_index, self._joint())
        return self.fusion(memory, text, image_index)

    @property
    def predicts_words(self) -> bool:
        """Whether ``predict_words`` works: the text encoder is a language model whose own last states the fused ones are."""
        return isinstance(self.text_encoder, SupportsPredictWords) and self.text_encoder.predicts_words

    @property
    def encodes_prompts(self) -> bool:
        """Whether a prompt is a whole text, with its end, and what is said after it another (an encoder-decoder)."""
        return isinstance(self.fusion, SupportsLanguageModel) and self.fusion.encodes_prompts

    def predict_words(self, states: Tensor) -> Tensor:
        """Fused states (..., hidden_size) -> logits (..., V), by the language model's own head. Only where ``predicts_words``."""
        assert isinstance(self.text_encoder, SupportsPredictWords)
        return self.text_encoder.predict_words(states)

    @property
    def is_causal(self) -> bool:
        """Whether the plain encoding of a text is its causal one too, which need not be made again."""
        return isinstance(self.text_encoder, SupportsCausal) and self.text_encoder.is_causal

    @property
    def is_incremental(self) -> bool:
        """Whether ``extend`` works, so that a text can grow without being encoded and fused anew."""
        return isinstance(self.text_encoder, SupportsExtendText) and (
            self.text_encoder.is_incremental and isinstance(self.fusion, SupportsExtend)
        )

    def extend(
        self, memory: Memory, input_ids: Tensor, mask: Tensor, positions: Tensor, image_index: Tensor, past: Past
    ) -> tuple[Tensor, Past]:
        """Fused states (T, L, hidden_size) of L ids (T, L) at positions (T, L), after P earlier tokens of each text.

        The mask is (T, L, P + L). Also gives what to pass as ``past`` for the next ids: lists, tuples and tensors with one
        row a text; None for the first ids. Only where ``is_incremental``.
        """
        assert isinstance(self.text_encoder, SupportsExtendText)
        assert isinstance(self.fusion, SupportsExtend)
        text_past, fusion_past = (None, None) if past is None else past
        text, text_past = self.text_encoder.extend(input_ids, mask, positions, text_past)
        states, fusion_past = self.fusion.extend(memory, text, image_index, fusion_past)
        return states, (text_past, fusion_past)


class VisionLanguageModel(Reader):
    """Three verbs, ``encode_image``, ``encode_text`` and ``fuse``, and ``encode``, which does the first two for a batch.

    ``embed_size``   width of the contrastive space.
    ``projection_bias`` whether its projections have a bias; CLIP's have none.
    ``temperature``  start value; similarities are *divided* by it, and it is kept within ``temperature_range``.
    """

    def __init__(
        self,
        image_encoder: ImageEncoder,
        text_encoder: TextEncoder,
        fusion: Fusion,
        embed_size: int = 256,
        temperature: float = 0.07,
        temperature_range: tuple[float, float] = (0.001, 0.5),
        projection_bias: bool = True,
    ) -> None:
        _check_range(temperature_range)
        nn.Module.__init__(self)  # in this order the parameters stand in the optimisers of checkpoints
        self.image_encoder, self.text_encoder, self.fusion = image_encoder, text_encoder, fusion
        self.embed_size, self.temperature_range = embed_size, tuple(temperature_range)
        self.image_projection = nn.Linear(image_encoder.hidden_size, embed_size, bias=projection_bias)
        self.text_projection = nn.Linear(text_encoder.hidden_size, embed_size, bias=projection_bias)
        self.temperature = nn.Parameter(torch.tensor(float(temperature)))

    def encode_image(self, images: Images) -> Tokens:
        """Pixels (I, 3, H, W), or whatever ``images_of`` gives for this encoder -> image tokens."""
        if chunks.is_on():
            found: Tokens = chunks.by_rows(self._encode_images, (images,), [self.get_submodule("image_encoder")])
            return found
        return self._encode_images(images)

    def _encode_images(self, images: Images) -> Tokens:
        return tokens_of(self.image_encoder, images) if isinstance(images, Stored) else self.image_encoder(images)

    def images_of(self, batch: Batch) -> Images:
        """What the image encoder reads of a batch, or what it made of its images before."""
        if "stored" in batch:
            return batch["stored"]
        if self.image_encoder.reads == "pixel_values" and "pixel_mask" in batch:
            return Pixels(batch["pixel_values"], batch["pixel_mask"])
        images: Images = batch[self.image_encoder.reads]  # type: ignore[literal-required]
        return images

    def encode(self, batch: Batch, kinds: Sequence[str]) -> Encoded:
        """Encode the images of a batch once, and its texts of the given kinds."""
        image, whole = self._images(batch)
        rows = {kind: batch[kind] for kind in kinds}  # type: ignore[literal-required]
        text = {kind: self.encode_text(r["input_ids"], r["attention_mask"]) for kind, r in rows.items()}
        return Encoded(
            image=image,
            memory=self.prepare(image),
            image_feats=self.project_image(image),
            text=text,
            text_feats={kind: self.project_text(tokens) for kind, tokens in text.items()},
            whole=whole,
        )

    def _images(self, batch: Batch) -> tuple[Tokens, Whole | None]:
        """The images of a batch, or its views and the whole images."""
        if "views" not in batch:
            return self.encode_image(self.images_of(batch)), None
        if chunks.is_on():
            raise ConfigError(
                "gradient_cache: views of images (X-VLM's regions) are not read in chunks; set it to null"
            )
        if not isinstance(self.image_encoder, SupportsViews):
            raise ConfigError("image_encoder cannot give views; choose fusionkit.encoders.region_encoder.ViewEncoder")
        whole, views = self.image_encoder.views(batch["pixel_values"], **batch["views"])
        return views, Whole(whole, self.fusion.prepare(whole))

    def project_image(self, image: Tokens) -> Tensor:
        """Image tokens -> (I, E), L2-normalised, fp32."""
        return F.normalize(at_least_fp32(self.image_projection(image.pooled)), dim=-1)

    def project_text(self, text: Tokens) -> Tensor:
        """Text tokens -> (T, E), L2-normalised, fp32."""
        pooled = text.pooled
        if isinstance(self.fusion, SupportsUnimodal):
            if pooled.shape[0] == 0:  # as in ``fuse``
                return self.project_text(_blank(text))[:0]
            read = self.fusion.encode_unimodal
            pooled = (chunks.by_rows(read, (text,), self._joint()) if chunks.is_on() else read(text)).pooled
        return F.normalize(at_least_fp32(self.text_projection(pooled)), dim=-1)

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Keep the temperature within its range; called before each step."""
        self.temperature.clamp_(*self.temperature_range)

    def metrics(self) -> dict[str, Tensor]:
        """What a run logs of the model's state at each step, detached scalars by name."""
        fusion = self.fusion.metrics() if isinstance(self.fusion, SupportsMetrics) else {}
        return {"temperature": self.temperature.detach().clone()} | {f"fusion_{n}": v for n, v in fusion.items()}

    def freeze_unused(self, needs: frozenset[str]) -> None:
        """Freeze what no task reads: every trainable parameter then gets a gradient at each step, as plain DDP needs."""
        if "feats" not in needs:
            for part in (self.image_projection, self.text_projection):
                part.requires_grad_(False)
            self.temperature.requires_grad_(False)
            if isinstance(self.text_encoder, SupportsPooling) and not self._fuses_pooled_text():
                self.text_encoder.freeze_pooling()
        if not needs - {"feats"} and not isinstance(self.fusion, SupportsUnimodal):
            self.get_submodule("fusion").requires_grad_(False)
        elif isinstance(self.fusion, SupportsFreezing):
            self.fusion.freeze_unused(needs)

    def _fuses_pooled_text(self) -> bool:
        """Whether the fusion reads the one vector of a text (late fusion), tried out on a pair of made-up tokens."""
        device = self.temperature.device
        image = torch.zeros(1, 16, self.image_encoder.hidden_size, device=device)
        text = torch.zeros(1, 2, self.text_encoder.hidden_size, device=device, requires_grad=True)
        pooled = text.detach()[:, 0].requires_grad_()
        mask = torch.ones(1, 2, dtype=torch.long, device=device)
        with undisturbed(self), torch.enable_grad():
            try:
                memory = self.fusion.prepare(Tokens(image, None, image[:, 0]))
                fused = self.fusion(memory, Tokens(text, mask, pooled), mask[0, :1] - 1)
            except Exception:  # whatever a fusion makes of made-up tokens: it may read that vector
                return True
            total = torch.stack([part.sum() for part in fused if part is not None]).sum()
            (found,) = torch.autograd.grad(total, [pooled], allow_unused=True)
        return found is not None


def _check_range(bounds: Sequence[float]) -> None:
    """ConfigError unless the bounds of the temperature are two rising numbers above 0."""
    is_range = len(bounds) == 2 and all(isinstance(bound, int | float) for bound in bounds)
    if not (is_range and 0 < bounds[0] <= bounds[1] < math.inf):
        raise ConfigError(
            f"model.temperature_range is {list(bounds)}; give two numbers above 0, the lower one first: similarities are divided "
            "by the temperature"
        )


def _blank(text: Tokens) -> Tokens:
    """A blank text in place of none."""
    assert text.mask is not None
    return Tokens(_one_row(text.embeds), _one_row(text.mask), _one_row(text.pooled))


def _one_row(rows: Tensor) -> Tensor:
    """(0, ...) -> (1, ...) ones: a blank text, of which every token may be attended; gradients still reach the rows."""
    return torch.cat([rows, rows.new_ones(1, *rows.shape[1:])])


def text_decoder(
    vocab_size: int,
    hidden_size: int,
    num_layers: int = 6,
    num_heads: int = 12,
    intermediate_size: int | None = None,
    max_position_embeddings: int = 512,
    type_vocab_size: int = 2,
    pad_token_id: int = 0,
    first_token_id: int | None = None,
    dropout: float = 0.1,
    eps: float = 1e-12,
) -> Reader:
    """A language model of BERT's layers that attends to states of its own width (ALBEF's and BLIP's answer decoders).

    ``type_vocab_size`` 0 leaves the token types out; ``first_token_id`` is read in place of a text's first token.
    """
    config = {
        "model_type": "bert",
        "hidden_size": hidden_size,
        "num_hidden_layers": 0,
        "num_attention_heads": num_heads,
        "max_position_embeddings": max_position_embeddings,
        "type_vocab_size": type_vocab_size or 1,
        "pad_token_id": pad_token_id,
        "layer_norm_eps": eps,
        "hidden_dropout_prob": dropout,
    }
    words = BLIPTextEncoder(vocab_size, config=config, token_types=type_vocab_size > 0, first_token_id=first_token_id)
    return Reader(
        words, CrossAttention(hidden_size, hidden_size, num_layers, num_heads, intermediate_size, dropout, eps)
    )


def assemble(
    image_encoder: ImageEncoder,
    text_encoder: TextEncoder,
    fusion: Callable[..., Fusion],
    **options: Any,
) -> VisionLanguageModel:
    """Build the fusion for the widths of the encoders, start it from the text encoder's upper layers if given, then join.

    One that has a language model read on is given the text encoder.
    """
    built = fusion(image_size=image_encoder.hidden_size, text_size=text_encoder.hidden_size)
    if isinstance(built, SupportsLanguageModel):
        built.join(text_encoder)  # it refuses what is none
    if isinstance(text_encoder, SupportsUpperLayers) and text_encoder.upper_layers:
        if not isinstance(built, SupportsTextLayers):
            raise ConfigError(
                f"text_encoder.give_upper_layers: fusion {type(built).__name__} cannot start from text layers; "
                "set it to false, or choose fusion=cross_attention or fusion=gated_cross_attention"
            )
        built.start_from(text_encoder.upper_layers)
        text_encoder.upper_layers = ()
    return VisionLanguageModel(image_encoder, text_encoder, built, **options)


assemble.__signature__ = inspect.signature(VisionLanguageModel)  # type: ignore[attr-defined]  # options are checked by it
