"""Self-critical sequence training: captions that the model draws are made likelier or less likely by how good they are."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusionkit.errors import ConfigError, suggest
from fusionkit.losses import global_mean
from fusionkit.model.model import Reader, VisionLanguageModel
from fusionkit.model.momentum import Teacher
from fusionkit.tasks.base import Records, Scorer, Task
from fusionkit.tasks.captioning import CaptionWriter
from fusionkit.tasks.decoding import DecoderInputs, Prompts, decoder_state_of, fuse_causal, word_logits
from fusionkit.tasks.generation import GenerationConfig, Greedy, Sampling, Search
from fusionkit.tasks.itc import CaptionBatch
from fusionkit.tasks.metrics import Summed, means
from fusionkit.tasks.mlm import word_head
from fusionkit.types import Dims, Encoded, Memory, TaskOutput, at_least_fp32

UNLIKELY = -80.0  # no token of such a log p is ever drawn
BASELINES = MEAN, GREEDY = ("mean", "greedy")


class Reward(Protocol):
    """How good captions are, such as ``fusionkit.training.rewards.CiderReward``."""

    def begin(self, training: Mapping[str, Sequence[Any]]) -> None:
        """The samples that are trained on, by source."""
        ...

    def __call__(
        self, source: str, image_ids: Sequence[Any], captions: Sequence[str], has_ended: Sequence[bool]
    ) -> Sequence[float]:
        """A number for each caption of the image whose id stands at its place; ``has_ended``: it was not cut."""
        ...


class SelfCriticalCaptioning(Task[CaptionBatch]):
    """Captioning by policy gradients (SCST, Rennie et al. 2017); it goes on from a model that has learnt to caption.

    Of each image that has captions ``samples`` are drawn, each token by what the model says of it, and the loss is

        - mean over samples of (reward - baseline) * sum of log p(token) over the tokens of the sample, its end among them,

    whose gradient is an unbiased estimate of the expected reward's (Rennie et al., eq. 7; a sum over tokens, where published
    code divides by the number of tokens, which gives the tokens of long captions less).

    ``baseline``  "mean": of a sample the mean reward of the others of its image (Luo 2020); "greedy": the reward of the caption
                  that the greedy search finds (Rennie et al.).
    ``sampling``  temperature, top-k and top-p of what is drawn from. It is that distribution, among the tokens that the rules
                  allow, whose log p is trained: what is drawn from and what is trained never differ.
    ``reward``    None: the weights alone are wanted.
    The other options are those of ``Captioning``; ``min_length`` and ``no_repeat_ngram`` hold for samples too.

    Dropout is off in the text encoder, the fusion and the head, both where samples are drawn and where their log p is
    computed with a gradient, in one pass: masks drawn anew would make it the log p of another model than drew them. What the
    image encoder gave, dropout or not, is the same for both.
    """

    needs = frozenset({"text", "causal"})
    reads = "captions"
    replies_to = "caption"
    encodes = False
    draws_texts = True
    init_from = "captioning"

    def __init__(
        self,
        dims: Dims,
        reward: Reward | None = None,
        samples: int = 5,
        baseline: str = MEAN,
        sampling: Sampling | None = None,
        prompt: str = "",
        search: Search | None = None,
        max_length: int = 20,
        min_length: int = 0,
        no_repeat_ngram: int = 0,
        scorer: Scorer | None = None,
        eps: float = 1e-12,
        head: Callable[[int, int], nn.Module] | None = None,
    ) -> None:
        super().__init__(scorer)
        if baseline not in BASELINES:
            raise ConfigError(f"task.captioning.baseline is '{baseline}'; {suggest(str(baseline), BASELINES)}")
        if samples < (fewest := 2 if baseline == MEAN else 1):
            raise ConfigError(
                f"task.captioning.samples is {samples}, but baseline={baseline} needs {fewest} an image at least"
            )
        self.metrics = means("reward", "baseline")
        self.metrics.add_metrics({"reward_std": Summed(deviation, 3)})
        self.reward, self.samples, self.baseline = reward, samples, baseline
        self.sampling = sampling or Sampling()
        self.writer = CaptionWriter.of(dims, prompt, 0.0, None, search, max_length, min_length, no_repeat_ngram)
        self.head = word_head(dims, eps, head)

    def begin(self, training: Mapping[str, Sequence[Any]]) -> None:
        if self.reward is None:
            raise ConfigError(
                "task.captioning.reward is null, but captions are trained by it; choose one, as in conf/task"
            )
        self.reward.begin(training)

    def forward(
        self, model: VisionLanguageModel, batch: CaptionBatch, encoded: Encoded, teacher: Teacher | None = None
    ) -> TaskOutput:
        images = batch["captions"]["image_index"].unique()
        rows = images.repeat_interleave(self.samples)
        with without_dropout(model.get_submodule("text_encoder"), model.get_submodule("fusion"), self.head):
            prompts = self.writer.prompts(rows, self.head)
            with torch.no_grad():
                drawn = self._said(model, encoded.memory, prompts, self.sampling)
                rewards = self._rewards(batch, rows, drawn)
                baselines = self._baselines(model, batch, encoded, images, rewards)
            # under autocast the weights' casts of the drawing are kept, and no gradient would reach the weights through them
            torch.clear_autocast_cache()
            log_probs = sample_log_probs(
                model, self.head, encoded.memory, prompts, drawn, self.sampling, self.writer.rules
            )
        loss = policy_loss(log_probs, (rewards - baselines).to(log_probs))
        rewards, baselines, count = rewards.to(log_probs), baselines.to(log_probs), len(rows)
        told = {"reward": (rewards.sum(), count), "baseline": (baselines.sum(), count)}
        told["reward_std"] = rewards.sum(), rewards.square().sum(), count  # type: ignore[assignment]
        return TaskOutput(loss, rewards, baselines, told)

    def _said(self, model: Reader, memory: Memory, prompts: Prompts, search: Search) -> Tensor:
        """Tokens (R, L) behind the prompts."""
        if not len(prompts.input_ids):
            return prompts.input_ids.new_zeros(0, 1)
        return search(decoder_state_of(DecoderInputs(model, self.head, memory, prompts)), self.writer.rules).tokens

    def _rewards(self, batch: CaptionBatch, images: Tensor, tokens: Tensor) -> Tensor:
        """The rewards (R,), float64 on the CPU, of captions with tokens (R, L) of images (R,)."""
        if not len(images):
            return torch.zeros(0, dtype=torch.float64)
        assert self.reward is not None
        said = [self.writer.words.text(row) for row in self.writer.rules.said(tokens)]
        has_ended = (tokens == self.writer.rules.end).any(dim=1).tolist()
        ids = [batch["image_ids"][image] for image in images.tolist()]
        return torch.tensor(self.reward(batch["source"], ids, said, has_ended), dtype=torch.float64)

    def _baselines(
        self, model: Reader, batch: CaptionBatch, encoded: Encoded, images: Tensor, rewards: Tensor
    ) -> Tensor:
        """What each sample (R,) is measured against."""
        if self.baseline == MEAN:
            return others_mean(rewards.view(-1, self.samples)).flatten()
        greedy = self._said(model, encoded.memory, self.writer.prompts(images, self.head), Greedy())
        return self._rewards(batch, images, greedy).repeat_interleave(self.samples)

    def longest(self, length: int) -> int:
        """A caption that is said, behind the prompt."""
        return len(self.writer.prompt_ids) + self.writer.rules.max_length

    def prompted(self, length: int) -> int:
        """The prompt."""
        return self.writer.prompted(length)

    def said(self, model: VisionLanguageModel, batch: CaptionBatch, encoded: Encoded) -> DecoderInputs:
        """What the caption of each image follows."""
        return self.writer.inputs(model, self.head, batch, encoded)

    def saying(self) -> GenerationConfig:
        return self.writer.rules

    def predict(self, model: VisionLanguageModel, batch: CaptionBatch, encoded: Encoded) -> Records:
        """COCO's own records, one an image: {"image_id", "caption"}."""
        return self.writer.predict(model, self.head, batch, encoded)

    def reply(self, model: VisionLanguageModel, batch: CaptionBatch, encoded: Encoded, top: int) -> Records:
        """As Captioning."""
        return self.writer.reply(model, self.head, batch, encoded)


