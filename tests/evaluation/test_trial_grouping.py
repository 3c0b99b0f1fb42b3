"""Which trials share computation: those whose treatments are equal, wherever the plans come from."""

from compressor.contracts import Plan, Treatment
from compressor.evaluation.trial_grouping import TrialGrouping

SPANS = {"a": (0, 0), "b": (0, 0), "c": (1, 1)}


def treat(group: int) -> Treatment:
    """Equal to another one for the same group, and another object."""
    return Treatment("int8", 0.5, {"group": group})


def test_trials_are_compared_by_component_and_treatment() -> None:
    plans: list[Plan] = [{"a": treat(1)}, {"a": treat(1), "c": treat(1)}, {"a": treat(2)}, {"b": treat(1)}, {}]
    groups = TrialGrouping(SPANS, 2).group_equal(0, dict(enumerate(plans)), range(5))
    assert groups == [[0, 1], [2], [3], [4]]


def test_trials_of_components_that_share_weights_go_alone() -> None:
    plans: list[Plan] = [{"a": treat(1)}, {"a": treat(1)}, {"b": treat(1)}, {"b": treat(1)}]
    groups = TrialGrouping(SPANS, 2, frozenset({"a", "c"})).group_equal(0, dict(enumerate(plans)), range(4))
    assert groups == [[0], [1], [2, 3]]
