"""Rated images: scenes that are degraded by known steps, with scores of quality or aesthetics, texts and comments.

The images are composed scenes of the corpus `scenes`, with its splits. Half of them have a `quality`: they are blurred,
noisy, compressed, pale or pixelated, in strengths from a seed. The other half has `aesthetics`, which composition
(objects cut off at the edge), colors (faded, or of a cast), light (too dark or too bright) and focus lower. A score is
a mean opinion of 1 to 5: 5 less the strengths, with the noise of raters. The description is made of the score's level
and the degradation, as a language model that sees the score would write it, in words from a seed. Images with
aesthetics have ten comments, of which six are about something else.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image as PILImage
from PIL import ImageEnhance, ImageFilter

from polymodal.corpora._prepared import Preparation, Row, open_prepared
from polymodal.corpora.corpus import About, Corpus
from polymodal.corpora.scenes import scenes
from polymodal.modalities import Image, Modality, Table, Text
from polymodal.modalities.image import encoded, open_image
from polymodal.modalities.text import stored_texts

COUNTS = {"train": 2400, "validation": 200, "test": 400}
RATER_NOISE = 0.15  # standard deviation of a mean opinion, on the scale 1 to 5
COMMENTS, RELEVANT = 10, 4
LEVELS = (
    ("bad", "terrible", "dreadful"),
    ("poor", "weak", "mediocre"),
    ("fair", "passable", "middling"),
    ("good", "nice", "fine"),
    ("perfect", "superb", "splendid"),
)
STRENGTHS = ("no", "slight", "visible", "strong", "extreme")
QUALITY = {
    "blur": ("blur", "softness", "lack of sharpness"),
    "noise": ("noise", "grain", "speckles"),
    "compression": ("compression artifacts", "blocking", "JPEG artifacts"),
    "contrast": ("loss of contrast", "haze", "flatness"),
    "pixels": ("pixelation", "coarse pixels", "low resolution"),
}
AESTHETICS = {
    "composition": ("cropping of the subject", "imbalance of the composition", "crowding at the edge"),
    "colors": ("fading of the colors", "dullness of the colors", "color cast"),
    "light": ("problem of the light", "wrong exposure", "harshness of the light"),
    "focus": ("lack of focus", "missed focus", "softness of the subject"),
}
WEIGHTS = {"composition": 0.35, "colors": 0.3, "light": 0.2, "focus": 0.15}
IRRELEVANT = (
    "Thanks for sharing this with all of us here in the group, I always enjoy to look at your pages.",
    "I was at this place last year with my family and we had a wonderful time together.",
    "Good luck in the challenge, I hope that many people will vote for you this week!",
    "Which camera and which lens did you take for this one, if I may ask you that?",
    "First!",
    "lol",
    "This reminds me of the house of my grandmother, where we spent all of our summers.",
    "Congratulations on the ribbon, you really deserve it after all of these entries.",
    "I do not understand how this meets the topic of the challenge at all, to be honest.",
    "My daughter has one of these at home and plays with it every single day.",
    "See you next time.",
    "Happy new year to you and to everybody who reads this!",
)
OPINIONS = (
    "a {level} image with {strength} {what}",
    "{strength} {what}, so {level} for me",
    "I find this a {level} image because of {strength} {what}, which I see at once when I look at it",
    "for me this is a {level} image, since there is {strength} {what} in it, as far as I can tell from here",
)
DESCRIPTIONS = {
    "quality": (
        "a {level} image with {strength} {what}",
        "the quality of the image is {level}: {strength} {what}",
        "{level} image of {level} quality, {strength} {what}",
    ),
    "aesthetics": (
        "a {level} image with {strength} {what}",
        "the aesthetics of the image are {level}: {strength} {what}",
        "{level} image of {level} aesthetics, {strength} {what}",
    ),
}

about = About(
    name="rated_images",
    description="3,000 composed images with scores of quality or aesthetics, descriptions and noisy comments",
    license="images: Noto Emoji (Apache-2.0); texts: Unicode CLDR (Unicode-3.0)",
    source="composed from the corpus 'scenes'",
    modalities=("image", "text", "table"),
    composed="every image, score and text is composed",
)


def rated_images() -> Corpus:
    """Open the corpus, composing it once (some seconds)."""
    columns: dict[str, Modality] = {
        "image": Image(),
        "description": Text(),
        "caption": Text(),
        "comments": Text(),
        "scores": Table({"quality": "", "aesthetics": ""}, {}),
    }
    return open_prepared(about, columns, _rows)


def degraded(image: PILImage.Image, kind: str, strength: float, rng: np.random.Generator) -> PILImage.Image:
    """Return an image of lower quality. kind: of `QUALITY`. strength: 0 (unchanged) to 1."""
    if strength <= 0:
        return image
    if kind == "blur":
        return image.filter(ImageFilter.GaussianBlur(2.5 * strength))
    if kind == "noise":
        values = np.asarray(image, dtype=np.float64) + rng.normal(0, 60 * strength, (*image.size[::-1], 3))
        return PILImage.fromarray(values.clip(0, 255).astype(np.uint8))
    if kind == "compression":
        return open_image(encoded(image, "JPEG", quality=round(50 * (1 - strength)) + 2)).convert("RGB")
    if kind == "contrast":
        return ImageEnhance.Contrast(image).enhance(1 - 0.85 * strength)
    small = [max(round(side / (1 + 4 * strength)), 1) for side in image.size]
    return image.resize((small[0], small[1]), PILImage.Resampling.BOX).resize(image.size, PILImage.Resampling.NEAREST)


def photographed(image: PILImage.Image, strengths: dict[str, float], rng: np.random.Generator) -> PILImage.Image:
    """Return an image of lower aesthetics. strengths: of each of `AESTHETICS`, 0 (unchanged) to 1."""
    side = image.width
    shift = round(0.45 * side * strengths["composition"])
    dx, dy = (int(sign) * shift for sign in rng.choice([-1, 1], size=2))
    moved = PILImage.new("RGB", image.size, image.getpixel((0, 0)))
    moved.paste(image, (dx, dy))
    moved = ImageEnhance.Color(moved).enhance(1 - strengths["colors"])
    tint = np.array([1, 1, 1 - 0.4 * strengths["colors"]])
    gamma = 1 + (1.5 * strengths["light"] if rng.random() < 0.5 else -0.6 * strengths["light"])
    values = (np.asarray(moved) / 255 * tint) ** gamma
    lit = PILImage.fromarray((255 * values).round().astype(np.uint8))
    return lit.filter(ImageFilter.GaussianBlur(2 * strengths["focus"])) if strengths["focus"] else lit


def opinion(
    templates: tuple[str, ...], score: float, names: tuple[str, ...], strength: float, rng: np.random.Generator
) -> str:
    """Return a sentence about the level of a score (1 to 5) and the strength (0 to 1) of a degradation."""
    level = LEVELS[min(int((score - 1) / 4 * 5), 4)]
    words = {"level": rng.choice(level), "what": rng.choice(names), "strength": STRENGTHS[min(int(5 * strength), 4)]}
    return str(rng.choice(templates)).format(**words)


def _rows(prepare: Preparation) -> Iterator[Row]:
    source = scenes()
    for place, (split, count) in enumerate(COUNTS.items()):
        rng = np.random.default_rng(place)
        for number in prepare.track(range(count), f"Rating images, {split}"):
            row = int(source.rows(split)[number])
            image = source.value(row, "image").convert("RGB")
            rated = _of_quality(image, rng) if number % 2 == 0 else _of_aesthetics(image, rng)
            yield {"key": f"{split}/{number}", "split": split, "caption": source.raw(row, "caption")} | rated


def _mean_opinion(loss: float, rng: np.random.Generator) -> float:
    return float(np.clip(5 - 4 * loss + rng.normal(0, RATER_NOISE), 1, 5))


def _of_quality(image: PILImage.Image, rng: np.random.Generator) -> Row:
    kind, strength = str(rng.choice(list(QUALITY))), float(rng.beta(0.6, 0.6))
    score = _mean_opinion(strength, rng)
    text = opinion(DESCRIPTIONS["quality"], score, QUALITY[kind], strength, rng)
    return {
        "image": encoded(degraded(image, kind, strength, rng)),
        "description": stored_texts(text),
        "comments": None,
        "scores": {"quality": score, "aesthetics": None},
    }


def _of_aesthetics(image: PILImage.Image, rng: np.random.Generator) -> Row:
    strengths = {name: float(rng.beta(0.6, 0.6)) for name in AESTHETICS}
    score = _mean_opinion(sum(WEIGHTS[name] * value for name, value in strengths.items()), rng)
    worst = max(strengths, key=lambda name: WEIGHTS[name] * strengths[name])
    text = opinion(DESCRIPTIONS["aesthetics"], score, AESTHETICS[worst], strengths[worst], rng)
    comments = []
    for _ in range(RELEVANT):
        name = str(rng.choice(list(AESTHETICS)))
        comments.append(opinion(OPINIONS, score, AESTHETICS[name], strengths[name], rng))
    comments += [str(one) for one in rng.choice(IRRELEVANT, COMMENTS - RELEVANT, replace=False)]
    return {
        "image": encoded(photographed(image, strengths, rng)),
        "description": stored_texts(text),
        "comments": stored_texts(*(comments[place] for place in rng.permutation(COMMENTS))),
        "scores": {"quality": None, "aesthetics": score},
    }
