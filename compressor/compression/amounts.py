"""Amounts, sparsity and bits, of each component and over all components."""

from collections.abc import Mapping

from compressor.artifacts.run_record import ComponentRecord, FinalRecord
from compressor.contracts import Component, Plan, Score
from compressor.models import Model


def amount_of(plan: Plan, name: str) -> float:
    """The amount of a component in a plan; 0 if the plan does not treat it."""
    return plan[name].amount if name in plan else 0.0


def mean_amount(components: Mapping[str, Component], plan: Plan) -> float:
    """Mean amount over components, weighted by parameters."""
    total = sum(component.parameters for component in components.values())
    return sum(amount_of(plan, name) * component.parameters for name, component in components.items()) / total


def treated_share(components: Mapping[str, Component], plan: Plan) -> float:
    """Parameters of the treated components as a share of all components' parameters."""
    treated = sum(component.parameters for name, component in components.items() if name in plan)
    return treated / sum(component.parameters for component in components.values())


def describe_components(
    model: Model, plan: Plan, packed_bits: Mapping[str, int], exported_bits: Mapping[str, float]
) -> dict[str, ComponentRecord]:
    """A record of the current state of each component.

    `packed_bits` are the bits that a compressor stores for a component, scales included; without an entry they are
    those of the checkpoint. `exported_bits` are the bits per weight in the exported files.
    """
    records = {}
    for name, component in model.components.items():
        zeros = component.parameters - int(model.read(name).count_nonzero())
        packed = packed_bits.get(name, component.parameters * component.stored_bits)
        records[name] = ComponentRecord(
            kind=component.kind,
            layer=component.layer,
            shape=component.shape,
            parameters=component.parameters,
            compressor=plan[name].compressor if name in plan else None,
            amount=amount_of(plan, name),
            sparsity=zeros / component.parameters,
            bits_per_weight=exported_bits[name],
            packed_bits_per_weight=packed / component.parameters,
        )
    return records


def describe_final(records: Mapping[str, ComponentRecord], size: int, scores: dict[str, Score]) -> FinalRecord:
    """Means over all weights of components, the exported bytes, and the final scores."""
    total = sum(record.parameters for record in records.values())

    def mean(field: str) -> float:
        return float(sum(getattr(record, field) * record.parameters for record in records.values()) / total)

    return FinalRecord(
        amount=mean("amount"),
        sparsity=mean("sparsity"),
        bits_per_weight=mean("bits_per_weight"),
        packed_bits_per_weight=mean("packed_bits_per_weight"),
        bytes=size,
        scores=scores,
    )
