"""Known figures of peers, from peers.json beside this file: measured on the same workloads, on the card that it names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from octavo.random_model import SHAPES
from octavo.workloads import parse

from octavo_client.bench.roofline import Ceilings, ModelSize, Roofline

_FILE: Final = Path(__file__).with_name("peers.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerFigure:
    """What a peer reached.

    Attributes:
        engine: name of the peer.
        version: its version.
        hardware: the card that it ran on.
        value: in the unit of the metric.
        fraction: of the floor by that card's own ceilings; None where the metric has no floor.
    """

    engine: str
    version: str
    hardware: str
    value: float
    fraction: float | None


def rate_metric(metric: str) -> bool:
    """Tell whether a higher value of a metric is better: rates are, times are not."""
    return metric.endswith("_tok_s")


def fraction_of(metric: str, value: float, floor: float) -> float:
    """Return the share of the best possible value that was reached; 1 is the best possible."""
    return value / floor if rate_metric(metric) else floor / value


def find_peer(shape: str, target: str, workload: str, metric: str, hardware: str) -> PeerFigure | None:
    """Return a peer's figure, if possible on the same card.

    Args:
        shape: such as "llama-8b".
        target: "offline" or "router"; a peer's server stands beside the router.
        workload: full name.
        metric: such as "out_tok_s".
        hardware: name of the card that the figure will stand beside.
    """
    figures = [
        _figure(entry, shape, workload, metric, value)
        for entry in json.loads(_FILE.read_text(encoding="utf-8"))
        if (value := _value(entry, shape, target, workload, metric)) is not None
    ]
    return min(figures, key=lambda figure: figure.hardware != hardware, default=None)


def _value(entry: Mapping[str, Any], shape: str, target: str, workload: str, metric: str) -> float | None:
    value = entry["figures"].get(shape, {}).get(target, {}).get(workload, {}).get(metric)
    return None if value is None else float(value)


def _figure(entry: Mapping[str, Any], shape: str, workload: str, metric: str, value: float) -> PeerFigure:
    roofline = Roofline(ModelSize.of(SHAPES[shape]), Ceilings(**entry["ceilings"]))
    floor = roofline.floors(parse(workload)).get(metric)
    return PeerFigure(
        engine=entry["engine"],
        version=entry["version"],
        hardware=entry["hardware"],
        value=value,
        fraction=None if floor is None else fraction_of(metric, value, floor),
    )
