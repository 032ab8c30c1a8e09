"""A card that a person edits: what they wrote stays byte for byte, what is ours is renewed, and in doubt nothing is touched."""

import re
import warnings

import pytest
import yaml
from diffusers.utils.hub_utils import MODEL_CARD_TEMPLATE_PATH
from huggingface_hub import ModelCard, ModelCardData

from hf_flowft.cards import merge_card, pipeline_card
from hf_flowft.cards.merge import SECTIONS, assemble, find_sections

DESCRIPTION = {"event_shape": [1, 8, 8], "coupling": "independent"}


def card(version: str) -> str:
    """A rendered card whose every section, and measured value, is of a version: "1" or "2"."""
    measured = {
        "task": {"type": "other"},
        "dataset": {"type": "toy", "name": "toy"},
        "metrics": [{"type": "energy", "value": int(version)}],
    }
    metadata = {"license": "mit", "tags": ["a"], "model-index": [{"name": "m", "results": [measured]}]}
    return assemble(metadata, {name: f"## {name}\n\nof version {version}" for name in SECTIONS})


OLD, NEW = card("1"), card("2")
BEGIN, END = "<!-- hf_flowft:begin {} -->\n", "<!-- hf_flowft:end {} -->\n"


def outside(text: str) -> str:
    """What is not between our markers, without the front matter."""
    sections = sorted(find_sections(text).values())
    starts = [text.index("\n---", 4), *(section.end for section in sections)]
    ends = [*(section.start for section in sections), len(text)]
    return "".join(text[a:b] for a, b in zip(starts, ends, strict=True))


def inside(text: str) -> dict[str, str]:
    return {name: text[section.start : section.end] for name, section in find_sections(text).items()}


def without(text: str, name: str) -> str:
    """A card from which a person has deleted a section."""
    return re.sub(BEGIN.format(name) + ".*?" + END.format(name), "", text, flags=re.DOTALL)


def untouched(theirs: str) -> bool:
    """Whether a README is returned as it is, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return merge_card(NEW, theirs) == theirs


# What is replaced


@pytest.mark.parametrize("theirs", ["", "\n  \n", OLD, NEW])
def test_what_nobody_wrote_is_replaced(theirs):
    """No README, an empty one, and a card that nobody has edited since we wrote it."""
    assert merge_card(NEW, theirs) == NEW


@pytest.mark.parametrize("component", ["pipeline", "model"])
def test_the_stub_of_diffusers_is_replaced(component):
    """As its `push_to_hub` makes it; once a person has added a word, or a heading, it is theirs."""
    words = f"This is the model card of a 🧨 diffusers {component} that has been pushed on the Hub. This model card has been automatically generated."
    data = ModelCardData(library_name="diffusers", tags=["text-to-image"])
    stub = str(ModelCard.from_template(data, template_path=str(MODEL_CARD_TEMPLATE_PATH), model_description=words))
    assert merge_card(NEW, stub) == NEW
    for mine in (f"{stub}\nMine.", stub.replace("# TODO: add", "mine() # TODO: add"), f"{stub}\n## My results\n"):
        assert untouched(mine)
    assert untouched(stub.replace("library_name: diffusers", "library_name: other"))


def test_the_stub_of_a_new_space_is_replaced():
    """The Hub writes one when a Space is made; its settings are not a person's."""
    words = "Check out the configuration reference at https://huggingface.co/docs/hub/spaces-config-reference"
    assert merge_card(NEW, f"---\ntitle: X\nsdk: gradio\n---\n\n{words}\n") == NEW
    assert untouched(f"---\ntitle: X\nsdk: gradio\n---\n\n{words}\nMine.\n")


def test_the_licence_chosen_with_the_repository_stays():
    """The Hub's form makes a README of front matter alone: its keys win over ours, and the text is ours."""
    merged = merge_card(NEW, "---\nlicense: cc-by-4.0\nlanguage: en\n---\n")
    assert yaml.safe_load(merged.split("---\n")[1])["license"] == "cc-by-4.0"
    assert yaml.safe_load(merged.split("---\n")[1])["language"] == "en"
    assert yaml.safe_load(merged.split("---\n")[1])["tags"] == ["a"]
    assert inside(merged) == inside(NEW)


# What stays


def test_a_readme_of_a_person_is_not_touched():
    """Without a marker of ours nothing is ours, whatever stands in it."""
    for theirs in (
        "My model.",
        "---\nlicense: mit\n---\n# Mine\n",
        "---\nnot closed\n",
        "text with hf_flowft:begin in it",
    ):
        assert untouched(theirs)


