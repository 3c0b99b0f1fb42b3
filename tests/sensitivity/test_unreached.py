"""What is said of components that no token came to."""

from compressor.contracts import Component
from compressor.sensitivity.unreached import can_be_reached, describe_unreached

EXPERTS = [Component(f"layers.0.experts.down:{i}", "down", 0, (4, 4), 16) for i in range(8)]
DEAD = [EXPERTS[3].name, EXPERTS[5].name]


def test_more_prefixes_are_advised_only_where_they_can_help() -> None:
    few = describe_unreached(EXPERTS, DEAD, 4, 16)
    assert few == (
        "2 of 8 components (layers.0.experts.down:3, layers.0.experts.down:5), which none of the 64 tokens after 4 "
        "prefixes reached; more prefixes (data.prefixes) may reach them"
    )
    many = describe_unreached(EXPERTS, DEAD, 64, 64)
    assert "none of the 4,096 tokens after 64 prefixes" in many and "may reach" not in many
    assert many.endswith("their router chooses them hardly ever, or never, so more prefixes will hardly help")
    assert not can_be_reached(EXPERTS, [], 0)
