"""The 80 object classes of COCO (Lin et al. 2014), and their nouns in WordNet."""

from __future__ import annotations

_NAMES = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, handbag,
tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard,
tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot,
hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote,
keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear,
hair drier, toothbrush
"""
_NOUNS = {
    "tie": "necktie",
    "skis": "ski",
    "sports ball": "ball",
    "tennis racket": "racket",
    "wine glass": "wineglass",
    "hot dog": "hotdog",
    "donut": "doughnut",
    "couch": "sofa",
    "potted plant": "pot_plant",
    "dining table": "table",
    "tv": "television",
    "remote": "remote_control",
    "cell phone": "cellular_telephone",
    "teddy bear": "teddy",
    "hair drier": "hair_dryer",
}
_EVERY = " ".join(_NAMES.split()).split(", ")
COCO_CLASSES = {name: _NOUNS.get(name, name.replace(" ", "_")) for name in _EVERY}
"""Class name -> noun in WordNet, where it has one."""
