"""Who is chosen, and in what order the chosen queue. Integers throughout: no gradient passes here.

    T tokens, E experts, K experts chosen per token
"""
from minimoe.autodiff.tensor import stop_gradient
from minimoe.backend import namespace


def top_k(scores, k):
    """The k experts of highest score for each token, best first; of equals, the lower index first.

    [T, E] -> [T, K] int. ValueError for a k that is not between 1 and E.
    """
    scores = stop_gradient(scores)
    xp = namespace(scores)
    T, E = scores.shape
    if not 1 <= k <= E:
        raise ValueError(f"top_k: k must be between 1 and {E} experts; got {k}")
    lowest = xp.finfo(scores.dtype).min
    left = xp.maximum(scores, lowest)          # a copy, in which -inf means taken
    choices = []
    for _ in range(k):
        best = left.argmax(axis=-1)            # [T]   the first of equals
        choices.append(best)
        left[xp.arange(T), best] = -xp.inf
    return xp.stack(choices, axis=-1)          # [T, K]


def slots(expert, n_experts, order=None):
    """Each choice's place in the queue of its expert, from 0. [T, K] int -> [T, K] int

    All first choices queue before any second one. Among them tokens queue in their own order, or
    in that of ``order``: [T] int, a permutation, the token to be seated first in front.
    """
    xp = namespace(expert)
    T, K = expert.shape
    line = (expert if order is None else expert[order]).T.reshape(-1)    # [K*T]
    by_expert, counts = group(line, n_experts)
    start = xp.cumsum(counts) - counts                                   # [E]
    place = xp.empty_like(by_expert)
    place[by_expert] = xp.arange(K * T) - start[line[by_expert]]
    place = place.reshape(K, T).T                                        # [T, K]
    if order is None:
        return place
    seated = xp.empty_like(place)
    seated[order] = place
    return seated


def group(expert, n_experts):
    """Choices sorted by expert, and how many each expert has. [N] int -> [N] int, [E] int

    A stable sort of small integers: the cost does not grow with the number of experts, as that of
    a running sum over a one-hot [N, E] would.
    """
    xp = namespace(expert)
    small = expert.astype("uint16") if n_experts <= 2 ** 16 else expert
    return xp.argsort(small, kind="stable"), xp.bincount(expert, minlength=n_experts)