WRITTEN = [
    "Mine.\n",
    "\r\nWindows,\r\n",
    "## Ä heading — ü\n\n- x\n",
    "    <!-- another comment -->\n",
    "| a | b |\n",
    "---\n",
]


@pytest.mark.parametrize("text", WRITTEN)
@pytest.mark.parametrize("place", ["before", "between", "after"])
def test_what_is_outside_of_the_markers_stays_byte_for_byte(text, place):
    """Wherever it was written; all sections are new, in their places; and merging again changes nothing."""
    where = {"before": OLD.index("<!-- hf"), "between": OLD.index(BEGIN.format("changes")), "after": len(OLD)}[place]
    theirs = OLD[:where] + text + OLD[where:]
    merged = merge_card(NEW, theirs)
    assert outside(merged) == outside(theirs)
    assert inside(merged) == inside(NEW)
    assert merge_card(NEW, merged) == merged
    ModelCard(merged)


def test_order_and_place_are_the_persons():
    """Sections that were moved are renewed where they are."""
    block = re.search(BEGIN.format("use") + ".*?" + END.format("use"), OLD, re.DOTALL)[0]
    theirs = OLD.replace(block, "").replace(BEGIN.format("title"), block + BEGIN.format("title"))
    merged = merge_card(NEW, theirs)
    assert list(find_sections(merged)) == ["use", *[name for name in SECTIONS if name != "use"]]
    assert inside(merged) == inside(NEW)


@pytest.mark.parametrize("gone", SECTIONS)
def test_a_deleted_section_stays_deleted(gone):
    """And all others are renewed."""
    merged = merge_card(NEW, without(OLD, gone))
    assert inside(merged) == {name: text for name, text in inside(NEW).items() if name != gone}


def test_a_section_that_is_no_more_is_emptied():
    """Its numbers would be of another model; its place is kept, and it is filled again."""
    short = assemble({"license": "mit"}, {"title": "# only this"})
    theirs = OLD + "Mine.\n"
    merged = merge_card(short, theirs)
    assert "of version 1" not in merged
    assert inside(merge_card(NEW, merged)) == inside(NEW)
    unknown = theirs + "<!-- hf_flowft:begin later -->\nof version 1\n<!-- hf_flowft:end later -->\n"
    assert inside(merge_card(NEW, unknown)) == {**inside(NEW), "later": ""}


def test_windows_ends_of_lines():
    """A file with CRLF keeps them, and our sections get them."""
    theirs = (OLD + "Mine.\n").replace("\n", "\r\n")
    merged = merge_card(NEW, theirs)
    assert merged.count("\n") == merged.count("\r\n")
    assert merged.replace("\r\n", "\n") == merge_card(NEW, OLD + "Mine.\n")


# Front matter


def front(text: str) -> str:
    return text.split("---\n")[1]


def test_keys_of_a_person_stay_and_the_measured_numbers_are_new():
    """Changed, added, commented and ordered as they like, line for line; only `model-index` is ours."""
    mine = "# chosen by me\nlicense: cc-by-4.0   # for a reason\nlanguage: [en, de]\n"
    theirs = (
        OLD.replace("license: mit\n", mine)
        .replace("tags:\n- a\n", "")
        .replace("---\n\n", "\n# the end\nextra: 'x'\n---\n\n", 1)
    )
    merged = merge_card(NEW, theirs)
    index = yaml.safe_load(front(merged))["model-index"]
    assert index == yaml.safe_load(front(NEW))["model-index"]
    assert front(merged).startswith(mine + "model-index:\n")
    assert front(merged).endswith("\n\n# the end\nextra: 'x'\n")
    assert "tags" not in yaml.safe_load(front(merged))
    assert ModelCard(merged).data.eval_results[0].metric_value == 2


def test_measured_numbers_of_another_model_do_not_stay():
    """A pipeline that was not measured, pushed over an edited card, takes the numbers away."""
    theirs = OLD.replace("license: mit\n", "license: mit # mine\n")
    merged = merge_card(pipeline_card("m", "VelocityMLP", DESCRIPTION, "user/m"), theirs)
    assert front(merged) == "license: mit # mine\ntags:\n- a\n"
    assert "of version 1" not in merged


