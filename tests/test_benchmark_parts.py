"""What measurements stand on: counted token-layers, paired differences, kept cases, shares."""

from pathlib import Path

import numpy as np
import pytest
import torch

from compressor.evaluation.bootstrap import draw_resamples
from compressor.models.gradients import checkpointed
from tests.benchmarks.allocation_page import render_page
from tests.benchmarks.asking import ask_peer
from tests.benchmarks.int8share import Ordered, cumulate, describe_last, find_share
from tests.benchmarks.keeping import Keep
from tests.benchmarks.peers.task import Task, counted
from tests.benchmarks.scores import compare_p75, count_verdicts
from tests.support.families import make_network


def test_token_layers_are_counted_however_layers_are_called() -> None:
    network = make_network("llama").requires_grad_(True)
    layers = network.model.layers
    tokens = torch.zeros((2, 5), dtype=torch.long)
    with counted(layers) as cost, torch.no_grad():
        network(tokens)
    assert (cost.forward, cost.backward) == (10 * len(layers), 0)
    with counted(layers) as cost:
        network(tokens, labels=tokens).loss.backward()
    assert (cost.forward, cost.backward, cost.total) == (10 * len(layers), 10 * len(layers), 30 * len(layers))
    with counted(layers) as cost, checkpointed(layers):
        network(tokens, labels=tokens).loss.backward()
    assert (cost.forward, cost.backward) == (20 * len(layers), 10 * len(layers))
    assert not any(layer.post_attention_layernorm._forward_hooks for layer in layers)


def test_an_allocation_takes_the_bits_of_its_formats() -> None:
    bits = {"a": {"int4": 5, "int8": 9, "none": 16}, "b": {"int4": 10, "int8": 18, "none": 32}}
    task = Task("", [[1, 2, 3], [4, 5, 6]], 1, 64, bits, [20], False)
    assert task.count({}) == 48 and task.count({"a": "int4", "b": "int8"}) == 23
    assert task.parameters == 3
    assert [batch.tolist() for batch in task.batches()] == [[[1, 2, 3]], [[4, 5, 6]]]


def test_percentiles_are_compared_pair_by_pair() -> None:
    generator = np.random.default_rng(0)
    second = generator.normal(10, 5, 40)
    first = second + 1 + generator.normal(0, 0.1, 40)
    value, low, high = compare_p75(first, second)
    loop = [np.percentile(first[i], 75) - np.percentile(second[i], 75) for i in draw_resamples(40, 0)]
    assert (low, high) == pytest.approx(tuple(np.percentile(loop, (2.5, 97.5))))
    assert low < value < high and high - low < 0.5


def test_differences_are_counted_by_what_is_better() -> None:
    rows = [
        {"method": "ours"},
        {"method": "a", "kl − ours": [0.1, 0.05, 0.2], "fdtm − ours": [1.0, 0.5, 2.0], "FDT75 − ours": [0.0, 0.0, 0.0]},
        {"method": "a", "kl − ours": [-0.1, -0.2, 0.01], "fdtm − ours": [-1.0, -2.0, -0.5], "kl − other": [1, 1, 1]},
    ]
    found = {
        row["against ours"]: (row["better"], row["worse"], row["tied"])
        for row in count_verdicts(rows, "method", "ours")
    }
    assert found == {"kl": (0, 1, 1), "fdtm": (1, 1, 0), "FDT75": (0, 0, 1), "all": (1, 2, 2)}


def test_cases_are_kept_and_found_again(tmp_path: Path) -> None:
    keep = Keep(tmp_path / "new")
    assert ("a b", 1) not in keep
    with pytest.raises(KeyError):
        keep["a b", 1]
    keep["a b", 1] = {"x": np.arange(3)}
    again = Keep(tmp_path / "new")
    assert ("a b", 1) in again and ("a b", 2) not in again
    assert again["a b", 1]["x"].tolist() == [0, 1, 2]
    assert [path.suffix for path in (tmp_path / "new").iterdir()] == [".pickle"]
    unkept = Keep()
    unkept["c",] = 1
    assert unkept["c",] == 1


def test_the_share_ends_where_values_first_fall() -> None:
    shares = np.array([0.1, 0.4, 0.5, 1.0])
    assert find_share(np.array([64.0, 60.0, 50.0, 60.0]), shares, 57.6) == 0.4
    assert find_share(np.array([50.0, 64.0, 64.0, 64.0]), shares, 57.6) == 0.0
    assert find_share(np.array([64.0, 64.0, 64.0, 57.6]), shares, 57.6) == 1.0


def test_components_that_come_last_are_set_against_the_others() -> None:
    names = [f"model.layers.{n}.mlp.up_proj" for n in range(5)]
    outliers = {name: {"kurtosis": 3.0 + n, "max/std": 4.0 - n, "inputs": 2.0} for n, name in enumerate(names)}
    outliers[names[0]]["inputs"] = 9.0
    sizes = {name: 10 * (n + 1) for n, name in enumerate(names)}
    one = Ordered(names, [1, 3, 5], sizes, np.zeros((3, 2)), outliers)
    assert cumulate(one) == pytest.approx([1 / 15, 6 / 15, 1.0])
    row = describe_last([one, one])
    assert row["last"] == "4.up_proj (2)"
    assert row["kurtosis, last"] == 7.0 and row["kurtosis, others"] == 4.5
    assert row["kurtosis, rank"] == pytest.approx(1.0) and row["max/std, rank"] == pytest.approx(-1.0)


def test_who_cannot_be_asked_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask_peer("modelopt", "nobody", tmp_path, {}) is None
    assert "nobody is left out: there is no" in capsys.readouterr().err
    assert ask_peer("nothing", "here", None, {}) is None
    assert "here is left out: exit 1: " in capsys.readouterr().err


def test_a_page_of_tables_says_numbers_in_three_digits() -> None:
    scores = {"fdtm": [12.345], "sdtm": [4.0], "kl": [0.01234], "perplexity": [123.4]}
    rows = [
        {"model": "m", "budget": "20% sparsity", "method": "first", "seeds": 2, "passes": 4.4, **scores},
        {"model": "m", "budget": "20% sparsity", "method": "second", "seeds": 2, "passes": 85.0, **scores}
        | {"sdtm − first": [-0.126, -0.2, 0.05], "kl − first": [-0.00014, -0.0002, 0.0]},
    ]
    lines = render_page(rows).splitlines()
    assert lines[lines.index("## m, 20 % sparsity") + 2] == "2 seeds."
    assert lines[-2] == "| first | 4 | 12.3 | 4.00 | 0.0123 | 123 | – | – |"
    assert lines[-1] == (
        "| second | 85 | 12.3 | 4.00 | 0.0123 | 123 | −0.13 (−0.20 … +0.05) | −0.0001 (−0.0002 … +0.0000) |"
    )
