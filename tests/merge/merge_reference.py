"""Every merge method again, from its paper, in numpy's float64: slow, plain, whole tensors.

Nothing here is shared with the package. Random methods take their uniform numbers from `uniform`,
SplitMix64 in Python's integers.
"""

from __future__ import annotations

import hashlib

import numpy as np


def uniform(seed, name, which, n):
    mask = (1 << 64) - 1
    digest = hashlib.blake2b(f"{which}:{seed}:{name}".encode(), digest_size=8).digest()
    key = int.from_bytes(digest, "little")
    numbers = []
    for position in range(n):
        z = (key + (position + 1) * 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        z ^= z >> 31
        numbers.append((z >> 11) / 2**53)
    return np.array(numbers)


def average(xs, **_):
    return sum(xs) / len(xs)


def linear(xs, weights, normalize=True, **_):
    total = sum(w * x for w, x in zip(weights, xs, strict=True))
    return total / sum(weights) if normalize else total


def ema(xs, decay, **_):
    e = xs[0]
    for x in xs[1:]:
        e = decay * e + (1 - decay) * x
    return e


def median(xs, **_):
    return np.median(np.stack(xs), axis=0)


def passthrough(xs, scale=1.0, **_):
    return xs[0] * scale


def lerp(xs, t, **_):
    return xs[0] + t * (xs[1] - xs[0])


def slerp(xs, t, **_):
    a, b = xs
    na, nb = np.linalg.norm(a), np.linalg.norm(b)
    cos = np.clip(np.sum(a / (na if na > 1e-8 else 1) * b / (nb if nb > 1e-8 else 1)), -1, 1)
    if abs(cos) > 0.9995:
        return (1 - t) * a + t * b
    theta = np.arccos(cos)
    return (np.sin((1 - t) * theta) * a + np.sin(t * theta) * b) / np.sin(theta)


def nearswap(xs, base, t, **_):
    difference = xs[0] - base
    step = np.minimum(np.abs(difference), t) * np.sign(difference)
    return base + step


def model_stock(xs, base, **_):
    offsets = [(x - base).ravel() for x in xs]
    n = len(offsets)
    cosines = []
    for i in range(n):
        for j in range(i):
            scale = np.linalg.norm(offsets[i]) * np.linalg.norm(offsets[j])
            cosines.append(offsets[i] @ offsets[j] / scale if scale else 0)
    cos = np.mean(cosines)
    ratio = n * cos / (1 + (n - 1) * cos)
    return ratio * sum(xs) / n + (1 - ratio) * base


def karcher(xs, weights, max_iter=10, tol=1e-5, **_):
    if len(xs) == 1:
        return xs[0]
    alphas = np.array(weights) / sum(weights)
    norms = [np.linalg.norm(x) for x in xs]
    units = [x / r for x, r in zip(xs, norms, strict=True) if r > 0]
    inner = np.array([a for a, r in zip(alphas, norms, strict=True) if r > 0])
    if not units:
        return xs[0] * 0
    inner = inner / inner.sum()
    m = sum(a * u for a, u in zip(inner, units, strict=True))
    m = m / np.linalg.norm(m)
    for _ in range(max_iter):
        v = np.zeros_like(m)
        for a, u in zip(inner, units, strict=True):
            cos = np.clip(np.sum(u * m), -1, 1)
            theta = np.arccos(cos)
            if theta >= tol:
                v = v + a * theta / np.sin(theta) * (u - cos * m)
        length = np.linalg.norm(v)
        if length < tol:
            break
        m = np.cos(length) * m + np.sin(length) * v / length
        m = m / np.linalg.norm(m)
    return sum(a * r for a, r in zip(alphas, norms, strict=True)) * m


def geometric_median(xs, weights, **_):
    """Gradient-free, and not Weiszfeld's way: bisection on nothing, many damped steps instead."""
    points = np.stack([x.ravel() for x in xs])
    weights = np.array(weights, dtype=np.float64)
    z = (weights @ points) / weights.sum()
    for _ in range(20000):
        distance = np.linalg.norm(points - z, axis=1)
        if (distance < 1e-14).any():
            break
        gradient = ((weights / distance) @ (z - points)).ravel()
        hessian_bound = (weights / distance).sum()
        z = z - gradient / hessian_bound
    candidates = [z, *points]
    costs = [weights @ np.linalg.norm(points - c, axis=1) for c in candidates]
    return candidates[int(np.argmin(costs))].reshape(xs[0].shape)


def _task(xs, base, weights, lam, normalize, elect, thin):
    deltas = [w * thin(x - base, i) for i, (x, w) in enumerate(zip(xs, weights, strict=True))]
    if not elect:
        total = sum(deltas)
        return base + lam * (total / sum(weights) if normalize else total)
    sign = np.where(sum(deltas) >= 0, 1, -1)
    total, divisor = np.zeros_like(base), np.zeros_like(base)
    for delta, w in zip(deltas, weights, strict=True):
        agrees = np.sign(delta) == sign
        total = total + np.where(agrees, delta, 0)
        divisor = divisor + np.where(agrees, w, 0)
    if normalize:
        total = total / np.where(divisor == 0, 1, divisor)
    return base + lam * total


def _rescaled(kept, delta, rescale, chance=None):
    if rescale == "density":
        return np.divide(kept, chance, out=np.zeros_like(kept), where=np.asarray(chance) > 0)
    if rescale == "l1" and np.abs(kept).sum() > 0:
        return kept * (np.abs(delta).sum() / np.abs(kept).sum())
    return kept


def task_arithmetic(xs, base, weights, normalize=False, **k):
    return _task(xs, base, weights, k.get("lambda", 1.0), normalize, False, lambda d, _i: d)


def ties(xs, base, weights, density, normalize=True, rescale="none", **k):
    def trim(delta, which):
        if density[which] >= 1:
            return delta
        count = max(1, int(density[which] * delta.size)) if density[which] > 0 else 0
        order = np.argsort(-np.abs(delta).ravel(), kind="stable")
        kept = np.zeros(delta.size)
        kept[order[:count]] = delta.ravel()[order[:count]]
        return _rescaled(kept.reshape(delta.shape), delta, rescale)

    return _task(xs, base, weights, k.get("lambda", 1.0), normalize, True, trim)


def _dare(xs, base, weights, density, normalize, rescale, elect, seed, name, lam):
    def drop(delta, which):
        if density[which] >= 1:
            return delta
        stays = uniform(seed, name, which, delta.size).reshape(delta.shape) < density[which]
        return _rescaled(np.where(stays, delta, 0), delta, rescale, density[which])

    return _task(xs, base, weights, lam, normalize, elect, drop)


def dare_linear(xs, base, weights, density, normalize=False, rescale="density", **k):
    lam = k.get("lambda", 1.0)
    return _dare(xs, base, weights, density, normalize, rescale, False, k["seed"], k["name"], lam)


def dare_ties(xs, base, weights, density, normalize=True, rescale="density", **k):
    lam = k.get("lambda", 1.0)
    return _dare(xs, base, weights, density, normalize, rescale, True, k["seed"], k["name"], lam)


def _della(xs, base, weights, density, epsilon, normalize, rescale, elect, seed, name, lam):
    def magprune(delta, which):
        if density[which] >= 1:
            return delta
        if density[which] == 0:
            return delta * 0
        rows = delta.reshape(delta.shape[0] if delta.ndim > 1 else 1, -1)
        chance = np.zeros(rows.shape)
        for i, row in enumerate(rows):
            order = np.argsort(np.abs(row), kind="stable")
            for rank, column in enumerate(order):
                share = rank / (len(row) - 1) if len(row) > 1 else 0.5
                chance[i, column] = density[which] - epsilon[which] + 2 * epsilon[which] * share
        chance = chance.reshape(delta.shape)
        stays = uniform(seed, name, which, delta.size).reshape(delta.shape) < chance
        return _rescaled(np.where(stays, delta, 0), delta, rescale, chance)

    return _task(xs, base, weights, lam, normalize, elect, magprune)


def della(xs, base, weights, density, epsilon, normalize=True, rescale="density", **k):
    lam, seed, name = k.get("lambda", 1.0), k["seed"], k["name"]
    return _della(xs, base, weights, density, epsilon, normalize, rescale, True, seed, name, lam)


def della_linear(xs, base, weights, density, epsilon, normalize=False, rescale="density", **k):
    lam, seed, name = k.get("lambda", 1.0), k["seed"], k["name"]
    return _della(xs, base, weights, density, epsilon, normalize, rescale, False, seed, name, lam)


def _breadcrumbs(xs, base, weights, density, gamma, normalize, rescale, elect, lam):
    def mask(delta, which):
        if density[which] >= 1:
            return delta
        n = delta.size
        stay, top = int(density[which] * n), int(gamma[which] * n)
        bottom = max(0, n - stay - top)
        order = np.argsort(np.abs(delta).ravel(), kind="stable")
        kept = np.zeros(n)
        kept[order[bottom : bottom + stay]] = delta.ravel()[order[bottom : bottom + stay]]
        return _rescaled(kept.reshape(delta.shape), delta, rescale)

    return _task(xs, base, weights, lam, normalize, elect, mask)


def breadcrumbs(xs, base, weights, density, gamma, normalize=False, rescale="none", **k):
    lam = k.get("lambda", 1.0)
    return _breadcrumbs(xs, base, weights, density, gamma, normalize, rescale, False, lam)


def breadcrumbs_ties(xs, base, weights, density, gamma, normalize=True, rescale="none", **k):
    lam = k.get("lambda", 1.0)
    return _breadcrumbs(xs, base, weights, density, gamma, normalize, rescale, True, lam)


def sce(xs, base, select_topk=1.0, **_):
    deltas = np.stack([x - base for x in xs])
    if select_topk < 1:
        variance = deltas.var(axis=0)
        count = int(np.count_nonzero(variance) * select_topk)
        selected = np.zeros(variance.size, dtype=bool)
        selected[np.argsort(-variance.ravel(), kind="stable")[:count]] = True
        deltas = deltas * selected.reshape(variance.shape)
    squares = (deltas**2).reshape(len(xs), -1).sum(axis=1)
    total = squares.sum()
    eta = squares / total if total else np.full(len(xs), 1 / len(xs))
    sign = np.where(deltas.sum(axis=0) >= 0, 1, -1)
    share = (np.sign(deltas) == sign) * eta.reshape(-1, *[1] * base.ndim)
    divisor = share.sum(axis=0)
    return base + (share * deltas).sum(axis=0) / np.where(divisor == 0, 1, divisor)


def _arc(a, b, t):
    """A point on the arc between two vectors; on the line where they are parallel."""
    lengths = [max(float(np.sqrt((x**2).sum())), 1e-7) for x in (a, b)]
    cosine = np.clip((a * b).sum() / lengths[0] / lengths[1], -1, 1)
    if 1 - cosine**2 <= 1e-16:
        return (1 - t) * a + t * b
    theta = np.arccos(cosine)
    return (np.sin((1 - t) * theta) * a + np.sin(t * theta) * b) / np.sin(theta)


def nuslerp(xs, weights, flatten=True, row_wise=False, **_):
    total = sum(weights)
    t = 0.5 if abs(total) < 1e-6 else weights[1] / total
    if flatten or not xs[0].ndim:
        return _arc(*xs, t)
    axis = 0 if row_wise else -1
    rows = [np.moveaxis(x, axis, -1) for x in xs]
    result = np.empty_like(rows[0])
    for place in np.ndindex(result.shape[:-1]):
        result[place] = _arc(rows[0][place], rows[1][place], t)
    return np.moveaxis(result, -1, axis)


def nuslerp_delta(xs, base, **k):
    return base + nuslerp([x - base for x in xs], **k)


def multislerp(xs, weights, normalize_weights=True, eps=1e-8, **_):
    weights = np.array(weights, dtype=float)
    if normalize_weights:
        weights /= weights.sum()
    flat = np.stack([x.ravel() for x in xs])
    norms = np.linalg.norm(flat, axis=1)
    units = flat / (norms + eps)[:, None]
    mean = weights @ units
    mean /= np.linalg.norm(mean)
    tangent = weights @ (units - np.outer(units @ mean, mean))
    angle = np.linalg.norm(tangent) + eps
    result = mean * np.cos(angle) + tangent * np.sin(angle) / angle
    return (result * (weights @ norms)).reshape(xs[0].shape)


def multislerp_delta(xs, base, **k):
    return base + multislerp([x - base for x in xs], **k)


def _softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True) + 1e-8