def sample_log_probs(
    model: Reader,
    head: nn.Module | None,
    memory: Memory,
    prompts: Prompts,
    tokens: Tensor,
    sampling: Sampling,
    rules: GenerationConfig,
) -> Tensor:
    """log p (R,) of drawn tokens (R, L), summed up to the first end, by what ``sampling`` drew them from under the rules."""
    length = tokens.shape[1]
    is_end = tokens == rules.end
    is_said = is_end.cumsum(dim=1) - is_end.long() == 0  # up to the end, and the end
    ids = torch.cat([prompts.input_ids, tokens], dim=1)
    mask = torch.cat([prompts.attention_mask, is_said.to(prompts.attention_mask)], dim=1)
    states = fuse_causal(model, memory, prompts._replace(input_ids=ids, attention_mask=mask))
    found = []
    for place in range(length):
        logits = at_least_fp32(word_logits(model, head, states[:, prompts.input_ids.shape[1] - 1 + place]))
        allowed = rules.restrict(F.log_softmax(logits, dim=1), tokens[:, :place])
        log_prob = _of(F.log_softmax(sampling.kept(allowed), dim=1), tokens[:, place], rules)
        # a token at the edge of top-k or top-p may lie behind it by the rounding of this pass, but it was drawn
        whole = _of(F.log_softmax(allowed / sampling.temperature, dim=1), tokens[:, place], rules)
        log_prob = log_prob.where(log_prob > UNLIKELY, whole)
        found.append(log_prob.where(is_said[:, place], torch.zeros_like(log_prob)))
    return torch.stack(found, dim=1).sum(dim=1)


