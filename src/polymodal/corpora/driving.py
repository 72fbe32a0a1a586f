"""Traffic on a motorway from above, by lidar, as numbers and in words, with questions whose answers are computed.

Scenes of highway-env (Leurent 2018): two to five lanes and other cars that keep their distance and change lanes. Ours
is green and does something at random each second, and an episode ends before it crashes. `lidar` are the points where
256 beams within 60 m meet another car, in metres: x ahead, y to the left, z 0; a scene where none does is left out.
Scenes of an episode are in one split.
"""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image as PILImage

from polymodal.corpora._prepared import Preparation, Row, open_prepared
from polymodal.corpora._splits import split_by_hash
from polymodal.corpora.corpus import About, Corpus
from polymodal.errors import needs
from polymodal.modalities import Category, Image, Modality, Points, Questions, Table, Text
from polymodal.modalities.image import encoded
from polymodal.modalities.modality import to_npy
from polymodal.modalities.question import stored_questions
from polymodal.modalities.text import stored_texts

EPISODES, SCENES = 500, 6  # scenes of an episode, one a second
BEAMS, RANGE = 256, 60.0  # metres
LANES = ("1", "2", "3", "4", "5")  # from the left
TRAFFIC = ("light", "dense")  # cars within range: up to 5, more
GAP = 15.0  # metres before and behind that a lane must be free to be changed to
LENGTH = 5.0  # metres of a car

about = About(
    name="driving",
    description="2,122 motorway scenes: image from above, lidar, own state, description, questions",
    license="MIT",
    source="driven in highway-env",
    modalities=("image", "points", "table", "text", "questions", "category"),
    composed="traffic is simulated; descriptions are templates of ours, answers are computed",
)


def driving() -> Corpus:
    """Open the corpus, simulating it once (some minutes). Raises UserError without the package highway-env."""
    columns: dict[str, Modality] = {
        "image": Image(),
        "lidar": Points(),
        "state": Table({"speed": "m/s", "heading": "rad", "gap": "m"}, {"lane": LANES}),
        "description": Text(),
        "questions": Questions(),
        "traffic": Category(TRAFFIC),
    }
    return open_prepared(about, columns, _rows, label="traffic")


class Car(NamedTuple):
    """Another car, relative to ours. ahead: meters between centers along the road. speed: relative, in m/s."""

    ahead: float
    lane: int
    speed: float


class Traffic(NamedTuple):
    """Traffic scene. lane: of our car, from 0 on the left. speed: in m/s. cars: those within range."""

    lane: int
    lanes: int
    speed: float
    cars: tuple[Car, ...]

    def leader(self) -> Car | None:
        """Return the next car ahead in our lane."""
        ahead = [car for car in self.cars if car.lane == self.lane and car.ahead > 0]
        return min(ahead, key=lambda car: car.ahead, default=None)

    def free(self, lane: int) -> bool:
        """Return whether there is such a lane, without a car beside us or near."""
        return 0 <= lane < self.lanes and all(car.lane != lane or abs(car.ahead) > GAP for car in self.cars)


def _rows(prepare: Preparation) -> Iterator[Row]:
    try:
        import gymnasium
        import highway_env
    except ImportError as error:
        raise needs("highway-env", "worlds", "Driving on the motorway") from error
    gymnasium.register_envs(highway_env)
    os.environ.setdefault("XDG_RUNTIME_DIR", tempfile.gettempdir())  # without one, what draws the cars complains
    for episode in prepare.track(range(EPISODES), "Driving"):
        key = f"episode/{episode:03d}"
        for second, scene in enumerate(drive(zlib.crc32(key.encode()))):
            yield {"key": f"{key}/{second}", "split": split_by_hash(key), **scene}


