"""Cards that a program writes and a person edits: sections of ours stand between markers, everything else is the person's."""

from __future__ import annotations

import hashlib
import re
import warnings
from typing import Any, NamedTuple

import yaml

SECTIONS = (
    "title",
    "summary",
    "results",
    "changes",
    "certificate",
    "pictures",
    "use",
    "method",
    "limits",
    "environment",
)
"""The sections of a card, in order. Every card has the markers of all of them, so that a later one finds its place."""
MARKER = re.compile(r"^[ \t]*<!--[ \t]*hf_flowft:(begin|end)[ \t]+([\w-]+)[ \t]*-->[ \t]*(\r?\n|\Z)", re.MULTILINE)
ANY_MARKER = re.compile(r"<!--\s*hf_flowft:(?:begin|end)")
DIGEST = re.compile(r"<!-- hf_flowft:digest ([0-9a-f]{16}) -->\s*\Z")
FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.MULTILINE | re.DOTALL)
STUB_LINES = re.compile(
    r"(?s:<!--.*?-->)|^```\w*[ \t]*$|^# TODO.*$|^\[TODO.*\]$"
    r"|^#+ (?:Intended uses & limitations|How to use|Limitations and bias|Training details)[ \t]*$"
    r"|^This is the model card of a .{0,4}diffusers \w+ that has been pushed on the Hub\..*automatically generated\.$",
    re.MULTILINE,
)
SPACE_STUB = "Check out the configuration reference at https://huggingface.co/docs/hub/spaces-config-reference"
STUB_KEYS = ("library_name", "tags")
STUB_SIGN = "model card has been generated automatically"


class BrokenCardError(ValueError):
    """Markers or front matter that cannot be understood."""


class Section(NamedTuple):
    """What lies between two markers: `start` and `end` in the text, and the ends of lines there."""

    start: int
    end: int
    newline: str


def assemble(metadata: dict[str, Any], sections: dict[str, str]) -> str:
    """A card: front matter, every section between its markers, and a digest by which a card nobody has edited is known."""
    front = "---\n" + yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, width=1000) + "---\n"
    marked = []
    for name in SECTIONS:
        content = sections.get(name, "").replace("<!-- hf_flowft:", "<!-- (hf_flowft) ").strip()
        inside = f"\n{content}\n\n" if content else ""
        marked.append(f"<!-- hf_flowft:begin {name} -->\n{inside}<!-- hf_flowft:end {name} -->\n")
    text = front + "\n" + "\n".join(marked) + "\n"
    return f"{text}<!-- hf_flowft:digest {_digest(text)} -->\n"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def merge_card(ours: str, theirs: str) -> str:
    """A freshly rendered card put into the README that is there.

    - An empty README, the untouched stub of diffusers or of a new Space, and a card of ours that nobody has edited since (its digest says so)
      are replaced. Of the empty one and diffusers', keys of the front matter that a person has set (the licence of a new repository) stay.
    - A README without any of our markers is a person's, and stays as it is.
    - Otherwise our sections are replaced where they stand. What is outside of the markers stays byte for byte; a section that was deleted
      stays deleted; one that the new card does not have is emptied. In the front matter `model-index` is ours and is renewed where it is
      (or taken away, when nothing was measured); every other key stays as it is, and missing ones are not brought back.
    - When markers are nested, doubled or left open, or the front matter is no YAML, nothing is changed and a warning says so.

    Args: `ours`: as `render_card` returns it; `theirs`: the README of the folder or repository, "" for none.
    """
    if _is_unedited(theirs):
        return ours
    try:
        return _merge(ours, theirs)
    except BrokenCardError as error:
        warnings.warn(f"the README there is left as it is, without the new numbers: {error}", stacklevel=2)
        return theirs


