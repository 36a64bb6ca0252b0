"""One pre-training step of ALBEF in the order of the paper (Li et al. 2021, arXiv 2107.07651) and its public code, in torch.

It is the rival of ``benchmarks.albef_step``, written anew: a pass of the fusion layers for the true pairs, one for the false
ones, and one for the masked texts; padding computed along; each pass projects the image's keys and values; attention as
products and a softmax; a word distribution at every position; the queue copied and joined to the batch's features; negatives
drawn row by row; the moving average and AdamW one parameter at a time. Dropout is left out, so that numbers can be compared.
"""

from collections import OrderedDict
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FAR = -10000.0  # added to the scores of padding


class Shape(NamedTuple):
    """The numbers of a model."""

    image_size: int
    patch: int
    image_width: int
    depth: int
    image_heads: int
    text_width: int
    text_heads: int
    text_layers: int
    fusion_layers: int
    words: int
    places: int
    embed_size: int


class Given(NamedTuple):
    """What chance has drawn for a step, so that both formulations train on the same."""

    input_ids: Tensor  # (B, L), corrupted
    labels: Tensor  # (B, L), -100 where nothing is predicted
    images: Tensor  # (B,) the wrong image of each text
    texts: Tensor  # (B,) the wrong text of each image


class PatchAttention(nn.Module):
    """Self-attention of image tokens (I, N, D), queries, keys and values by one map."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, states: Tensor) -> Tensor:
        rows, tokens, width = states.shape
        parts = self.qkv(states).reshape(rows, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = parts[0], parts[1], parts[2]
        weights = ((query @ key.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        return self.proj((weights @ value).transpose(1, 2).reshape(rows, tokens, width))


class Block(nn.Module):
    """A layer of the image transformer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = PatchAttention(width, heads)
        parts = {"fc1": nn.Linear(width, 4 * width), "act": nn.GELU(), "fc2": nn.Linear(4 * width, width)}
        self.mlp = nn.Sequential(OrderedDict(parts))

    def forward(self, states: Tensor) -> Tensor:
        states = states + self.attn(self.norm1(states))
        return states + self.mlp(self.norm2(states))


