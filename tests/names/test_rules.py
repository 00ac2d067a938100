"""Laws of choosing and rewriting names."""

from __future__ import annotations

import re
from collections import OrderedDict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_surgery.errors import UsageError
from ckpt_surgery.names import Rule, Selection, near, parse_key_list, selection
from ckpt_surgery.names.metadata import rewrite_metadata, strip_metadata
from ckpt_surgery.names.rewrite import (
    AddPrefix,
    MapNames,
    Replace,
    RewriteRule,
    StripPrefix,
    Substitute,
    Within,
    find_collisions,
    parse_name_map,
    require_changes,
    rewrite,
)

NAMES = (
    "conv1.weight",
    "layer1.0.conv1.weight",
    "layer1.0.bn1.running_mean",
    "fc.weight",
    "fc.bias",
)

segments = st.sampled_from(["a", "b", "module", "net", "0", "weight"])
dotted = st.lists(segments, min_size=1, max_size=5).map(".".join)
names_lists = st.lists(dotted, max_size=12, unique=True)


@pytest.mark.parametrize(
    ("kind", "text", "taken"),
    [
        ("pattern", "fc", {"fc.weight", "fc.bias"}),
        ("pattern", r"conv1\.weight", {"conv1.weight", "layer1.0.conv1.weight"}),
        ("pattern", r"^conv1\.weight$", {"conv1.weight"}),
        ("prefix", "fc", {"fc.weight", "fc.bias"}),
        ("prefix", "fc.", {"fc.weight", "fc.bias"}),
        ("prefix", "fc.bias", {"fc.bias"}),
        ("prefix", "layer1.0", {"layer1.0.conv1.weight", "layer1.0.bn1.running_mean"}),
        ("prefix", "layer", set()),
        ("glob", "*.weight", {"conv1.weight", "fc.weight"}),
        ("glob", "**.weight", {"conv1.weight", "layer1.0.conv1.weight", "fc.weight"}),
        ("glob", "layer?.[0-9].**", {"layer1.0.conv1.weight", "layer1.0.bn1.running_mean"}),
        ("glob", "fc.[!w]*", {"fc.bias"}),
        ("glob", "fc", set()),
        ("glob", "fc[!x]weight", set()),
        ("glob", "fc?weight", set()),
    ],
)
def test_rule_takes_exactly(kind, text, taken):
    rule = Rule(kind, text)
    assert {name for name in NAMES if rule.matches(name)} == taken


def test_prefix_is_whole_segments():
    rule = Rule("prefix", "fc")
    assert rule.matches("fc")
    assert not rule.matches("fcn.weight")
    assert not rule.matches("a.fc.weight")


def test_keys_rule_takes_listed_names_only():
    rule = Rule("keys", "names.txt", frozenset({"fc.weight"}))
    assert rule.matches("fc.weight")
    assert not rule.matches("fc.weight.x")
    assert rule.to_dict() == {"kind": "keys", "text": "names.txt", "names": ["fc.weight"]}
    assert rule.option == "--keys-from names.txt"


def test_glob_brackets_are_not_regex():
    assert Rule("glob", "a[b").matches("a[b")
    assert Rule("glob", "a[]]b").matches("a]b")
    assert Rule("glob", "a[\\d]").matches("ad")
    assert Rule("glob", "a[^b]").matches("a^")
    assert Rule("glob", "a.b+").matches("a.b+")
    assert not Rule("glob", "a.b").matches("axb")


def test_glob_takes_names_with_line_breaks():
    assert Rule("glob", "**").matches("a\nb.c")


@pytest.mark.parametrize(
    ("kind", "text"),
    [("pattern", "("), ("pattern", "a{99999999999999999999}"), ("glob", "[z-a]"), ("prefix", ".")],
)
def test_rule_that_cannot_work_is_refused_when_made(kind, text):
    with pytest.raises(UsageError, match=f"--{kind}"):
        Rule(kind, text)


def test_bad_pattern_is_named_with_its_position():
    with pytest.raises(UsageError, match=re.escape("'--pattern fc(' is no valid pattern")) as info:
        Rule("pattern", "fc(")
    assert "position 2" in info.value.message


def test_pattern_that_only_warns_is_taken():
    assert Rule("pattern", "[[]a").matches("[a")


