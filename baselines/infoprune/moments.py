"""Moments that can be inverted, however few the calibration questions are.

moments, scarce = regularised_moments(calibration, [block.heads.consumer for block in vlm.blocks])
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from harness.statistics import Calibration, Lazy, Moment


def regularised_moments(calibration: Calibration, paths: list[str]) -> tuple[Mapping[str, Moment], list[str]]:
    """Invertible moments by path, each computed when it is looked up, and the paths of Linears with too few rows.

    A Linear has too few rows if it has more columns. That list is empty at first and fills with the look-ups: read it
    after the last one. A moment of n rows and d > n columns is shrunk towards its diagonal by the share 1 - n / d, with
    a warning.
    """
    moments = calibration.moments(paths)
    scarce: list[str] = []

    def regularised(path: str) -> Moment:
        moment = moments[path]
        width = len(moment.mean)
        if moment.count >= width:
            return moment
        if path not in scarce:
            logging.getLogger(__name__).warning(
                "%s: %d calibration rows for %d columns; its covariance is regularised", path, moment.count, width
            )
            scarce.append(path)
        share = 1 - moment.count / width
        return Moment(moment.count, moment.mean, _towards_diagonal(moment.second, share))

    return Lazy(paths, regularised), scarce


def _towards_diagonal(second: Tensor, share: float) -> Tensor:
    return (1 - share) * second + share * torch.diag(second.diagonal())