def drive(seed: int) -> Iterator[dict[str, Any]]:
    """Return the scenes of an episode, without key and split."""
    import gymnasium
    from highway_env.envs.common.observation import LidarObservation

    rng = np.random.default_rng(seed)
    lanes = int(rng.integers(2, 6))
    settings = {
        "lanes_count": lanes,
        "initial_lane_id": int(rng.integers(lanes)),
        "vehicles_count": int(rng.integers(5, 40)),
        "vehicles_density": rng.uniform(0.7, 2),
        "screen_width": 256,
        "screen_height": 96,
        "scaling": 2.5,  # pixels a metre
        "centering_position": [0.5, 0.5],
        "offscreen_rendering": True,
    }
    world = gymnasium.make("highway-v0", render_mode="rgb_array", config=settings)
    world.reset(seed=seed)
    inner: Any = world.unwrapped
    lidar = LidarObservation(inner, cells=BEAMS, maximum_range=RANGE, normalize=False)
    for _ in range(SCENES):
        _, _, ended, cut, _ = world.step(int(rng.integers(inner.action_space.n)))
        if ended or cut:
            break
        traffic, points = observe(inner), hits(lidar.observe()[:, 0], inner.vehicle.heading)
        if len(points):
            leader = traffic.leader()
            yield {
                "image": encoded(PILImage.fromarray(np.asarray(world.render()))),
                "lidar": to_npy(points),
                "state": {
                    "speed": traffic.speed,
                    "heading": float(inner.vehicle.heading),
                    "gap": None if leader is None else leader.ahead - LENGTH,
                    "lane": LANES[traffic.lane],
                },
                "description": stored_texts(describe(traffic)),
                "questions": stored_questions(driving_questions(traffic)),
                "traffic": TRAFFIC[len(traffic.cars) > 5],
            }
    world.close()


def observe(world: Any) -> Traffic:
    """Return the cars within range, from the simulator's state."""
    own = world.vehicle
    cars = [
        Car(float(car.position[0] - own.position[0]), car.lane_index[2], float(car.speed - own.speed))
        for car in world.road.vehicles
        if car is not own and np.linalg.norm(car.position - own.position) <= RANGE
    ]
    lanes = len(world.road.network.all_side_lanes(own.lane_index))
    return Traffic(own.lane_index[2], lanes, float(own.speed), tuple(cars))


def hits(distances: np.ndarray, heading: float) -> np.ndarray:
    """Return the points where beams hit. distances: meters; the first beam points along the road, later ones turn
    right."""
    angles = 2 * np.pi * np.arange(len(distances)) / len(distances) - heading
    points = np.stack([distances * np.cos(angles), -distances * np.sin(angles), np.zeros(len(distances))], axis=1)
    return points[distances < RANGE].astype(np.float32)


def pace(car: Car) -> str:
    return "faster than us" if car.speed > 0.5 else "slower than us" if car.speed < -0.5 else "as fast as us"


def describe(traffic: Traffic) -> str:
    """Describe the lane, the speed, the next car ahead, and the adjacent lanes."""
    said = [f"We drive in lane {traffic.lane + 1} of {traffic.lanes} at {traffic.speed:.0f} m/s."]
    leader = traffic.leader()
    if leader is None:
        said.append("No car is ahead in our lane.")
    else:
        said.append(f"The next car in our lane is {leader.ahead - LENGTH:.0f} m ahead, {pace(leader)}.")
    for side, lane in (("left", traffic.lane - 1), ("right", traffic.lane + 1)):
        if 0 <= lane < traffic.lanes:
            said.append(f"The lane to the {side} is {'free' if traffic.free(lane) else 'occupied'}.")
    return " ".join(said)


def driving_questions(traffic: Traffic) -> list[tuple[str, str, str]]:
    """Return questions, answers and kinds."""
    leader = traffic.leader()
    asked = [
        ("How many cars are within 60 m?", str(len(traffic.cars)), "count"),
        ("How many lanes are there?", str(traffic.lanes), "count"),
        ("Which lane are we in, counted from the left?", str(traffic.lane + 1), "lane"),
        ("Is a car ahead in our lane?", "no" if leader is None else "yes", "presence"),
        ("Can we change to the left?", "yes" if traffic.free(traffic.lane - 1) else "no", "free"),
        ("Can we change to the right?", "yes" if traffic.free(traffic.lane + 1) else "no", "free"),
    ]
    if leader is not None:
        asked.append(("Is the car ahead slower or faster than us?", pace(leader), "speed"))
    return asked