@pytest.mark.parametrize("kind", ["pattern", "prefix", "glob", "keys"])
def test_empty_rule_is_refused(kind):
    with pytest.raises(UsageError, match="is empty"):
        Rule(kind, "")


def test_rules_are_equal_by_what_they_say():
    assert Rule("pattern", "fc") == Rule("pattern", "fc")
    assert len({Rule("pattern", "fc"), Rule("pattern", "fc"), Rule("glob", "fc")}) == 2
    assert Rule("glob", "fc").to_dict() == {"kind": "glob", "text": "fc"}


def test_any_rule_selects_and_each_is_counted():
    chosen = Selection((Rule("prefix", "fc"), Rule("pattern", "weight"))).choose(NAMES)
    assert chosen.chosen == {
        "fc.weight", "fc.bias", "conv1.weight", "layer1.0.conv1.weight"
    }  # fmt: skip
    assert [count for _, count in chosen.counts] == [2, 3]


@given(names_lists, st.lists(dotted, min_size=1, max_size=3))
def test_keep_chooses_the_complement(names, prefixes):
    rules = tuple(Rule("prefix", prefix) for prefix in prefixes)
    taken = Selection(rules).choose(names)
    kept = Selection(rules, keep=True).choose(names)
    assert taken.chosen | kept.chosen == set(names)
    assert not taken.chosen & kept.chosen
    assert taken.counts == kept.counts


def test_selection_in_short_says_the_same():
    short = selection(pattern="fc", prefix=["a", "b"], glob="c*", keys=["k"], keep=True)
    assert short.rules == (
        Rule("pattern", "fc"),
        Rule("prefix", "a"),
        Rule("prefix", "b"),
        Rule("glob", "c*"),
        Rule("keys", "keys", frozenset({"k"})),
    )
    assert short.keep
    assert selection() == Selection()


def test_no_rules_choose_nothing():
    assert Selection().choose(NAMES).chosen == frozenset()


def test_keep_without_a_rule_is_refused():
    with pytest.raises(UsageError, match="--keep"):
        Selection(keep=True)


def require(selection, names=NAMES):
    selection.require_matches(selection.choose(names).counts, names)


def test_rule_that_matches_nothing_is_refused_with_near_names():
    with pytest.raises(UsageError, match=re.escape("'--prefix layer1.1' matches nothing")) as info:
        require(Selection((Rule("prefix", "fc"), Rule("prefix", "layer1.1"))))
    assert "'layer1.0'" in (info.value.hint or "")


def test_listed_key_that_does_not_exist_is_refused_with_near_names():
    rule = Rule("keys", "k.txt", frozenset({"fc.weight", "fc.wieght", "zzz"}))
    with pytest.raises(
        UsageError, match=re.escape("'--keys-from k.txt' lists 'fc.wieght'")
    ) as info:
        require(Selection((rule,)))
    assert "and 1 more" in info.value.message
    assert "'fc.weight'" in (info.value.hint or "")


def test_empty_list_of_keys_is_refused():
    with pytest.raises(UsageError, match="lists no names"):
        require(Selection((Rule("keys", "k.txt"),)))


def test_matching_rules_pass():
    require(Selection((Rule("prefix", "fc"), Rule("keys", "k.txt", frozenset({"fc.bias"})))))


def test_allow_unmatched_takes_rules_that_match_nothing():
    rules = (Rule("prefix", "nope"), Rule("keys", "k.txt", frozenset({"nope"})))
    require(Selection(rules, allow_unmatched=True))


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("fc.wight", "fc.weight"),
        ("FC.weight", "fc.weight"),
        ("bn1", "layer1.0.bn1"),
        (r"layer1\.0\.conv2", "layer1.0.conv1"),
        ("layer2", "layer1"),
    ],
)
def test_near_names_put_the_likeliest_first(text, first):
    assert near(text, NAMES)[0] == first


def test_near_names_are_few_and_may_be_none():
    assert len(near("a.weight", [f"a.weight{i}" for i in range(50)])) == 3
    assert near("xyzzy", NAMES) == []
    assert near(".*", NAMES) == []


