"""What an encoder can do, tried out on made-up inputs when it is built instead of read off its name or signature."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fusionkit.encoders.base import TextEncoder
from fusionkit.errors import ConfigError
from fusionkit.internals import FAKE_TENSORS, NEEDS_NUMBERS

LENGTH, PADDING = 6, 1  # tokens of a made-up text, and of padding behind it
ROUNDING = 1e-5  # of the largest state: what is nearer than that is equal


class TextAbilities(NamedTuple):
    """What a text encoder turned out to do."""

    pools_text: bool  # the pooled vector depends on the words between the first and the last token
    reads_padding: bool  # the states of a text depend on the padding behind it
    not_causal: str | None  # what goes wrong under a causal mask; None: no token sees those after it
    unreached: Sequence[str]  # the trainable parameters that no state depends on
    is_causal: bool = (
        False  # under a plain mask too no token sees those after it: its states are those under a causal mask
    )


def probe_text(encoder: TextEncoder, pad_token_id: int) -> TextAbilities:
    """Have an encoder read texts that differ in one place each; it and the random generators stay as they were.

    What it raises on plain texts is passed on.
    """
    assert isinstance(encoder, nn.Module)
    with undisturbed(encoder):
        texts = made_up_texts(encoder, pad_token_id)
        length = texts.shape[1]
        mask = torch.ones_like(texts)
        padded = [
            nn.functional.pad(rows, (0, PADDING), value=fill) for rows, fill in ((texts, pad_token_id), (mask, 0))
        ]
        tokens = encoder(*padded)
        unreached = unreached_parameters(encoder, (tokens.embeds, tokens.pooled))
        with torch.no_grad():
            alone = encoder(texts, mask).embeds
            sees_first = differ(alone[0, -1], alone[2, -1])
            is_causal = False
            try:
                states = encoder(texts, causal_mask(texts)).embeds
                not_causal = _fault(states, sees_first)
                is_causal = not_causal is None and not differ(states, alone)
            except Exception as error:  # whatever a library makes of a mask that it does not expect
                not_causal = first_line(error)
        return TextAbilities(
            pools_text=differ(tokens.pooled[0], tokens.pooled[1]),
            reads_padding=differ(tokens.embeds[:, :length], alone, 1e-4),
            not_causal=not_causal,
            unreached=unreached,
            is_causal=is_causal,
        )


def made_up_texts(encoder: TextEncoder, pad_token_id: int) -> Tensor:
    """Four texts (4, L) of two words: one, and others that differ from it between the ends, in the first, in the last token."""
    room = encoder.max_length
    length = LENGTH if room is None else max(3, min(LENGTH, room - PADDING))
    table = encoder.word_embeddings
    one, other = [word for word in range(table.num_embeddings) if word != pad_token_id][-2:]
    first = [one, other, one, one, other, one][:length]
    first[-1] = one
    flipped = {one: other, other: one}
    texts = [
        first,
        [first[0], *[one] * (length - 2), first[-1]],
        [flipped[first[0]], *first[1:]],
        [*first[:-1], flipped[first[-1]]],
    ]
    return torch.tensor(texts, device=table.weight.device)


def causal_mask(texts: Tensor) -> Tensor:
    """(T, L, L) of texts (T, L) without padding: a token sees itself and those before it."""
    length = texts.shape[1]
    return torch.ones(length, length, dtype=torch.long, device=texts.device).tril().expand(len(texts), -1, -1)


def _fault(states: Tensor, sees_first: bool) -> str | None:
    """What is wrong with the states of the four texts under a causal mask."""
    if not states.isfinite().all():
        return "its states are no numbers"
    if differ(states[0, :-1], states[3, :-1]):
        return "a token sees those after it"
    if sees_first and not differ(states[0, -1], states[2, -1]):
        return "a token does not see those before it"
    return None


def differ(states: Tensor, others: Tensor, rounding: float = ROUNDING) -> bool:
    """Whether some states differ by more than rounding."""
    return bool((states - others).abs().max() > rounding * states.abs().max())


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Evaluation mode within; every part is in the mode it was in afterwards, and torch draws what it would have drawn."""
    modes = {part: part.training for part in module.modules()}
    try:
        with torch.random.fork_rng(devices=[]):
            module.eval()
            yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def unreached_parameters(module: nn.Module, outputs: Iterable[Tensor]) -> list[str]:
    """The trainable parameters that no output was computed from, read off the graph: no gradient is computed."""
    nodes, reached = {output.grad_fn for output in outputs} - {None}, set()
    waiting = list(nodes)
    while waiting:
        node: Any = waiting.pop()
        reached.add(id(getattr(node, "variable", None)))
        fresh = {before for before, _ in node.next_functions if before is not None} - nodes
        nodes |= fresh
        waiting += fresh
    return [name for name, p in module.named_parameters() if p.requires_grad and id(p) not in reached]


def freeze(module: nn.Module, names: Iterable[str]) -> None:
    """Freeze parameters: plain DDP stops where a trainable one gets no gradient."""
    for name in names:
        module.get_parameter(name).requires_grad_(False)


def abilities_of(encoder: TextEncoder, pad_token_id: int) -> TextAbilities:
    """What any text encoder can do: what it says itself, else what a probe finds; what no state depends on is then frozen."""
    found: TextAbilities | None = getattr(encoder, "abilities", None)
    if found is not None:
        return found
    try:
        found = probe_text(encoder, pad_token_id)
    except Exception as error:  # somebody's own encoder
        raise ConfigError(
            f"text_encoder: {type(encoder).__name__} cannot read plain texts ({first_line(error)}); mend it"
        ) from error
    assert isinstance(encoder, nn.Module)
    freeze(encoder, found.unreached)
    return found


def rehearse(module: nn.Module, call: Callable[[Any, Tensor], Any], *shape: int) -> tuple[Any, Any] | None:
    """What ``call`` makes of a weightless copy of a module and an input of this shape: tensors that have shapes and no numbers.

    Gives it and the copy, without memory, arithmetic or a trace on the module (torch's FakeTensorMode); None where the shapes
    depend on the numbers. What the module raises is passed on.
    """
    mode = FAKE_TENSORS(allow_non_fake_inputs=True)
    tensors = list(chain(module.parameters(), module.buffers()))
    twin = copy.deepcopy(module, {id(tensor): mode.from_tensor(tensor) for tensor in tensors}).eval()
    device = tensors[0].device if tensors else None
    with torch.random.fork_rng(devices=[]), mode:
        try:
            return call(twin, torch.zeros(shape, device=device)), twin
        except NEEDS_NUMBERS:
            return None


def first_line(error: BaseException) -> str:
    """What an exception of a library says, in one line: its first, and the next where that only announces it."""
    if type(error) is KeyError:  # which says the key alone
        return f"{error} is not known"
    lines = [line.strip() for line in (str(error) or type(error).__name__).splitlines()]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
