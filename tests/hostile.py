"""What a stranger may have written: values of every kind, and edits of valid files, structured and by bytes."""

import copy
import json
import math
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

MANY = settings(derandomize=True, deadline=None, database=None)
"""The same examples in every run; a property adds their number."""
_NAMES = """
os.system StableDiffusionPipeline AutoModel VelocityMLP UNet2DModel FlowODEScheduler DownBlock2D KDownBlock2D UpBlock2D timestep identity fourier
learned resnet scale_shift gelu concat metric dominance paper mlp cascade epsilon sde-dpmsolver++ linspace x None 1e3 ../../x /etc/passwd
"""
TEXTS = ["", "a\nb", "\0", "\ud800", "\u202e\u2603", "x" * 5000, *_NAMES.split()]
BIG = [2**31, 2**63, 10**12, 10**30, -(10**30), 1e-300, 1e308, math.inf, -math.inf, math.nan]
NUMBERS = [0, 1, -1, 2, 3, 7, 0.0, 0.5, *BIG]
LISTS = [
    [],
    [[]],
    [None],
    [0],
    [-1],
    [2],
    [-1, -2],
    [1, 2],
    [1.5],
    ["x"],
    [10**12],
    [0.0] * 1000,
    [8] * 50,
    ["DownBlock2D"],
]
_KEYS = """
items get keys pop self kwargs config dtype args __class__ __frozen _class_name _name_or_path _diffusers_version _use_default_values auto_map
quantization_config base event_shape sample_size num_layers layers_per_block class_embed_type num_classes num_class_embeds condition_dim shift
solver_order num_train_timesteps use_karras_sigmas mean
"""
scalars = st.sampled_from([None, True, False, *NUMBERS, *TEXTS]) | st.integers() | st.floats() | st.text(max_size=9)
keys = st.sampled_from(["", "a b", *_KEYS.split()]) | st.text(max_size=9)
values = st.sampled_from(LISTS) | st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=6
)
deep = st.integers(1, 3000).map(lambda depth: "[" * depth + "]" * depth)
places = st.integers(0, 10_000)
edits = st.lists(
    st.one_of(
        st.tuples(st.just("replace"), places, values),
        st.tuples(st.just("delete"), places, st.none()),
        st.tuples(st.just("add"), places, st.tuples(keys, values)),
        st.tuples(st.just("rename"), places, keys),
        st.tuples(st.just("copy"), places, places),
        st.tuples(st.just("wrap"), places, st.sampled_from([list, dict])),
    ),
    min_size=1,
    max_size=3,
)
"""Changes of a nested document, for `edited`."""
byte_edits = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), st.integers(0, 1 << 20), st.integers(0, 255)),
        st.tuples(st.just("cut"), st.integers(0, 1 << 20), st.none()),
        st.tuples(st.just("insert"), st.integers(0, 1 << 20), st.binary(min_size=1, max_size=20)),
        st.tuples(st.just("zeros"), st.integers(0, 1 << 20), st.integers(1, 100)),
    ),
    min_size=1,
    max_size=4,
)
"""Changes of a file, for `spoilt`."""


def _spots(value: Any, parent: Any = None, key: Any = None) -> list[tuple[Any, Any]]:
    """Every (container, key) of a nested document."""
    found = [] if parent is None else [(parent, key)]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for inner_key, inner in items:
        found += _spots(inner, value, inner_key)
    return found


def edited(document: Any, changes: list[tuple[str, int, Any]]) -> Any:
    """The document after the changes; places are counted round."""
    holder = [copy.deepcopy(document)]
    for kind, place, shared in changes:
        spots, what = _spots(holder), copy.deepcopy(shared)
        if not spots:
            break
        parent, key = spots[place % len(spots)]
        if kind == "replace":
            parent[key] = what
        elif kind == "delete" and parent is not holder:
            del parent[key]
        elif kind == "add" and isinstance(parent[key], dict):
            parent[key][what[0]] = what[1]
        elif kind == "rename" and isinstance(parent, dict):
            parent[what] = parent.pop(key)
        elif kind == "copy":
            other, other_key = spots[what % len(spots)]
            parent[key] = copy.deepcopy(other[other_key])
        elif kind == "wrap":
            parent[key] = [parent[key]] if what is list else {"x": parent[key]}
    return holder[0]


def spoilt(content: bytes, changes: list[tuple[str, int, Any]]) -> bytes:
    """The bytes after the changes; half of the places are counted in the first 200 bytes, where headers are."""
    for kind, place, what in changes:
        at = (place // 2) % (min(len(content), 200) if place % 2 else len(content)) if content else 0
        if kind == "flip":
            content = content[:at] + bytes([what]) + content[at + 1 :]
        elif kind == "cut":
            content = content[:at]
        elif kind == "insert":
            content = content[:at] + what + content[at:]
        else:
            content = content[:at] + bytes(what) + content[at + what :]
    return content


def edited_json(content: bytes, changes: list[tuple[str, int, Any]]) -> bytes:
    """A JSON file after the changes."""
    return json.dumps(edited(json.loads(content), changes)).encode()


def edited_header(content: bytes, changes: list[tuple[str, int, Any]]) -> bytes:
    """A safetensors file after the changes of its header, the length of which is right again."""
    length = int.from_bytes(content[:8], "little")
    header = edited_json(content[8 : 8 + length], changes)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]