def test_near_names_survive_absurd_names():
    assert near("fc.weigth", ["a." * 500_000, "fc.weight"]) == ["fc.weight"]
    assert near("b" * 5000, ["b" * 190, "fc.weight"]) == ["b" * 190]


def test_key_list_is_one_name_a_line():
    assert parse_key_list("\ufefffc.weight\r\n\n fc bias\n") == {"fc.weight", " fc bias"}
    assert parse_key_list("a\u2028b\n") == {"a\u2028b"}


@pytest.mark.parametrize(
    ("rule", "old", "new"),
    [
        (StripPrefix("module"), "module.fc.weight", "fc.weight"),
        (StripPrefix("module."), "module.module.w", "module.w"),
        (StripPrefix("module"), "modules.w", "modules.w"),
        (StripPrefix("module"), "module", "module"),
        (StripPrefix("module._orig_mod."), "module._orig_mod.w", "w"),
        (AddPrefix("module.base_model"), "w", "module.base_model.w"),
        (AddPrefix("module."), "w", "module.w"),
        (Replace(".net", ""), "a.net.b.net.w", "a.b.w"),
        (Substitute(r"^layer(\d)", r"stage\1"), "layer1.layer2.w", "stage1.layer2.w"),
        (Substitute(r"(?P<n>\d+)", r"<\g<n>>"), "a.10.b", "a.<10>.b"),
        (MapNames({"fc.weight": "head.weight"}), "fc.weight", "head.weight"),
        (MapNames({"fc.weight": "head.weight"}), "fc.weight.x", "fc.weight.x"),
    ],
)
def test_rewrite_rule_gives(rule, old, new):
    assert rule.apply(old) == new


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: StripPrefix(""), "--strip-prefix"),
        (lambda: AddPrefix("."), "--add-prefix"),
        (lambda: Replace("", "x"), "--replace"),
        (lambda: Substitute("(", "x"), "--sub"),
        (lambda: Substitute("a", r"\1"), "invalid group reference"),
        (lambda: Substitute("a", r"\g<n>"), "unknown group name"),
    ],
)
def test_rewrite_rule_that_cannot_work_is_refused_when_made(make, said):
    with pytest.raises(UsageError, match=said):
        make()


@pytest.mark.parametrize(
    ("rule", "option", "as_dict"),
    [
        (StripPrefix("m"), "--strip-prefix m.", {"rule": "strip-prefix", "prefix": "m."}),
        (AddPrefix("m"), "--add-prefix m.", {"rule": "add-prefix", "prefix": "m."}),
        (Replace("a", ""), "--replace a ''", {"rule": "replace", "old": "a", "new": ""}),
        (Substitute("a", "b"), "--sub a b", {"rule": "sub", "regex": "a", "repl": "b"}),
        (
            MapNames({"a": "b"}, "m.toml"),
            "--map m.toml",
            {"rule": "map", "source": "m.toml", "names": {"a": "b"}},
        ),
    ],
)
def test_rewrite_rule_says_what_it_is(rule, option, as_dict):
    assert rule.option == option
    assert rule.to_dict() == as_dict


def test_rules_apply_in_order_and_each_is_counted():
    done = rewrite(["module.a.w", "module.b.w"], [StripPrefix("module"), Replace("a.", "b.")])
    assert done.names == ("b.w", "b.w")
    assert done.changed == (2, 1)
    assert done.stages == (("module.a.w", "module.b.w"), ("a.w", "b.w"))


@given(names_lists, dotted)
def test_strip_prefix_is_the_inverse_of_add_prefix(names, prefix):
    assert rewrite(names, [AddPrefix(prefix), StripPrefix(prefix)]).names == tuple(names)


@given(names_lists)
def test_no_rules_change_nothing(names):
    assert rewrite(names, []) == rewrite(names, [])
    assert rewrite(names, []).names == tuple(names)
    assert find_collisions(names, names) == []


@pytest.mark.parametrize(("keep", "new"), [(False, ["x.a", "b", "x.c"]), (True, ["a", "x.b", "c"])])
def test_rule_within_a_selection_leaves_other_names(keep, new):
    rule = Within(AddPrefix("x"), selection(name=["a", "c"], keep=keep))
    found = rewrite(["a", "b", "c"], [rule])
    assert (list(found.names), found.changed) == (new, (1 if keep else 2,))
    assert rule.to_dict().keys() == {"rule", "prefix", "except" if keep else "within"}


