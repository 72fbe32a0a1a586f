"""Grid worlds: an episode can be played again from its actions, and shows what the agent saw."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from corpus_modules import module
from polymodal.modalities import Actions, Images

worlds = module("worlds")


@pytest.fixture(params=["GoToLocal", "PutNextLocal", "Open"])
def world(request: pytest.FixtureRequest) -> Iterator[Any]:
    import gymnasium
    import minigrid  # noqa: F401  (it registers its levels)

    world = gymnasium.make(worlds.LEVELS[request.param], render_mode="rgb_array").unwrapped
    yield world
    world.close()


def test_the_actions_of_an_episode_fulfil_its_mission(world: Any) -> None:
    seed, episode = next((seed, found) for seed in range(20) if (found := worlds.play(world, seed)) is not None)
    actions = Actions(worlds.NAMES).decode(episode["actions"])
    views = Images().decode(episode["views"])
    assert len(views) == len(actions)
    world.reset(seed=seed)
    assert world.mission == episode["mission"]
    rewards = []
    for view, action in zip(views, actions, strict=True):
        assert np.array_equal(view, world.get_frame(tile_size=worlds.VIEW, agent_pov=True))
        _, reward, ended, _, _ = world.step(action.number)
        rewards.append(reward)
    assert ended
    assert rewards[-1] > 0
    assert not any(rewards[:-1])


def test_an_episode_is_the_same_every_time(world: Any) -> None:
    assert worlds.play(world, 3) == worlds.play(world, 3)


def test_names_are_those_of_the_actions() -> None:
    from minigrid.core.actions import Actions as TheirActions

    assert tuple(action.name for action in TheirActions) == worlds.NAMES


def test_an_episode_that_is_too_long_is_left_out(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worlds, "MAX_STEPS", 1)
    episodes = [worlds.play(world, seed) for seed in range(5)]
    assert all(episode is None or len(episode["actions"]) == 1 for episode in episodes)
    assert None in episodes