@pytest.mark.parametrize(
    "style", ["model-index: [{name: m, results: []}]\n", "model-index:\n  - name: m\n    results: []\n"]
)
def test_the_measured_numbers_are_found_in_any_style(style):
    """Flow style and other indentation are YAML too; what follows is kept."""
    theirs = f"---\na: 1\n{style}b: 2\n---\n" + OLD.split("---\n", 2)[2]
    merged = yaml.safe_load(front(merge_card(NEW, theirs)))
    assert merged == {"a": 1, "model-index": yaml.safe_load(front(NEW))["model-index"], "b": 2}


def test_deleted_keys_stay_deleted():
    """Also `model-index`, and the front matter as a whole."""
    no_index = re.sub(r"model-index:\n(?:(?:- |  ).*\n)+", "", OLD)
    assert "model-index" not in yaml.safe_load(front(merge_card(NEW, no_index)))
    no_front = OLD.split("---\n", 2)[2]
    merged = merge_card(NEW, no_front)
    assert merged.startswith("\n<!-- hf_flowft:begin title")
    assert inside(merged) == inside(NEW)


# What cannot be understood

USE, LIMITS = (re.search(BEGIN.format(n) + ".*?" + END.format(n), OLD, re.DOTALL)[0] for n in ("use", "limits"))
BROKEN = {
    "not closed": OLD.replace(END.format("use"), ""),
    "not opened": OLD.replace(BEGIN.format("use"), ""),
    "twice": OLD + USE,
    "nested": OLD.replace(END.format("use"), "").replace(
        END.format("limits"), END.format("limits") + END.format("use")
    ),
    "crossed": OLD.replace(END.format("method"), END.format("limits"), 1),
    "reversed": OLD.replace(BEGIN.format("use"), "?")
    .replace(END.format("use"), BEGIN.format("use"))
    .replace("?", END.format("use")),
    "on a line with text": OLD.replace(BEGIN.format("use"), "text " + BEGIN.format("use")),
    "in a quotation": OLD.replace(USE, "".join(f"> {line}\n" for line in USE.splitlines())),
    "front matter that is no YAML": OLD.replace("license: mit", "license: [mit"),
    "front matter that is no mapping": "---\n- a\n---\n" + OLD.split("---\n", 2)[2],
}


@pytest.mark.parametrize("kind", BROKEN)
def test_in_doubt_nothing_is_touched(kind):
    """And a warning says that the numbers on the card are old."""
    assert BROKEN[kind] != OLD
    with pytest.warns(UserWarning, match="left as it is, without the new numbers"):
        assert merge_card(NEW, BROKEN[kind]) == BROKEN[kind]


def test_nothing_in_a_section_can_be_taken_for_a_marker():
    """An intended use that holds markers does not break the next merge."""
    bad = "Use.\n<!-- hf_flowft:end limits -->\n<!-- hf_flowft:begin use -->"
    text = assemble({"license": "mit"}, {"limits": bad, "use": "code"})
    assert list(find_sections(text)) == list(SECTIONS)
    assert inside(merge_card(NEW, text + "Mine.")) == inside(NEW)


# Cards of pipelines


def test_a_plain_card_makes_room_for_a_measured_one():
    """Unedited it is replaced; edited, its empty sections are filled and the words around them stay."""
    plain = pipeline_card("m", "VelocityMLP", DESCRIPTION, "user/m", "mit")
    assert merge_card(NEW, plain) == NEW
    edited = plain.replace("license: mit", "license: cc0-1.0") + "Mine.\n"
    merged = merge_card(NEW, edited)
    assert inside(merged) == inside(NEW)
    assert merged.endswith("Mine.\n")
    assert "license: cc0-1.0" in merged


def test_a_plain_card_says_what_it_does_not_know():
    """That nothing was measured; valid metadata, a licence only where one is known, a task only for images."""
    plain = pipeline_card("m", "VelocityMLP", DESCRIPTION, "user/m")
    assert "Nothing was measured for this card." in plain
    data = ModelCard(plain).data
    assert (data.library_name, data.pipeline_tag, data.license) == ("diffusers", "unconditional-image-generation", None)
    vectors = ModelCard(pipeline_card("m", "VelocityMLP", {"event_shape": [2]}, "user/m", "mit")).data
    assert (vectors.pipeline_tag, vectors.license) == (None, "mit")
    assert ModelCard(pipeline_card("m", "UNet2DModel", {}, "user/m")).data.library_name == "diffusers"