def test_only_a_rule_may_not_make_a_name_that_is_no_text():
    broken = "a\udc80"
    assert rewrite([broken, "b"], [AddPrefix("x")]).names == (f"x.{broken}", "x.b")
    with pytest.raises(UsageError, match="makes names that are no text"):
        rewrite(["a", "b"], [Replace("b", "\udc80")])


def test_collisions_name_all_sources():
    assert find_collisions(["a.w", "b.w", "c"], ["w", "w", "c"]) == [("w", ["a.w", "b.w"])]


def test_rule_that_changes_nothing_is_refused_with_near_names():
    rules = [StripPrefix("module"), Replace("fcc", "head")]
    with pytest.raises(UsageError, match=re.escape("'--replace fcc head' changes no")) as info:
        require_changes(rules, [rewrite(["module.fc.w"], rules)])
    assert "'fc'" in (info.value.hint or "")


def test_rule_may_change_one_mapping_of_several():
    rules = [StripPrefix("module")]
    require_changes(rules, [rewrite(["a.w"], rules), rewrite(["module.a.w"], rules)])


def test_mapped_name_that_does_not_exist_is_refused():
    rules = [MapNames({"a.w": "b.w", "a.x": "b.x"}, "m.toml")]
    with pytest.raises(UsageError, match=re.escape("'--map m.toml' lists 'a.x'")):
        require_changes(rules, [rewrite(["a.w"], rules)])


def test_map_or_prefix_without_effect_is_refused():
    for rule in (MapNames({"a.w": "a.w"}), MapNames({}), AddPrefix("a")):
        names = ["a.w"] if isinstance(rule, MapNames) else []
        with pytest.raises(UsageError, match="changes no name"):
            require_changes([rule], [rewrite(names, [rule])])


@pytest.mark.parametrize(
    "text",
    [
        '"fc.weight" = "head.weight"\nconv = "stem"',
        'fc.weight = "head.weight"\nconv = "stem"',
        '[fc]\nweight = "head.weight"\n\n',
        '\ufeff{"fc.weight": "head.weight", "conv": "stem"}',
        ' {"fc": {"weight": "head.weight"}}',
    ],
)
def test_map_file_gives_dotted_names(text):
    names = parse_name_map(text, "m").names
    assert names["fc.weight"] == "head.weight"
    assert set(names) <= {"fc.weight", "conv"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        ("a b", "is not TOML"),
        ('{"a": "b", "a": "c"}', "given twice"),
        ('{"a": {"b": "x"}, "a.b": "y"}', "names 'a.b' twice"),
        ('{"a": 1}', "gives 'a' a new name that is no text"),
        ('{"a":' * 100_000, "is not JSON"),
    ],
)
def test_bad_map_file_is_refused(text, said):
    with pytest.raises(UsageError, match=re.escape(said)):
        parse_name_map(text, "m")


# --- _metadata ------------------------------------------------------------------------------


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2), torch.nn.ReLU()
        )
        self.act = torch.nn.ReLU()


def wrapped(model: torch.nn.Module, *path: str) -> torch.nn.Module:
    for name in reversed(path):
        outer = torch.nn.Module()
        outer.add_module(name, model)
        model = outer
    return model


def renamed(state: OrderedDict, rules: list[RewriteRule]) -> tuple[list[str], dict]:
    old, metadata = list(state), state._metadata
    new = rewrite(old, rules).names
    moves = rewrite_metadata(list(metadata), old, new, rules)
    return list(new), {new: metadata[old] for old, new in moves.items()}


def test_metadata_follows_a_stripped_prefix_as_in_torch():
    state = wrapped(Block(), "module").state_dict()
    names, metadata = renamed(state, [StripPrefix("module")])
    torch.nn.modules.utils.consume_prefix_in_state_dict_if_present(state, "module.")
    assert (names, metadata) == (list(state), dict(state._metadata))


@pytest.mark.parametrize("path", [("module",), ("module", "_orig_mod"), ("a", "b", "c")])
def test_metadata_of_an_unwrapped_model_is_the_models_own(path):
    state = wrapped(Block(), *path).state_dict()
    own = Block().state_dict()
    names, metadata = renamed(state, [StripPrefix(".".join(path))])
    assert names == list(own)
    # between the wrapper and the model there may be modules without a place in the result
    assert {m: metadata[m] for m in own._metadata} == dict(own._metadata)


