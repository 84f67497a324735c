"""What a state may hold, and that it comes back as it was."""

from __future__ import annotations

import collections
import math
import random
from typing import Any

import numpy as np
import pytest
from shards import decode, encode, equal, names

import ckptd

PLAIN: list[Any] = [
    None, True, False, 0, -1, 2**53, 2**53 + 1, -(2**64), 1 << 20000, 0.0, -0.0, 1e300, 5e-324, math.inf, -math.inf,
    math.nan, 1 + 2j, complex(math.nan, -math.inf), "", "ü 漢 \x00 \U0001f600", "lone \ud800 surrogate", "$tensor",
    b"", b"\x00\xff" * 9, bytearray(b"abc"), b"x" * 5000, bytearray(b"y" * 5000), [], (), {}, {1, 2, 3},
    frozenset({"a"}), range(3, 10, 2), slice(None, 5, None), np.dtype("float32"), [1, [2, [3, (4, {"a": None})]]],
]  # fmt: skip


@pytest.mark.parametrize("value", PLAIN, ids=range(len(PLAIN)))
def test_plain_values_keep_type_and_value(value: Any) -> None:
    got = decode(encode({"v": value}))["v"]
    assert equal(got, value), f"{value!r} came back as {got!r}"
    assert equal(decode(encode(value)), value), "as the whole state"


def test_keys_keep_their_types() -> None:
    state = {
        1: "int",
        "1": "str",
        2.5: "float",
        None: "none",
        False: "bool",
        b"b": 0,
        (1, ("a", b"c")): 1,
        "$x": 2,
        "": 3,
    }
    assert equal(decode(encode(state)), state)
    assert equal(decode(encode({"\ud800": 1, "ok": 2})), {"\ud800": 1, "ok": 2})


def test_numpy_keys_become_their_python_twins() -> None:
    assert equal(decode(encode({np.int64(3): 1})), {3: 1})


def test_subclasses_become_their_bases() -> None:
    point = collections.namedtuple("point", "x y")
    state = {"o": collections.OrderedDict(b=1, a=2), "n": point(1, 2), "d": collections.defaultdict(list, {"k": [1]})}
    assert equal(decode(encode(state)), {"o": {"b": 1, "a": 2}, "n": (1, 2), "d": {"k": [1]}})


def test_random_number_generators_come_back() -> None:
    numpy_state = np.random.default_rng(7).bit_generator.state
    python_state = random.Random(7).getstate()
    got = decode(encode({"np": numpy_state, "py": python_state, "legacy": np.random.RandomState(7).get_state()}))
    assert got["np"] == numpy_state
    assert got["py"] == python_state
    rs = np.random.RandomState()
    rs.set_state(got["legacy"])
    assert rs.rand() == np.random.RandomState(7).rand()


def test_a_tree_that_does_not_fit_the_header_becomes_a_tensor() -> None:
    state = {"lines": [f"line {i}" for i in range(50_000)], "w": np.arange(3)}
    assert "ckptd.state" in names(state)
    assert equal(decode(encode(state)), state)
    assert equal(decode(encode(state), only="w"), {"w": state["w"]})


def test_names_are_dotted_paths() -> None:
    w = np.ones(2)
    got = names({"model": {"layers.0.weight": w, "b": [w + 1, (w + 2,)]}, 3: w + 3})
    assert got == ["model.layers.0.weight", "model.b.0", "model.b.1.0", "3"]
    assert names(w) == ["value"]


def test_names_that_collide_stay_apart() -> None:
    state = {"a": {"b.c": np.zeros(1), "b": {"c": np.ones(1)}}, "__metadata__": np.full(1, 2.0), "": np.full(1, 3.0)}
    got = names(state)
    assert got == ["a.b.c", "a.b.c~2", "__metadata__~2", "value"]
    assert equal(decode(encode(state)), state)


def test_a_cycle_is_refused_by_its_path() -> None:
    state: dict[str, Any] = {"a": [1]}
    state["a"].append(state)
    with pytest.raises(ckptd.Invalid, match=r"a\.1: it contains itself"):
        encode(state)
    shared = [1]
    assert decode(encode([shared, shared])) == [[1], [1]]


def test_depth_is_an_error_not_a_crash() -> None:
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ckptd.Invalid, match="too deeply"):
        encode(deep)


class Thing:
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Thing)


def test_unknown_objects_are_named_with_what_to_do() -> None:
    with pytest.raises(ckptd.Invalid, match=r"opt\.0\.x: .*Thing(?s:.*)allow_pickle=True") as e:
        encode({"opt": [{"x": Thing()}]})
    assert isinstance(e.value, ValueError)
    with pytest.raises(ckptd.Invalid, match="key of type Thing"):
        encode({"k": collections.OrderedDict({type("Thing", (), {})(): 1})})


def test_pickle_needs_a_yes_on_both_sides() -> None:
    data = encode({"x": Thing(), "w": np.ones(2)}, allow_pickle=True)
    assert decode(data, pickle=True)["x"] == Thing()
    with pytest.raises(ckptd.Invalid, match="allow_pickle=True"):
        decode(data)
    assert equal(decode(data, only="w"), {"w": np.ones(2)}), "what is not wanted is not unpickled"


def test_only_prunes_dicts_and_keeps_positions() -> None:
    w = np.ones(2)
    state = {"model": {"a": w, "b": w + 1}, "optim": [{"m": w + 2, "v": w + 3}, {"m": w + 4}], "epoch": 3}
    data = encode(state)
    assert equal(decode(data, only="model.*"), {"model": state["model"]})
    assert equal(decode(data, only="model"), {"model": state["model"]}), "a branch by its own name"
    assert equal(decode(data, only=["*.v", "epoch"]), {"optim": [{"v": w + 3}, None], "epoch": 3})
    assert equal(decode(data, only="optim.1.m"), {"optim": [None, {"m": w + 4}]})
    with pytest.raises(ckptd.Invalid, match="empty"):
        decode(data, only=[])


def test_pieces_lie_inside_their_whole() -> None:
    p = ckptd.Piece(np.arange(6.0).reshape(2, 3), (4, 3), (2, 0))
    got = decode(encode({"w": p}))["w"]
    assert isinstance(got, ckptd.Piece)
    assert (got.global_shape, got.start) == ((4, 3), (2, 0))
    assert equal(got.array, p.array)
    with pytest.raises(ckptd.Invalid, match="does not lie in"):
        encode({"w": ckptd.Piece(np.ones((2, 3)), (4, 3), (3, 0))})
