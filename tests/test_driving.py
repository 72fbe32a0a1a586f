"""Motorway scenes: lidar meets the cars that the simulator has, and answers follow from where they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from corpus_modules import module
from polymodal.modalities import Points
from polymodal.modalities.image import Image

driving = module("driving")


def traffic(*cars: tuple[float, int, float], lane: int = 1) -> Any:
    return driving.Traffic(lane, 3, 20.0, tuple(driving.Car(*car) for car in cars))


def answers(scene: Any) -> dict[str, str]:
    return {question: answer for question, answer, _ in driving.driving_questions(scene)}


def test_answers_follow_from_the_cars() -> None:
    scene = traffic((40, 1, -3), (20, 1, 2), (-30, 0, 0), (10, 2, 0))
    said = answers(scene)
    assert said["How many cars are within 60 m?"] == "4"
    assert said["Which lane are we in, counted from the left?"] == "2"
    assert said["Is the car ahead slower or faster than us?"] == "faster than us"
    assert (said["Can we change to the left?"], said["Can we change to the right?"]) == ("yes", "no")
    assert driving.describe(scene) == (
        "We drive in lane 2 of 3 at 20 m/s. The next car in our lane is 15 m ahead, faster than us. "
        "The lane to the left is free. The lane to the right is occupied."
    )


def test_a_car_behind_is_not_ahead_and_no_lane_is_not_free() -> None:
    said = answers(traffic((-20, 0, 0), lane=0))
    assert said["Is a car ahead in our lane?"] == "no"
    assert said["Can we change to the left?"] == "no"
    assert not any("slower" in question for question in said)


def test_beams_are_points_ahead_and_to_the_left() -> None:
    distances = np.full(4, 60.0)
    distances[[0, 1]] = 10, 20  # the second beam of four points to the right
    np.testing.assert_allclose(driving.hits(distances, 0.0), [[10, 0, 0], [0, -20, 0]], atol=1e-5)
    turned = driving.hits(distances, np.pi / 2)  # the car turns right, so what the road has ahead is on its left
    np.testing.assert_allclose(turned, [[0, 10, 0], [20, 0, 0]], atol=1e-5)


def test_lidar_meets_the_cars_of_the_scene(monkeypatch: pytest.MonkeyPatch) -> None:
    last, kept = [], []
    seen, hits = driving.observe, driving.hits

    def remembered(world: Any) -> Any:
        last[:] = [car.position - world.vehicle.position for car in world.road.vehicles if car is not world.vehicle]
        return seen(world)

    def kept_hits(distances: np.ndarray, heading: float) -> np.ndarray:
        points = hits(distances, heading)
        if len(points):
            kept.append(list(last))
        return points

    monkeypatch.setattr(driving, "observe", remembered)
    monkeypatch.setattr(driving, "hits", kept_hits)
    scenes = [scene for seed in range(6) for scene in driving.drive(seed)]
    assert len(scenes) >= 6
    for scene, cars in zip(scenes, kept, strict=True):
        points, heading = Points().decode(scene["lidar"]), scene["state"]["heading"]
        ahead = np.stack([[x * np.cos(heading) + y * np.sin(heading), x * np.sin(heading) - y * np.cos(heading)]
                          for x, y in cars])  # fmt: skip
        distances = np.linalg.norm(points[:, None, :2] - ahead[None], axis=-1).min(1)
        assert distances.max() < 4  # metres from the middle of a car of 5 m
        assert Image().decode(scene["image"]).size == (256, 96)


def test_an_episode_is_the_same_every_time() -> None:
    assert list(driving.drive(3)) == list(driving.drive(3))
