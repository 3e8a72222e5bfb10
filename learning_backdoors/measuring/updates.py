"""How a run's update moves over its checkpoints, from the kept adapters alone: norm, rotation, turns and path.

The update of a module is U = scale * B A. Nothing here forms this matrix: all results follow from the inner products of
the updates of T checkpoints (their Gram matrix), and <U_i, U_j> needs only products of A's with A's and of B's with
B's. Gram matrices of modules add up to that of a layer, or of the whole model.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from learning_backdoors.files.errors import UserError
from learning_backdoors.measuring.turn import SHORT, find_turn
from learning_backdoors.models.lora_matrices import LoraMatrices


class Part(NamedTuple):
    """A part of a model: a projection of a layer. `layer` is -1 outside of the layers."""

    layer: int
    projection: str


WHOLE = Part(-1, "all")  # all modules together


def part_of(module: str) -> Part:
    """The part that a module belongs to: its first number is the layer, its last name the projection."""
    number = re.search(r"\.(\d+)\.", module)
    return Part(int(number[1]) if number else -1, module.rpartition(".")[2])


# ---- inner products ----


def module_grams(adapters: Sequence[LoraMatrices]) -> Iterator[tuple[str, np.ndarray]]:
    """Each module with the inner products of its updates in T adapters, of shape (T, T).

    An adapter without the module has the update 0. Only one module's matrices are in memory at a time. Raises
    UserError if a module has different shapes in two adapters.
    """
    for module in sorted(set().union(*(adapter.modules for adapter in adapters))):
        having = [i for i, adapter in enumerate(adapters) if module in adapter.modules]
        pairs = [adapters[i].factors(module) for i in having]
        if len({(len(b), a.shape[1]) for b, a in pairs}) > 1:
            folders = ", ".join(str(adapters[i].folder) for i in having)
            raise UserError(f"{module} has different shapes in {folders}: these adapters belong to different models")
        gram = np.zeros((len(adapters), len(adapters)))
        gram[np.ix_(having, having)] = inner_products(pairs)
        yield module, gram


def inner_products(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The inner products <B_i A_i, B_j A_j> of T updates, of shape (T, T).

    pairs: B of shape (outputs, rank), A of shape (rank, inputs); ranks may differ. <B_i A_i, B_j A_j> is the trace of
    (B_j' B_i) (A_i A_j'): the sum of a block of the elementwise product of two Gram matrices, of all B and of all A.
    """
    of_b, of_a = np.concatenate([b.T for b, _ in pairs]), np.concatenate([a for _, a in pairs])
    with np.errstate(invalid="ignore"):  # an adapter that diverged has infinite values: its products are NaN
        products = (of_b @ of_b.T) * (of_a @ of_a.T)
    starts = np.cumsum([0, *(len(a) for _, a in pairs[:-1])])
    return np.add.reduceat(np.add.reduceat(products, starts, axis=0), starts, axis=1)


def part_grams(adapters: Sequence[LoraMatrices]) -> dict[Part, np.ndarray]:
    """The inner products of T adapters' updates, of shape (T, T): of each part, and of the whole model first."""
    grams = {WHOLE: np.zeros((len(adapters), len(adapters)))}
    for module, gram in module_grams(adapters):
        for part in (WHOLE, part_of(module)):
            grams[part] = grams.get(part, 0) + gram
    return grams


# ---- geometry of a path ----


def geometry(at: Sequence[int], gram: np.ndarray) -> dict[str, np.ndarray]:
    """The path of an update over T checkpoints `at` these steps, from its Gram matrix (T, T).

    The result has arrays of shape (T,). NaN: not defined. norm: Frobenius norm of the update. rotation: angle between
    the updates of the previous checkpoint and this one, in degrees. local_turn: angle between the changes of the update
    into and out of this checkpoint, in degrees; 0 is straight on. Its cosine is the local cosine similarity of Turner
    et al. (2025), Model Organisms for Emergent Misalignment, with the opposite sign. cosine_to_final: with the update
    of the last checkpoint. pc1, pc2: see `principal_components`. pc_share: the share of the path's variance in these
    two. turn: whether this checkpoint is the turn of the path; turn_angle: its angle; see `find_turn`.
    """
    squares, nan = gram.diagonal(), [np.nan]
    differences = np.diff(np.eye(len(gram)), axis=0)
    changes = differences @ gram @ differences.T
    least = SHORT**2 * squares.max()
    rotation = cosines(gram.diagonal(1), squares[:-1], squares[1:], least)
    local = cosines(changes.diagonal(1), changes.diagonal()[:-1], changes.diagonal()[1:], least)
    path, share = principal_components(gram)
    turn = find_turn(at, gram)
    return {
        "norm": np.sqrt(squares),
        "rotation": np.degrees(np.arccos(np.append(nan, rotation))),
        "local_turn": np.degrees(np.arccos(np.concatenate([nan, local, nan])))[: len(gram)],
        "cosine_to_final": cosines(gram[-1], squares, squares[-1:], least),
        "pc1": path[:, 0],
        "pc2": path[:, 1],
        "pc_share": np.full(len(gram), share),
        "turn": np.asarray(at) == turn.step,
        "turn_angle": np.full(len(gram), turn.angle),
    }


def cosines(products: np.ndarray, first: np.ndarray, second: np.ndarray, least: float) -> np.ndarray:
    """Cosines from inner products and squared norms. NaN if a squared norm is at most `least`."""
    defined = (first > least) & (second > least)
    return np.clip(products / np.sqrt(np.where(defined, first * second, np.nan)), -1, 1)


def principal_components(gram: np.ndarray) -> tuple[np.ndarray, float]:
    """The positions of T updates on the first two principal components of their path (T, 2), from their Gram matrix.

    In the unit of the norm, around the mean. Signs are chosen so that the last position is not below the first one.
    Also the share of the variance in these two; NaN if nothing moves.
    """
    centered = gram - gram.mean(axis=0) - gram.mean(axis=1)[:, None] + gram.mean()
    values, vectors = np.linalg.eigh(centered)
    values, vectors = np.clip(values[::-1], 0, None), vectors[:, ::-1]
    path = np.zeros((len(gram), 2))
    path[:, : len(gram)] = (vectors * np.sqrt(values))[:, :2]
    path *= np.where(path[-1] < path[0], -1, 1)
    return path, float(values[:2].sum() / values.sum()) if values.sum() > 0 else np.nan
