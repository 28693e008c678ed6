"""The world's words: how each edit is asked for (instructions) and how its result is described (captions)."""

from __future__ import annotations

from . import world

TRAINED_PHRASES = 12
"""The first 12 of the 16 phrasings of each edit are trained on, the last 4 held out."""
TRAINED_CAPTIONS = 6
"""The first 6 of the 8 captions of each edit are trained on, the last 2 held out."""

_MATERIAL_PHRASES = (
    "make the {m} thing {c}",
    "turn the {m} part {c}",
    "paint the {m} thing {c}",
    "change the color of the {m} part to {c}",
    "give the {m} thing a {c} color",
    "could you color the {m} thing {c}",
    "the {m} part should be {c}",
    "dye the {m} part {c}",
    "i want the {m} thing in {c}",
    "make what is {m} look {c}",
    "recolor the {m} thing to {c}",
    "please paint the {m} part {c}",
    "color the {m} part {c} please",
    "turn what is {m} into {c}",
    "what if the {m} thing was {c}",
    "let the {m} thing be {c}",
)
_PHRASES = {
    "night": (
        "make it night",
        "turn day into night",
        "change the time to night",
        "make it a night scene",
        "show it at night",
        "it should be night",
        "what if it was night",
        "let it be night",
        "turn it into night",
        "paint it at night",
        "i want it at night",
        "a night version please",
        "change it to night",
        "please make it a night scene",
        "could you make it night",
        "show the night version",
    ),
    "sepia": (
        "make it an old photo",
        "turn it into a sepia photo",
        "convert it to sepia",
        "change it to an old sepia photo",
        "make it look like a vintage photo",
        "it should be a sepia photo",
        "what if it was an old photo",
        "let it be sepia",
        "turn it into a vintage photo",
        "paint it in sepia",
        "i want it in sepia",
        "a vintage version please",
        "change it to sepia",
        "please make it an old sepia photo",
        "could you make it sepia",
        "show the vintage version",
    ),
    "fog": (
        "make it foggy",
        "turn it into a foggy day",
        "add thick fog",
        "change the weather to fog",
        "make it a foggy scene",
        "it should be foggy",
        "what if it was foggy",
        "let there be fog",
        "cover it in fog",
        "paint it in fog",
        "i want it in fog",
        "a foggy version please",
        "change it to fog",
        "please make it a foggy scene",
        "could you make it foggy",
        "show the foggy version",
    ),
    "sunset": (
        "make it sunset",
        "turn day into sunset",
        "change the time to sunset",
        "make it a sunset scene",
        "show it at sunset",
        "it should be sunset",
        "what if it was sunset",
        "let it be sunset",
        "turn it into sunset",
        "paint it at sunset",
        "i want it at sunset",
        "a sunset version please",
        "change it to sunset",
        "please make it a sunset scene",
        "could you make it sunset",
        "show the sunset version",
    ),
    "snow": (
        "make it snowy",
        "turn it into a snowy day",
        "add thick snow",
        "change the weather to snow",
        "make it a snowy scene",
        "it should be snowy",
        "what if it was snowy",
        "let there be snow",
        "cover it in snow",
        "paint it in snow",
        "i want it in snow",
        "a snowy version please",
        "change it to snow",
        "please make it a snowy scene",
        "could you make it snowy",
        "show the snowy version",
    ),
    "monochrome": (
        "make it black and white",
        "turn it into a monochrome photo",
        "convert it to monochrome",
        "change it to a black and white photo",
        "make it look like a monochrome photo",
        "it should be a black and white photo",
        "what if it was black and white",
        "let it be monochrome",
        "turn it into a black and white photo",
        "paint it in monochrome",
        "i want it in black and white",
        "a monochrome version please",
        "change it to monochrome",
        "please make it a black and white photo",
        "could you make it black and white",
        "show the monochrome version",
    ),
    "zombie": (
        "make the person a zombie",
        "turn the person into a zombie",
        "change the person to a zombie",
        "make it a zombie",
        "show a zombie",
        "it should be a zombie",
        "what if it was a zombie",
        "let the person be a zombie",
        "turn it into a zombie",
        "paint a zombie",
        "i want a zombie",
        "a zombie version please",
        "change it to a zombie",
        "please make the person a zombie",
        "could you make it a zombie",
        "show the zombie version",
    ),
    "aged": (
        "make the person old",
        "turn the hair white",
        "change the hair to white",
        "give the person white hair",
        "show an old person",
        "it should be an old person",
        "what if the person was old",
        "let the person be old",
        "turn it into an old person",
        "paint the hair white",
        "i want an old person",
        "a white hair version please",
        "change the person to an old person",
        "please make the person old",
        "could you make the hair white",
        "let the hair be white",
    ),
}
_MATERIAL_CAPTIONS = (
    "a picture with a {c} {m} part",
    "the {m} part is {c}",
    "a scene where the {m} thing is {c}",
    "the {m} thing in {c}",
    "a {c} {m} thing",
    "what is {m} is {c}",
    "a picture where the {m} part is {c}",
    "a scene with a {c} {m} thing",
)
_CAPTIONS = {
    **{
        edit: tuple(
            caption.format(word)
            for caption in (
                "a picture in {}",
                "the scene in {}",
                "it is {}",
                "a scene in {}",
                "the picture is in {}",
                "{}",
                "a picture of the scene in {}",
                "the scene is in {}",
            )
        )
        for edit, word in {
            "night": "night",
            "sunset": "sunset",
            "snow": "snow",
            "fog": "fog",
            "sepia": "sepia",
            "monochrome": "black and white",
        }.items()
    },
    "zombie": (
        "a picture of a zombie",
        "the person is a zombie",
        "it is a zombie",
        "a scene with a zombie",
        "a zombie person",
        "a zombie",
        "the picture of a zombie",
        "a person is a zombie",
    ),
    "aged": (
        "a picture of an old person",
        "the person is old",
        "it is an old person",
        "a person with white hair",
        "the hair is white",
        "an old person",
        "a picture of a person with white hair",
        "a scene with an old person",
    ),
}


def phrases(edit: str) -> tuple[str, ...]:
    """All 16 instructions of an edit; the last 4 are never trained on."""
    return _PHRASES[edit] if edit in _PHRASES else _spoken(_MATERIAL_PHRASES, edit)


def captions(edit: str) -> tuple[str, ...]:
    """All 8 descriptions of an edit's result; the last 2 are never trained on."""
    return _CAPTIONS[edit] if edit in _CAPTIONS else _spoken(_MATERIAL_CAPTIONS, edit)


def wordings(prompt: str) -> tuple[str, ...]:
    """Every text that asks for the same edit as this one; the text alone where it is none of this world's."""
    edit = parse(prompt)
    return (prompt,) if edit is None else (*phrases(edit), *captions(edit))


def trained() -> tuple[str, ...]:
    """Every text that an editor may be trained on."""
    return tuple(
        text for edit in world.EDITS for text in (*phrases(edit)[:TRAINED_PHRASES], *captions(edit)[:TRAINED_CAPTIONS])
    )


def parse(prompt: str) -> str | None:
    """The edit that an instruction or caption asks for, or None when it is not one of this world's."""
    return _EDIT_OF.get(" ".join(prompt.lower().split()))


def _spoken(templates: tuple[str, ...], edit: str) -> tuple[str, ...]:
    material, colour = edit.split()
    return tuple(t.format(m=material, c=colour) for t in templates)


_EDIT_OF = {text: edit for edit in world.EDITS for text in (*phrases(edit), *captions(edit))}