def test_metadata_follows_an_added_prefix():
    state = Block().state_dict()
    _, metadata = renamed(state, [AddPrefix("a.b")])
    target = wrapped(Block(), "a", "b").state_dict()
    assert metadata == {m: v for m, v in target._metadata.items() if m not in {"", "a"}}


def test_metadata_of_every_module_with_keys_follows_a_removed_segment():
    state = Block().state_dict()
    _, metadata = renamed(state, [Replace("net.", "")])
    assert metadata["1"] == {"version": 2}
    assert {"0", "1", "2", "act"} <= set(metadata)


def test_metadata_follows_a_map_of_names():
    moves = rewrite_metadata(
        ["", "fc", "fc.act"], ["c.w", "fc.w"], ["c.w", "head.w"], [MapNames({"fc.w": "head.w"})]
    )
    assert moves == {"": "", "fc": "head", "fc.act": "head.act"}


def test_metadata_of_parted_keys_follows_the_rules():
    rules: list[RewriteRule] = [Substitute(r"^fc\.weight", "x.weight"), Replace("fc", "head")]
    moves = rewrite_metadata(["fc"], ["fc.weight", "fc.bias"], ["x.weight", "head.bias"], rules)
    assert moves == {"fc": "head"}


def test_metadata_told_by_keys_wins_over_the_rules():
    assert rewrite_metadata(["", "a"], ["a.w"], ["w"], [StripPrefix("a")]) == {"a": ""}


def test_metadata_of_two_modules_made_one_is_the_first():
    moves = rewrite_metadata(["a", "b"], ["a.w", "b.v"], ["c.w", "c.v"], [])
    assert moves == {"a": "c"}


@given(names_lists, dotted)
def test_metadata_of_unrenamed_names_is_unchanged(names, extra):
    modules = list(dict.fromkeys(["", extra, *(name.rpartition(".")[0] for name in names)]))
    assert rewrite_metadata(modules, names, names, []) == {m: m for m in modules}


@given(names_lists, dotted)
def test_metadata_prefix_added_then_stripped_is_identity(names, prefix):
    modules = list(dict.fromkeys(["", *(name.rpartition(".")[0] for name in names)]))
    rules: list[RewriteRule] = [AddPrefix(prefix)]
    new = rewrite(names, rules).names
    there = rewrite_metadata(modules, names, new, rules)
    back = rewrite_metadata(list(there.values()), new, names, [StripPrefix(prefix)])
    assert back == {v: k for k, v in there.items()}


def test_metadata_goes_with_the_last_key_below_it():
    state = Block().state_dict()
    before = list(state)
    after = [name for name in before if not name.startswith("net.1")]
    kept = strip_metadata(list(state._metadata), before, after)
    assert kept == [m for m in state._metadata if m != "net.1"]


def test_metadata_of_a_keyless_module_goes_with_its_parent():
    before = ["net.0.weight", "fc.weight"]
    modules = ["", "net", "net.0", "net.1", "act", "fc"]
    assert strip_metadata(modules, before, ["fc.weight"]) == ["", "act", "fc"]


@given(names_lists, st.data())
def test_strip_metadata_twice_is_once(names, data):
    modules = list(dict.fromkeys(["", *(name.rpartition(".")[0] for name in names), "a.relu"]))
    after = data.draw(st.lists(st.sampled_from(names), unique=True)) if names else []
    once = strip_metadata(modules, names, after)
    assert strip_metadata(once, after, after) == once
    assert strip_metadata(modules, names, names) == modules


def test_empty_segments_are_no_obstacle():
    assert strip_metadata(["", "a"], [".w", "a.w"], [".w"]) == [""]
    assert near(".w", [".w"]) == [".w"]


def test_metadata_work_is_bounded_for_absurd_names():
    absurd = "a." * 300_000
    assert strip_metadata(["", "fc"], [absurd, "fc.w"], [absurd]) == [""]
    assert rewrite_metadata([absurd], [absurd + "w"], [absurd + "w"], []) == {absurd: absurd}