class Vision(nn.Module):
    """Pixels (I, 3, H, W) -> image tokens (I, 1 + N, D), the class token first."""

    def __init__(self, image_size: int, patch: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (image_size // patch) ** 2, width))
        self.patch_embed = nn.Sequential(OrderedDict(proj=nn.Conv2d(3, width, patch, stride=patch)))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embed(pixels).flatten(2).transpose(1, 2)
        states = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1) + self.pos_embed
        for block in self.blocks:
            states = block(states)
        return self.norm(states)


class Attention(nn.Module):
    """Attention of text states (T, L, D) over a context (T, N, C), with a mask that is added to the scores."""

    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.heads, self.width = heads, width // heads
        self.query, self.output = nn.Linear(width, width), nn.Linear(width, width)
        self.key, self.value = nn.Linear(context, width), nn.Linear(context, width)

    def split(self, states: Tensor) -> Tensor:
        return states.view(*states.shape[:2], self.heads, self.width).permute(0, 2, 1, 3)

    def forward(self, states: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        query = self.split(self.query(states))
        key, value = self.split(self.key(context)), self.split(self.value(context))
        scores = query @ key.transpose(-1, -2) / self.width**0.5 + mask
        mixed = (scores.softmax(dim=-1) @ value).permute(0, 2, 1, 3).contiguous()
        return self.output(mixed.view(*mixed.shape[:2], -1))


class Layer(nn.Module):
    """A BERT layer, of the upper half with cross-attention (``context`` is the width of the image tokens)."""

    def __init__(self, width: int, heads: int, context: int | None = None) -> None:
        super().__init__()
        self.self_attention, self.norm_self = Attention(width, heads, width), nn.LayerNorm(width, eps=1e-12)
        if context is not None:
            self.cross_attention, self.norm_cross = Attention(width, heads, context), nn.LayerNorm(width, eps=1e-12)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.norm_feed_forward = nn.LayerNorm(width, eps=1e-12)

    def forward(
        self, states: Tensor, mask: Tensor, image: Tensor | None = None, image_mask: Tensor | None = None
    ) -> Tensor:
        states = self.norm_self(self.self_attention(states, states, mask) + states)
        if image is not None:
            states = self.norm_cross(self.cross_attention(states, image, image_mask) + states)
        return self.norm_feed_forward(self.feed_forward(states) + states)


class Bert(nn.Module):
    """BERT whose upper layers attend to an image, with its word head tied to the embeddings."""

    def __init__(self, words: int, width: int, heads: int, lower: int, upper: int, context: int, places: int) -> None:
        super().__init__()
        tables = {"word_embeddings": words, "position_embeddings": places, "token_type_embeddings": 2}
        self.embeddings = nn.ModuleDict({name: nn.Embedding(rows, width) for name, rows in tables.items()})
        self.embeddings["LayerNorm"] = nn.LayerNorm(width, eps=1e-12)
        self.lower = nn.ModuleList(Layer(width, heads) for _ in range(lower))
        self.upper = nn.ModuleList(Layer(width, heads, context) for _ in range(upper))
        self.head = nn.ParameterDict({"bias": nn.Parameter(torch.zeros(words))})
        self.dense, self.norm = nn.Linear(width, width), nn.LayerNorm(width, eps=1e-12)

    def read(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Texts alone, (T, L) -> (T, L, D)."""
        embeddings = self.embeddings
        places = torch.arange(ids.shape[1], device=ids.device)[None]
        states = embeddings["word_embeddings"](ids) + embeddings["token_type_embeddings"](torch.zeros_like(ids))
        states = embeddings["LayerNorm"](states + embeddings["position_embeddings"](places))
        for layer in self.lower:
            states = layer(states, added(mask))
        return states

    def fuse(self, states: Tensor, mask: Tensor, image: Tensor) -> Tensor:
        """Texts (T, L, D) with an image row each, (T, N, C)."""
        image_mask = added(torch.ones(image.shape[:2], dtype=torch.long, device=image.device))
        for layer in self.upper:
            states = layer(states, added(mask), image, image_mask)
        return states

    def words(self, states: Tensor) -> Tensor:
        """States (T, L, D) -> logits (T, L, V) at every position."""
        hidden = self.norm(F.gelu(self.dense(states)))
        return F.linear(hidden, self.embeddings["word_embeddings"].weight, self.head["bias"])


def added(mask: Tensor) -> Tensor:
    """A mask (T, N), 1 = may be attended, as what is added to scores (T, H, L, N)."""
    return (1.0 - mask[:, None, None, :].float()) * FAR


class Half(nn.Module):
    """What the student and the momentum model both have."""

    def __init__(self, vision: Vision, bert: Bert, widths: tuple[int, int], embed_size: int) -> None:
        super().__init__()
        self.vision, self.bert = vision, bert
        self.vision_proj, self.text_proj = nn.Linear(widths[0], embed_size), nn.Linear(widths[1], embed_size)


class Published(nn.Module):
    """Student, momentum model and queues."""

    def __init__(self, shape: Shape, queue: int, momentum: float = 0.995) -> None:
        super().__init__()
        self.student, self.teacher = self.half(shape), self.half(shape).requires_grad_(False)
        self.itm_head = nn.Linear(shape.text_width, 2)
        self.temp, self.momentum = nn.Parameter(torch.tensor(0.07)), momentum
        for name in ("image_queue", "text_queue"):
            self.register_buffer(name, F.normalize(torch.randn(shape.embed_size, queue), dim=0))
        self.image_queue: Tensor
        self.text_queue: Tensor
        self.pointer = 0
        self.follow(0.0)

    @staticmethod
    def half(shape: Shape) -> Half:
        vision = Vision(shape.image_size, shape.patch, shape.image_width, shape.depth, shape.image_heads)
        sizes = (shape.text_width, shape.text_heads, shape.text_layers, shape.fusion_layers)
        bert = Bert(shape.words, *sizes, shape.image_width, shape.places)
        return Half(vision, bert, (shape.image_width, shape.text_width), shape.embed_size)

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """theta_m <- momentum * theta_m + (1 - momentum) * theta, parameter by parameter."""
        for mean, own in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            mean.data = mean.data * momentum + own.data * (1.0 - momentum)

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor, given: Given, alpha: float) -> dict[str, Tensor]:
        """The three losses of B pairs."""
        with torch.no_grad():
            self.temp.clamp_(0.001, 0.5)
        student, teacher, size = self.student, self.teacher, len(pixels)
        image = student.vision(pixels)
        image_feat = F.normalize(student.vision_proj(image[:, 0]), dim=-1)
        text = student.bert.read(ids, mask)
        text_feat = F.normalize(student.text_proj(text[:, 0]), dim=-1)
        with torch.no_grad():
            self.follow(self.momentum)
            image_m = teacher.vision(pixels)
            image_feat_m = F.normalize(teacher.vision_proj(image_m[:, 0]), dim=-1)
            image_all = torch.cat([image_feat_m.t(), self.image_queue.clone()], dim=1)
            text_feat_m = F.normalize(teacher.text_proj(teacher.bert.read(ids, mask)[:, 0]), dim=-1)
            text_all = torch.cat([text_feat_m.t(), self.text_queue.clone()], dim=1)
            own = torch.zeros(size, text_all.shape[1], device=pixels.device)
            own.fill_diagonal_(1)
            to_text = alpha * (image_feat_m @ text_all / self.temp).softmax(dim=1) + (1 - alpha) * own
            to_image = alpha * (text_feat_m @ image_all / self.temp).softmax(dim=1) + (1 - alpha) * own
        i2t, t2i = image_feat @ text_all / self.temp, text_feat @ image_all / self.temp
        loss_i2t = -(F.log_softmax(i2t, dim=1) * to_text).sum(dim=1).mean()
        loss_t2i = -(F.log_softmax(t2i, dim=1) * to_image).sum(dim=1).mean()
        self.push(image_feat_m, text_feat_m)

        itm = self.match(image, text, mask, i2t[:, :size], t2i[:, :size], given)
        with torch.no_grad():
            logits_m = teacher.bert.words(teacher.bert.fuse(teacher.bert.read(given.input_ids, mask), mask, image_m))
            soft = logits_m.softmax(dim=-1)
        logits = student.bert.words(student.bert.fuse(student.bert.read(given.input_ids, mask), mask, image))
        hard = F.cross_entropy(logits.view(-1, logits.shape[-1]), given.labels.view(-1))
        distilled = -(F.log_softmax(logits, dim=-1) * soft).sum(dim=-1)
        mlm = (1 - alpha) * hard + alpha * distilled[given.labels != -100].mean()
        return {"itc": (loss_i2t + loss_t2i) / 2, "itm": itm, "mlm": mlm}

    def match(self, image: Tensor, text: Tensor, mask: Tensor, i2t: Tensor, t2i: Tensor, given: Given) -> Tensor:
        """The loss of matching: a pass of the true pairs, then one of the false ones."""
        size, bert = len(image), self.student.bert
        positive = bert.fuse(text, mask, image)
        with torch.no_grad():
            weights_t2i, weights_i2t = t2i.softmax(dim=1), i2t.softmax(dim=1)
            weights_t2i.fill_diagonal_(0)
            weights_i2t.fill_diagonal_(0)
        images, texts, masks = [], [], []
        for row in range(size):
            _ = int(torch.multinomial(weights_t2i[row], 1))  # what it costs to draw; what was drawn is given
            images.append(image[int(given.images[row])])
        for row in range(size):
            _ = int(torch.multinomial(weights_i2t[row], 1))
            texts.append(text[int(given.texts[row])])
            masks.append(mask[int(given.texts[row])])
        text_all, mask_all = torch.cat([text, torch.stack(texts)]), torch.cat([mask, torch.stack(masks)])
        negative = bert.fuse(text_all, mask_all, torch.cat([torch.stack(images), image]))
        logits = self.itm_head(torch.cat([positive[:, 0], negative[:, 0]]))
        labels = torch.cat([torch.ones(size, dtype=torch.long), torch.zeros(2 * size, dtype=torch.long)])
        return F.cross_entropy(logits, labels.to(logits.device))

    @torch.no_grad()
    def push(self, image_feat: Tensor, text_feat: Tensor) -> None:
        """Overwrite the oldest features; the batch has to divide the queue, as published."""
        end = self.pointer + len(image_feat)
        self.image_queue[:, self.pointer : end] = image_feat.T
        self.text_queue[:, self.pointer : end] = text_feat.T
        self.pointer = end % self.image_queue.shape[1]
