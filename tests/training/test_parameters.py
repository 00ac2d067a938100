import warnings

import pytest
import torch
from freeze_helpers import NET, conv, linear, net, norm
from torch.nn.utils import prune

from ckpt_surgery.training.parameters import Inventory, NamedEntry, Structure


def layers(entries: list[NamedEntry]) -> dict[str, int]:
    inventory = Inventory.of(entries)
    return {
        p.module: layer for p, layer in zip(inventory.parameters, inventory.layers, strict=True)
    }


def test_the_index_counts_parameters_and_not_buffers() -> None:
    inventory = net()
    assert [p.index for p in inventory.parameters] == list(range(11))
    assert inventory.parameters[3].name == "layer1.0.conv1.weight"
    assert NET[3].name == "bn1.running_mean"


def test_only_entries_without_a_role_are_guessed() -> None:
    assert net().guessed == 11
    told = Inventory.of(
        [NamedEntry("w", (1,), role="parameter"), NamedEntry("b", (1,), role="buffer")]
    )
    assert (told.guessed, [p.name for p in told.parameters], told.buffers) == (0, ["w"], ("b",))


def test_integers_of_a_bare_state_dict_are_no_parameters() -> None:
    entries = [
        NamedEntry("w", (2,)),
        NamedEntry("ids", (2,), "int64"),
        NamedEntry("mask", (2,), "bool"),
    ]
    assert Inventory.of(entries).buffers == ("ids", "mask")


def test_a_tied_parameter_counts_once_and_keeps_its_names() -> None:
    tied = Inventory.of(
        [
            NamedEntry("enc.w", (2, 2), tie=1),
            NamedEntry("mid.w", (2,)),
            NamedEntry("dec.w", (2, 2), tie=1),
        ]
    )
    assert [p.names for p in tied.parameters] == [("enc.w", "dec.w"), ("mid.w",)]
    assert list(tied.names) == ["enc.w", "dec.w", "mid.w"]


def test_statistics_are_the_modules_with_running_buffers() -> None:
    assert net().statistics == ("bn1", "layer1.0.bn1", "layer1.1.bn1")


def test_children_of_a_file_are_the_first_segments() -> None:
    assert net().children == ("conv1", "bn1", "layer1", "fc")
    structure = Structure(("conv1", "bn1", "relu", "layer1", "fc"), {})
    assert Inventory.of(NET, structure).children[2] == "relu"


def test_the_head_is_the_module_with_the_last_matrix() -> None:
    assert net().head == {"fc.weight", "fc.bias"}
    assert Inventory.of(norm("bn", 3)).head == frozenset()


def test_an_auxiliary_classifier_belongs_to_the_head() -> None:
    entries = [
        *conv("stem.conv", 3, 10),
        *linear("aux1.fc1", 4, 10),
        *linear("aux1.fc2", 10, 10),
        *linear("aux2.fc", 10, 7),
        *linear("fc", 4, 10),
    ]
    assert Inventory.of(entries).head == {
        "aux1.fc2.weight",
        "aux1.fc2.bias",
        "fc.weight",
        "fc.bias",
    }


def test_layers_are_stem_blocks_head_and_a_norm_joins_the_layer_before_it() -> None:
    assert layers([*NET[:-2], *norm("final", 4), *NET[-2:]]) == {
        "conv1": 0,
        "bn1": 0,
        "layer1.0.conv1": 1,
        "layer1.0.bn1": 1,
        "layer1.1.conv1": 2,
        "layer1.1.bn1": 2,
        "final": 2,
        "fc": 3,
    }


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["features.0", "features.3", "classifier.1", "classifier.6"], [0, 1, 2, 3]),
        (
            ["stem.c", "blocks.0.a", "blocks.0.mlp.1", "blocks.11.a", "neck.a", "head"],
            [0, 1, 1, 2, 3, 4],
        ),
        (
            [
                "features.denseblock1.denselayer1.conv1",
                "features.denseblock1.denselayer2.conv1",
                "fc",
            ],
            [0, 1, 2],
        ),
        (
            ["mixed5b.branch1.conv", "mixed5b.branch2.conv", "mixed5c.branch1.conv", "fc"],
            [0, 0, 1, 2],
        ),
        (["stage2.0.branch1.0", "stage2.0.branch2.0", "stage2.1.branch1.0", "fc"], [0, 0, 1, 2]),
    ],
)
def test_blocks_are_found_from_names(names: list[str], expected: list[int]) -> None:
    assert (
        list(layers([NamedEntry(f"{name}.weight", (4, 4)) for name in names]).values()) == expected
    )


def test_without_a_model_one_dimensional_parameters_are_norms() -> None:
    inventory = net()
    norms = [p.name for p in inventory.parameters if inventory.is_norm(p)]
    assert norms == [
        f"{module}.{leaf}"
        for module in ("bn1", "layer1.0.bn1", "layer1.1.bn1")
        for leaf in ("weight", "bias")
    ]


def test_with_a_model_the_kind_of_the_module_decides() -> None:
    structure = Structure(("bn1",), {"layer1.0.conv1": "norm", "bn1": "other"})
    inventory = Inventory.of(NET, structure)
    assert [p.name for p in inventory.parameters if inventory.is_norm(p)] == [
        "layer1.0.conv1.weight"
    ]


def test_what_hooks_put_beside_a_parameter_is_a_buffer() -> None:
    """Pruning's mask, and the vectors of spectral norm; weight norm's `weight_v` is a parameter."""
    model = torch.nn.Sequential(*(torch.nn.Linear(3, 3) for _ in range(5)))
    torch.nn.utils.parametrizations.orthogonal(model[4])  # has a `base`
    prune.random_unstructured(model[0], "weight", 0.5)
    torch.nn.utils.spectral_norm(model[1])
    torch.nn.utils.parametrizations.spectral_norm(model[2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.nn.utils.weight_norm(model[3])
    entries = (NamedEntry(name, tuple(t.shape)) for name, t in model.state_dict().items())
    found = Inventory.of(entries)
    assert {p.name for p in found.parameters} == {name for name, _ in model.named_parameters()}
    assert set(found.buffers) == {name for name, _ in model.named_buffers()}