def _merge(ours: str, theirs: str) -> str:
    metadata, body = _split(theirs)
    if body.strip() == SPACE_STUB:
        return ours
    if not body.strip() or _is_stub(metadata, body):
        kept = {key: value for key, value in metadata.items() if not body.strip() or key not in STUB_KEYS}
        return _with_metadata(ours, kept)
    sections = find_sections(theirs)
    if not sections:
        return theirs
    new = {name: ours[section.start : section.end] for name, section in find_sections(ours).items()}
    merged = theirs
    for name, section in sorted(sections.items(), key=lambda item: -item[1].start):
        content = new.get(name, "").replace("\n", section.newline)
        merged = merged[: section.start] + content + merged[section.end :]
    return _with_model_index(merged, _split(ours)[0].get("model-index"))


def _is_unedited(card: str) -> bool:
    found = DIGEST.search(card)
    return found is not None and found[1] == _digest(card[: found.start()])


def find_sections(card: str) -> dict[str, Section]:
    """Our sections in a card.  Raises: BrokenCardError when a marker is nested, doubled, left open or not on a line of its own."""
    sections: dict[str, Section] = {}
    opened: re.Match[str] | None = None
    markers = list(MARKER.finditer(card))
    if len(markers) != len(ANY_MARKER.findall(card)):
        raise BrokenCardError("one of its hf_flowft markers is not on a line of its own.")
    for marker in markers:
        kind, name = marker[1], marker[2]
        if kind == "begin" and opened is None and name not in sections:
            opened = marker
        elif kind == "end" and opened is not None and opened[2] == name:
            sections[name] = Section(opened.end(), marker.start(), opened[3])
            opened = None
        else:
            raise BrokenCardError(f"its marker {marker[0].strip()} is doubled, nested or out of order.")
    if opened is not None:
        raise BrokenCardError(f"its marker {opened[0].strip()} has no end.")
    return sections


def _split(card: str) -> tuple[dict[str, Any], str]:
    """The front matter and the rest.  Raises: BrokenCardError when the front matter is no YAML mapping."""
    found = FRONT_MATTER.match(card)
    if found is None:
        return {}, card
    try:
        metadata = yaml.safe_load(found[1]) or {}
    except yaml.YAMLError as error:
        raise BrokenCardError(f"its front matter is not valid YAML ({str(error).splitlines()[0]}).") from error
    if not isinstance(metadata, dict):
        raise BrokenCardError("its front matter is not a YAML mapping.")
    return metadata, card[found.end() :]


def _is_stub(metadata: dict[str, Any], body: str) -> bool:
    """Whether a card is what diffusers writes by itself: its sign is there, and nothing is left when its own lines are taken away."""
    return metadata.get("library_name") == "diffusers" and STUB_SIGN in body and not STUB_LINES.sub("", body).strip()


def _with_metadata(card: str, kept: dict[str, Any]) -> str:
    """A card of ours with a person's keys."""
    metadata, body = _split(card)
    if not any(kept.values()):
        return card
    merged = {**metadata, **{key: value for key, value in kept.items() if value}}
    front = yaml.safe_dump(merged, sort_keys=False, allow_unicode=True, width=1000)
    return f"---\n{front}---\n{body}"


def _with_model_index(card: str, model_index: Any) -> str:
    """The card with a new `model-index` (none for None) in the place of the old one, every other line of the front matter as it is."""
    found = FRONT_MATTER.match(card)
    if found is None:
        return card
    front = found[1]
    nodes = [pair for pair in yaml.compose(front).value if pair[0].value == "model-index"] if front.strip() else []
    if len(nodes) != 1:
        return card
    start, end = nodes[0][0].start_mark.index, nodes[0][1].end_mark.index
    block = front[start:end]
    kept = re.search(r"(?:^[ \t]*(?:#.*)?(?:\r?\n|\Z))*\Z", block, re.MULTILINE)  # comments and blank lines after it
    end -= len(kept[0]) if kept else 0
    newline = "\r\n" if "\r\n" in card[: found.end()] else "\n"
    new = yaml.safe_dump({"model-index": model_index}, sort_keys=False, allow_unicode=True, width=1000)
    new = "" if model_index is None else new
    if not front[start:end].endswith("\n"):
        new = new.rstrip("\n")
    offset = found.start(1)
    return card[: offset + start] + new.replace("\n", newline) + card[offset + end :]