def arcee_fusion(xs, base, **_):
    rows, others = np.atleast_1d(base), np.atleast_1d(xs[0])
    p, q = _softmax(others), _softmax(rows)
    importance = np.abs(others - rows) * (p * np.log(p / q)).sum(axis=-1, keepdims=True)
    ordered = np.sort(importance.ravel())
    first, middle, third = (ordered[int(s * (ordered.size - 1))] for s in (0.25, 0.5, 0.75))
    taken = importance >= middle + 1.5 * (third - first)
    return np.where(taken, others, rows).reshape(base.shape)


def ram(xs, base, epsilon=1e-5, **_):
    deltas = np.stack([x - base for x in xs])
    changed = np.abs(deltas) > epsilon
    return base + (deltas * changed).sum(axis=0) / np.maximum(changed.sum(axis=0), 1)


def ramplus_tl(xs, base, r=0.1, alpha=0.2, epsilon=1e-5, **_):
    deltas = np.stack([x - base for x in xs])
    changed = np.abs(deltas) > epsilon
    count = changed.sum(axis=0)
    result = base.copy()
    for delta, mine in zip(deltas, changed, strict=True):
        alone, shared = mine & (count == 1), mine & (count > 1)
        ratio = shared.sum() / max(alone.sum(), epsilon)
        result = result + delta * alone * (1 + r * min(ratio, alpha))
        result = result + delta * shared / np.maximum(count, 1)
    return result
