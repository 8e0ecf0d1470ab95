"""Convolution, pooling and upsampling of images, channels last.

    B      images in a batch             C, O   channels, output channels
    H, W   height and width              P, Q   height and width of a kernel

Loops are over places in a kernel or a window, never over pixels or images.
"""
from minimoe.autodiff.tensor import op
from minimoe.backend import namespace


@op
def conv2d(x, w, *, stride=1, padding=0):
    """y[h, w] = sum_pq x[s h + p, s w + q] w[p, q], x having ``padding`` zeros on each side.

    What deep learning calls a convolution: the kernel is not turned round. Q neighbours of a row
    are copied side by side, so that P products of [B H W', Q C] with [Q C, O] are all there is;
    the cotangents of x and w share such a copy of y's, and only x itself is kept. ValueError for
    shapes that do not fit, a stride below 1, and a padding as large as the kernel.
    [B, H, W, C], [P, Q, C, O] -> [B, H', W', O], H' = (H + 2 padding - P) // stride + 1
    """
    _check_conv2d(x, w, stride, padding)
    xp = namespace(x, w)
    B, H, W, C = x.shape
    P, Q, _, O = w.shape
    rows = _neighbours(_spread(x, 1, padding, padding, H + 2 * padding, W + 2 * padding), Q, stride)
    y = _products(rows, w.reshape(P, Q * C, O), stride)

    def vjp(g):
        # as far apart as the kernel's steps were, y's cotangent is convolved with the kernel turned
        rows = _neighbours(_spread(g, stride, P - 1 - padding, Q - 1 - padding,
                                   H + P - 1, W + Q - 1), Q, 1)        # [B, H + P - 1, W, Q*O]
        to_x = _products(rows, w[::-1, ::-1].swapaxes(2, 3).reshape(P, Q * O, C), 1)
        # a pixel meets the Q cotangents beside it, p rows further down; zeros end each image
        flat = rows.reshape(-1, Q * O)
        pixels = _spread(x, 1, 0, 0, H + P - 1, W).reshape(-1, C)
        to_w = xp.stack([flat[p * W:].T @ pixels[:len(pixels) - p * W] for p in reversed(range(P))])
        return to_x, to_w.reshape(P, Q, O, C)[:, ::-1].swapaxes(2, 3)

    return y, vjp


def _check_conv2d(x, w, stride, padding):
    if x.ndim != 4 or w.ndim != 4 or x.shape[3] != w.shape[2]:
        raise ValueError(f"conv2d: needs x [B, H, W, C] and w [P, Q, C, O]; "
                         f"got shapes {x.shape} and {w.shape}")
    if stride < 1 or not 0 <= padding < min(w.shape[:2]):
        raise ValueError(f"conv2d: needs a stride from 1 and a padding from 0, below the kernel's "
                         f"{w.shape[:2]}; got {stride} and {padding}")
    if any(n + 2 * padding < k for n, k in zip(x.shape[1:3], w.shape)):
        raise ValueError(f"conv2d: the kernel must fit into the image and its padding; "
                         f"got {w.shape[:2]}, {x.shape[1:3]} and {padding}")


def _spread(x, step, top, left, height, width):
    """Zeros, and the pixels of ``x`` among them, ``step`` apart. -> [B, height, width, C]"""
    B, H, W, C = x.shape
    y = namespace(x).zeros((B, height, width, C), x.dtype)
    y[:, top:top + step * H:step, left:left + step * W:step] = x
    return y


def _neighbours(x, Q, step):
    """Q pixels of a row side by side, from every ``step``-th on. -> [B, H, W', Q*C]"""
    B, H, W, C = x.shape
    n = (W - Q) // step + 1
    y = namespace(x).empty((B, H, n, Q, C), x.dtype)
    for q in range(Q):
        y[:, :, :, q] = x[:, :, q:q + step * (n - 1) + 1:step]
    return y.reshape(B, H, n, Q * C)


def _products(rows, w, step):
    """Each of P rows, from every ``step``-th on, times its matrix; summed.

    One product for each of P, whatever the batch: few large products keep threads from waiting for
    one another. [B, H, W, D], [P, D, O] -> [B, H', W, O]
    """
    xp = namespace(rows, w)
    B, H, W, D = rows.shape
    P, _, O = w.shape
    n = (H - P) // step + 1
    if step == 1:        # p rows down is p W further on, in all images at once; those that run into
        height, size = H, (B * H - P + 1) * W             # the next image are dropped in the end
        flat = rows.reshape(-1, D)
        below = [flat[p * W:p * W + size] for p in range(P)]           # views
    else:
        height, size = n, B * n * W
        below = [rows[:, p:p + step * (n - 1) + 1:step].reshape(-1, D) for p in range(P)]
    y = xp.empty((B * height * W, O), xp.result_type(rows, w))
    total, spare = y[:size], xp.empty((size, O), y.dtype)
    xp.matmul(below[0], w[0], out=total)
    for p in range(1, P):
        total += xp.matmul(below[p], w[p], out=spare)
    return xp.ascontiguousarray(y.reshape(B, height, W, O)[:, :n])