def _of(log_probs: Tensor, tokens: Tensor, rules: GenerationConfig) -> Tensor:
    """log p (R,) of tokens (R,) by log p (R, V) of all; the end stands for all that end a text."""
    found = log_probs.gather(1, tokens[:, None]).squeeze(1)
    if rules.other_ends:
        ends = log_probs[:, list(rules.ends)].exp().sum(dim=1)
        found = torch.where(tokens == rules.end, ends.clamp(min=torch.finfo(ends.dtype).tiny).log(), found)
    return found


def policy_loss(log_probs: Tensor, advantages: Tensor) -> Tensor:
    """- mean over samples (R,) of advantage * log p; exactly 0, and so its gradient, where all advantages are."""
    return global_mean(-(advantages.detach() * log_probs).sum(), len(log_probs))


def others_mean(rewards: Tensor) -> Tensor:
    """The mean of the others of its row, of rewards (N, K); exactly the reward itself where all of a row are equal."""
    gaps = rewards[:, :, None] - rewards[:, None, :]  # of equal ones 0, where a sum would round
    return rewards - gaps.sum(dim=2) / (rewards.shape[1] - 1)


def deviation(total: Tensor, squares: Tensor, count: Tensor) -> Tensor:
    """The standard deviation of numbers by their sum, that of their squares, and how many there are."""
    return (squares / count - (total / count) ** 2).clamp(min=0).sqrt()


@contextmanager
def without_dropout(*modules: nn.Module | None) -> Iterator[None]:
    """Evaluation mode within; each part is in its own mode afterwards."""
    modes = [(part, part.training) for module in modules if module is not None for part in module.modules()]
    try:
        for part, _ in modes:
            part.training = False
        yield
    finally:
        for part, mode in modes:
            part.training = mode
