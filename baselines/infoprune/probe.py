"""How much a layer's heads tell about the answer: the held-out cross-entropy of a linear probe bounds I(Y; Z).

    read = Reading.of(vlm, samples)
    read.information(read.inputs["language.3"] * mask @ weight.T)  # nats

A probe's cross-entropy is at least H(Y | Z). So H(Y) minus this cross-entropy is a lower bound on I(Y; Z): the
information that a linear reader finds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax
from torch import Tensor

from baselines.linalg import inverse_whitener
from harness.statistics import Calibration
from harness.types import VLM, InputError, Sample

FOLDS = 4
FLOOR = 1e-3  # share of the mean variance, added in every direction so that whitening does not amplify noise
RIDGE = 0.1  # penalty on the squared weights of whitened features, per sample


@dataclass(frozen=True)
class Reading:
    """One row per question: each block's input of the Linear after its heads, and the answer as a class.

    inputs: by block name, (n, columns), float64: in the vision tower the mean over patches, in the language model the
    last token of the prompt. labels: (n,). folds: (n,), the same for all questions about an image.
    """

    inputs: dict[str, Tensor]
    labels: np.ndarray
    folds: np.ndarray

    @classmethod
    def of(cls, vlm: VLM, samples: Sequence[Sample]) -> Reading:
        """One pass over the samples with a frequent answer: at least 4 times, and in 2 % of the samples.

        Raises InputError if fewer than two answers are frequent.
        """
        least = max(FOLDS, len(samples) // 50)
        frequent = {answer for answer, count in Counter(s.answer for s in samples).items() if count >= least}
        if len(frequent) < 2:
            raise InputError(
                f"theory: --samples {len(samples)}: a probe needs two answers that occur {least} times or more"
            )
        used = [sample for sample in samples if sample.answer in frequent]
        classes = sorted(frequent)
        return cls(
            inputs=_inputs(vlm, used),
            labels=np.array([classes.index(sample.answer) for sample in used]),
            folds=np.array([int(sha256(sample.image.tobytes()).hexdigest(), 16) % FOLDS for sample in used]),
        )

    def information(self, features: Tensor) -> float:
        """Held-out H(Y) minus the held-out cross-entropy of a probe on features (n, d), in nats; below 0 for noise."""
        none = features.new_zeros(len(features), 1)
        return cross_entropy(none, self.labels, self.folds) - cross_entropy(features, self.labels, self.folds)


def _inputs(vlm: VLM, samples: Sequence[Sample]) -> dict[str, Tensor]:
    single = Calibration(vlm, samples, batch_size=1)
    answer_lengths = [int((batch["labels"] != -100).sum()) for batch in single.batches()]
    blocks = {block.heads.consumer: block for block in vlm.blocks}
    rows_by_block: dict[str, list[Tensor]] = {block.name: [] for block in vlm.blocks}

    def see(path: str, rows: Tensor) -> None:
        block = blocks[path]
        block_rows = rows_by_block[block.name]
        row = (
            rows.double().mean(0)
            if block.component == "vision"
            else rows[-answer_lengths[len(block_rows)] - 1].double()
        )
        block_rows.append(row)

    single.visit(blocks, see)
    return {name: torch.stack(rows) for name, rows in rows_by_block.items()}


def cross_entropy(features: Tensor, labels: np.ndarray, folds: np.ndarray) -> float:
    """Held-out cross-entropy, in nats, of multinomial logistic regression on features (n, d), labels (n,), by fold.

    Features are whitened on the training folds, so the choice of basis matters little. A penalty on the squared weights
    makes the optimum unique. With constant features, the result is nearly the entropy of the training frequencies.
    """
    classes = int(labels.max()) + 1
    total = 0.0
    for fold in np.unique(folds):
        train = torch.from_numpy(folds != fold)
        mean = features[train].mean(0)
        centred = features - mean
        second = centred[train].T @ centred[train] / max(1, int(train.sum()))
        second += FLOOR * second.diagonal().mean() * torch.eye(len(second)).to(second)
        white = centred @ inverse_whitener(second)
        total += _fit(white.cpu().numpy(), labels, train.numpy(), classes)
    return total / len(labels)


def _fit(features: np.ndarray, labels: np.ndarray, train: np.ndarray, classes: int) -> float:
    """The summed cross-entropy, in nats, of the held-out rows."""
    inputs = np.hstack([features, np.ones((len(features), 1))])
    train_inputs, target = inputs[train], np.eye(classes)[labels[train]]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight = flat.reshape(inputs.shape[1], classes)
        logs = log_softmax(train_inputs @ weight, axis=1)
        gradient = train_inputs.T @ (np.exp(logs) - target) / len(train_inputs) + RIDGE * weight
        value = -float((logs * target).sum()) / len(train_inputs) + RIDGE / 2 * float((weight**2).sum())
        return value, gradient.ravel()

    fitted = minimize(loss, np.zeros(inputs.shape[1] * classes), jac=True, method="L-BFGS-B", options={"maxiter": 500})
    logs = log_softmax(inputs[~train] @ fitted.x.reshape(inputs.shape[1], classes), axis=1)
    return -float(logs[np.arange(len(logs)), labels[~train]].sum())