# -- Pooling and upsampling ----------------------------------------------------------------------

@op
def max_pool(x, *, size):
    """The largest entry of every ``size`` x ``size`` window, windows side by side.

    Where several are largest, the first, row after row, has the cotangent (as in PyTorch).
    ValueError where windows do not fill the image. [B, H, W, C] -> [B, H/size, W/size, C]
    """
    xp = namespace(x)
    _check_images("max_pool", x, size)
    if x.shape[1] % size or x.shape[2] % size:
        raise ValueError(f"max_pool: windows of {size} must fill the image; got {x.shape[1:3]}")
    places = [(slice(None), slice(i, None, size), slice(j, None, size))
              for i in range(size) for j in range(size)]
    y = x[places[0]]
    for place in places[1:]:
        y = xp.maximum(y, x[place])

    def to_x(g):
        flow, left = xp.zeros(x.shape, g.dtype), g       # left: what has not found its pixel
        for place in places:
            hit = (x[place] == y) | (x[place] != x[place])
            flow[place] = xp.where(hit, left, 0)
            left = xp.where(hit, 0, left)
        return flow

    return y, (to_x,)


@op
def upsample_nearest(x, *, factor):
    """Every pixel repeated ``factor`` times in each direction. [B, H, W, C] -> [B, fH, fW, C]"""
    _check_images("upsample_nearest", x, factor)
    B, H, W, C = x.shape
    y = namespace(x).broadcast_to(x[:, :, None, :, None], (B, H, factor, W, factor, C))
    return (y.reshape(B, H * factor, W * factor, C),
            (lambda g: g.reshape(B, H, factor, W, factor, C).sum(axis=(2, 4)),))


@op
def upsample_bilinear(x, *, factor):
    """Each new pixel from its four nearest, by their distances. [B, H, W, C] -> [B, fH, fW, C]

    Pixels are squares, so the first new centre lies (1 - 1/factor) / 2 outside the first old one
    and takes its value (torch.nn.functional.interpolate with align_corners=False). Each direction's
    weights sum to 1.
    """
    _check_images("upsample_bilinear", x, factor)
    B, H, W, C = x.shape
    tall = _between(x.reshape(B, H, W * C), factor)                    # [B, f*H, W*C]
    wide = _between(tall.reshape(B * H * factor, W, C), factor)        # [B*f*H, f*W, C]

    def to_x(g):
        tall = _onto(g.reshape(B * H * factor, W * factor, C), factor)
        return _onto(tall.reshape(B, H * factor, W * C), factor).reshape(x.shape)

    return wide.reshape(B, H * factor, W * factor, C), (to_x,)


def _between(x, factor):
    """``factor`` entries in place of each along the middle axis. [A, N, R] -> [A, f*N, R]"""
    A, N, R = x.shape
    y = namespace(x).empty((A, N, factor, R), x.dtype)
    for i, offset in enumerate(_offsets(factor)):
        y[:, :, i] = (1 - abs(offset)) * x
        for here, there in _neighbouring(offset):
            y[:, here, i] += abs(offset) * x[:, there]
    return y.reshape(A, N * factor, R)


def _onto(g, factor):
    """The adjoint of ``_between``. [A, f*N, R] -> [A, N, R]"""
    A, _, R = g.shape
    g = g.reshape(A, -1, factor, R)
    x = namespace(g).zeros((A, g.shape[1], R), g.dtype)
    for i, offset in enumerate(_offsets(factor)):
        x += (1 - abs(offset)) * g[:, :, i]
        for here, there in _neighbouring(offset):
            x[:, there] += abs(offset) * g[:, here, i]
    return x


def _offsets(factor):
    """Of the new centres from the old one, in old pixels."""
    return [(i + 0.5) / factor - 0.5 for i in range(factor)]


def _neighbouring(offset):
    """Pairs of slices: entries, and those beside them that the offset points to; at an end, itself.
    """
    first, last = slice(0, 1), slice(-1, None)
    but_first, but_last = slice(1, None), slice(0, -1)
    if offset < 0:
        return (but_first, but_last), (first, first)
    return (but_last, but_first), (last, last)


def _check_images(name, x, n):
    if x.ndim != 4 or n < 1:
        raise ValueError(f"{name}: needs images [B, H, W, C] and a number from 1; "
                         f"got shape {x.shape} and {n}")
