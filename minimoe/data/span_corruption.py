"""Span corruption: stretches of a text go, a sentinel for each, and are to be said after theirs.

C. Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
Transformer", 2019. arXiv:1910.10683v4, Section 3.1.4: 15 % of the tokens go, in spans of 3 on
average. How they are drawn is in the released code alone (text-to-text-transfer-transformer
e081111, data/preprocessors.py), which this follows:

    text     Thank you for inviting me to your party last week
    source   Thank you <V-1> me to your party <V-2> <end>
    target   <V-1> for inviting <V-2> last week <end>

    L tokens of text    V size of the vocabulary, whose last are the sentinels
"""
from typing import NamedTuple

import numpy as np

END = 1          # closes source and target; 0 is padding, and what a decoder begins with


class Example(NamedTuple):
    source: np.ndarray    # [L - noise + spans + 1] int   for the encoder
    target: np.ndarray    # [noise + spans + 1] int       for the decoder to say


def n_noise_and_spans(length, density=0.15, mean_span=3.0):
    """How many of ``length`` tokens go, and in how many spans; halves are rounded to the even.

    ValueError for a length below 2, and for spans that are more than the tokens between them.
    """
    if length < 2:
        raise ValueError(f"span corruption: needs 2 tokens or more; got {length}")
    n_noise = min(max(round(length * density), 1), length - 1)
    n_spans = max(1, round(n_noise / mean_span))
    if n_spans > min(n_noise, length - n_noise):
        raise ValueError(f"span corruption: {n_noise} of {length} tokens cannot go in {n_spans} "
                         f"spans with tokens between them")
    return n_noise, n_spans


def lengths(length, density=0.15, mean_span=3.0):
    """Of source and target: 512 and 114 for a text of 568."""
    n_noise, n_spans = n_noise_and_spans(length, density, mean_span)
    return length - n_noise + n_spans + 1, n_noise + n_spans + 1


def noise_mask(rng, length, density=0.15, mean_span=3.0):
    """True for the tokens that go: never the first, always the last. -> [L] bool"""
    n_noise, n_spans = n_noise_and_spans(length, density, mean_span)
    kept = composition(rng, length - n_noise, n_spans)
    noise = composition(rng, n_noise, n_spans)
    in_turn = np.stack([kept, noise], axis=1).reshape(-1)              # [2 * spans]
    return np.repeat(np.tile([False, True], n_spans), in_turn)


def composition(rng, total, n_parts):
    """Positive numbers of that total, every such list as likely as any other. -> [parts] int"""
    cuts = np.sort(rng.choice(total - 1, n_parts - 1, replace=False)) + 1
    return np.diff(cuts, prepend=0, append=total)


def corrupt(tokens, mask, vocabulary, n_sentinels=100, end=END):
    """Source and target of a text whose tokens go where the mask is True. [L] int, [L] bool

    ValueError for a text with sentinels in it, a mask with more spans than there are sentinels, and
    one that does not begin with a token that stays and end with one that goes.
    """
    if mask[0] or not mask[-1]:
        raise ValueError("span corruption: the first token must stay and the last one go")
    n_spans = int(_begins(mask).sum())
    if n_spans > n_sentinels or tokens.max() >= vocabulary - n_sentinels:
        raise ValueError(f"span corruption: the last {n_sentinels} of {vocabulary} are sentinels; "
                         f"got {n_spans} spans, and a text with {tokens.max()}")
    return Example(_with_sentinels(tokens, mask, vocabulary, end),
                   _with_sentinels(tokens, ~mask, vocabulary, end))


def _begins(mask):
    """True for the first of each stretch where the mask is True. [L] bool -> [L] bool"""
    return mask & ~np.concatenate([[False], mask[:-1]])


def _with_sentinels(tokens, mask, vocabulary, end):
    """Each stretch where the mask is True gives way to a sentinel, one less than that before."""
    begins = _begins(mask)
    marked = np.where(begins, vocabulary - np.cumsum(begins), tokens)
    return np.append(marked[begins | ~mask], end)


def reconstruct(example, vocabulary, n_sentinels=100):
    """The text that ``corrupt`` was given. -> [L] int

    ValueError where source and target do not have the same sentinels in the same order.
    """
    def stretches(tokens):
        """What is before the first sentinel, what follows each of them, and the sentinels."""
        at = np.flatnonzero(tokens >= vocabulary - n_sentinels)
        before, *after = np.split(tokens, at)
        return before, [part[1:] for part in after], tokens[at].tolist()

    before, kept, sentinels = stretches(example.source[:-1])
    nothing, noise, answered = stretches(example.target[:-1])
    if len(nothing) or sentinels != answered:
        raise ValueError("span corruption: source and target have other sentinels")
    return np.concatenate([before, *(part for pair in zip(noise, kept) for part in pair)])


def examples(rng, text, n_examples, length, vocabulary, n_sentinels=100):
    """Stretches of ``length`` from anywhere in a text, each corrupted by itself.

    As all are of one length, so are all sources, and all targets: nothing is padded. ValueError for
    a text that is shorter. [N] int -> Example of [B, S], [B, R]
    """
    if len(text) < length:
        raise ValueError(f"span corruption: needs a text of {length} or more; got {len(text)}")
    starts = rng.integers(len(text) - length + 1, size=n_examples)
    made = [corrupt(text[start:start + length], noise_mask(rng, length), vocabulary, n_sentinels)
            for start in starts]
    return Example(*(np.stack(part) for part in zip(*made)))
