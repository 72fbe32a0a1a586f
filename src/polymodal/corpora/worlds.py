"""Grid worlds with missions in words, and what an expert sees and does in them.

Ten levels of BabyAI (Chevalier-Boisvert et al. 2019) in minigrid, from going to an object in one room to opening doors
and doing things in order. The expert is BabyAI's bot, which sees only what the agent sees, so it searches; episodes of
more than 64 actions are left out. `views` are what is in front of the agent before each action; `image` is the whole
world at the start. A mission's words stand on one side of the split only, so a test asks for combinations that training
never named.
"""

from __future__ import annotations

import contextlib
import io
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image as PILImage

from polymodal.corpora._prepared import Preparation, Row, open_prepared
from polymodal.corpora._splits import split_by_hash
from polymodal.corpora.corpus import About, Corpus
from polymodal.errors import needs
from polymodal.modalities import Actions, Category, Image, Images, Modality, Text
from polymodal.modalities.image import encoded
from polymodal.modalities.text import stored_texts

LEVELS = {
    "GoToObj": "BabyAI-GoToObj-v0",
    "GoToLocal": "BabyAI-GoToLocal-v0",
    "GoToDoor": "BabyAI-GoToDoor-v0",
    "PickupLoc": "BabyAI-PickupLoc-v0",
    "PickupDist": "BabyAI-PickupDist-v0",
    "OpenDoor": "BabyAI-OpenDoor-v0",
    "Open": "BabyAI-Open-v0",
    "PutNextLocal": "BabyAI-PutNextLocal-v0",
    "UnblockPickup": "BabyAI-UnblockPickup-v0",
    "GoToSeq": "BabyAI-GoToSeqS5R2-v0",
}
EPISODES = 500  # of each level that are tried
MAX_STEPS = 64  # actions
NAMES = ("left", "right", "forward", "pickup", "drop", "toggle", "done")
VIEW, TOP = 8, 16  # pixels of a field, as the agent sees it and from above

about = About(
    name="worlds",
    description="4,774 grid worlds with missions in words, what an expert sees, and what it does",
    license="Apache-2.0",
    source="played in minigrid",
    modalities=("image", "images", "text", "actions", "category"),
    composed="worlds and missions are drawn by minigrid's levels; actions are those of BabyAI's bot",
)


def worlds() -> Corpus:
    """Open the corpus, playing it once (some minutes). Raises UserError without the package minigrid."""
    columns: dict[str, Modality] = {
        "image": Image(),
        "mission": Text(),
        "views": Images(),
        "actions": Actions(NAMES),
        "level": Category(tuple(LEVELS)),
    }
    return open_prepared(about, columns, _rows, label="level")


def _rows(prepare: Preparation) -> Iterator[Row]:
    try:
        import gymnasium
        import minigrid  # noqa: F401  (it registers its levels)
    except ImportError as error:
        raise needs("minigrid", "worlds", "Playing in grid worlds") from error
    for level, name in LEVELS.items():
        world = gymnasium.make(name, render_mode="rgb_array").unwrapped
        for episode in prepare.track(range(EPISODES), f"Playing {level}"):
            played = play(world, zlib.crc32(f"{level}/{episode}".encode()))
            if played is not None:
                mission = played.pop("mission")
                yield {
                    "key": f"{level}/{episode:03d}",
                    "split": split_by_hash(mission),
                    "mission": stored_texts(mission),
                    "level": level,
                    **played,
                }
        world.close()


def play(world: Any, seed: int) -> dict[str, Any] | None:
    """Play one episode of the expert; None when it is too long, or fails."""
    from minigrid.utils.baby_ai_bot import BabyAIBot

    with contextlib.redirect_stdout(io.StringIO()):  # it reports every world that it draws again
        world.reset(seed=seed)
    image = encoded(_image(world.get_frame(highlight=False, tile_size=TOP)))
    mission = world.mission
    views: list[bytes] = []
    actions: list[dict[str, Any]] = []
    expert, last = BabyAIBot(world), None
    while len(actions) < MAX_STEPS:
        views.append(encoded(_image(world.get_frame(tile_size=VIEW, agent_pov=True))))
        try:
            last = expert.replan(last)
        except Exception:  # the bot gives up with an assertion where a world cannot be solved from what was seen
            return None
        actions.append({"name": NAMES[int(last)], "target": None, "text": None})
        _, reward, ended, cut, _ = world.step(last)
        if ended or cut:
            if reward <= 0:
                return None
            return {"image": image, "mission": mission, "views": views, "actions": actions}
    return None


def _image(pixels: np.ndarray) -> PILImage.Image:
    return PILImage.fromarray(pixels.astype(np.uint8))
