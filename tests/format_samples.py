"""A small sample of each format of users' data: `SAMPLES[name](folder)` writes it, and returns the path to open."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import trimesh
from PIL import Image as PILImage
from rdkit import Chem

from polymodal.modalities.image import encoded

COUNT = 12  # examples of a sample


def png(number: int) -> bytes:
    return encoded(PILImage.new("RGB", (8, 6), (20 * number, 3, 7)))


def captions() -> list[str]:
    return [f"thing number {number}" for number in range(COUNT)]


def written_images(folder: Path) -> list[str]:
    for number in range(COUNT):
        (folder / f"{number}.png").write_bytes(png(number))
    return [f"{number}.png" for number in range(COUNT)]


def csv(folder: Path) -> Path:
    lines = [f"{name},{text}" for name, text in zip(written_images(folder), captions(), strict=True)]
    (folder / "pairs.csv").write_text("\n".join(["filepath,title", *lines]))
    return folder / "pairs.csv"


def json_lines(folder: Path) -> Path:
    pairs = zip(written_images(folder), captions(), strict=True)
    (folder / "pairs.jsonl").write_text("\n".join(json.dumps({"image": name, "caption": text}) for name, text in pairs))
    return folder / "pairs.jsonl"


def parquet(folder: Path) -> Path:
    rows = [{"image": {"bytes": png(n), "path": f"{n}.png"}, "text": text} for n, text in enumerate(captions())]
    pq.write_table(pa.Table.from_pylist(rows), folder / "train-00000-of-00001.parquet")
    return folder


def webdataset(folder: Path) -> Path:
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for number, text in enumerate(captions()):
            for suffix, content in (("png", png(number)), ("txt", text.encode())):
                member = tarfile.TarInfo(f"{number:09d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return folder / "00000.tar"


def coco(folder: Path) -> Path:
    """The published layout: `annotations/` beside a folder of images for each split."""
    (folder / "annotations").mkdir()
    for split, numbers in {"train2017": range(9), "val2017": range(9, COUNT)}.items():
        (folder / split).mkdir()
        images = []
        for number in numbers:
            (folder / split / f"{number:012d}.jpg").write_bytes(png(number))
            url = f"http://images.cocodataset.org/{split}/{number:012d}.jpg"
            size = {"height": 6, "width": 8}
            images.append({"license": 3, "file_name": f"{number:012d}.jpg", "coco_url": url, **size, "id": number})
        frame = {"info": {"year": 2017}, "licenses": [{"id": 3, "name": "x"}], "images": images}
        texts = [
            {"image_id": number, "id": 10 * number + place, "caption": f"thing {number}, said {place}"}
            for number in numbers
            for place in range(5)
        ]
        boxes = [
            {
                "segmentation": [[1.0, 2.0, 3.0, 2.0, 3.0, 4.0]],
                "area": 6.0,
                "iscrowd": 0,
                "image_id": number,
                "bbox": [1.2, 2.1, 3.0, 2.0],
                "category_id": 18,
                "id": number,
            }
            for number in numbers
        ]
        categories = [{"supercategory": "animal", "id": 18, "name": "dog"}]
        captions = json.dumps({**frame, "annotations": texts})
        instances = json.dumps({**frame, "annotations": boxes, "categories": categories})
        (folder / "annotations" / f"captions_{split}.json").write_text(captions)
        (folder / "annotations" / f"instances_{split}.json").write_text(instances)
    return folder


def cord(folder: Path) -> Path:
    """CORD's layout; its file names are the same in all splits."""
    for split, count in {"train": COUNT - 4, "dev": 2, "test": 2}.items():
        for kind in ("json", "image"):
            (folder / split / kind).mkdir(parents=True)
        for number in range(count):
            shade = number + 20 * ("train", "dev", "test").index(split)
            (folder / split / "image" / f"receipt_{number:05d}.png").write_bytes(
                encoded(PILImage.new("RGB", (80, 160), (shade, 3, 7)))
            )
            quad = {"x1": 8, "y1": 16, "x2": 40, "y2": 16, "x3": 40, "y3": 32, "x4": 8, "y4": 33}
            words = [{"quad": quad, "is_key": 0, "row_id": 7, "text": f"{split}{number}"}]
            held = {
                "meta": {
                    "version": "0.1",
                    "split": split,
                    "image_id": number,
                    "image_size": {"width": 80, "height": 160},
                },
                "valid_line": [
                    {"words": words, "category": "menu.nm", "group_id": 3},
                    {"words": words, "category": "total.total_price", "group_id": 4},
                ],
                "roi": {},
                "repeating_symbol": [],
                "dontcare": [],
            }
            (folder / split / "json" / f"receipt_{number:05d}.json").write_text(json.dumps(held))
    return folder


def flickr30k(folder: Path) -> Path:
    """Flickr30k Entities, with the lists of its splits."""
    for name in ("Sentences", "Annotations", "flickr30k-images"):
        (folder / name).mkdir()
    for number in range(COUNT):
        stem = str(1000092790 + number)
        (folder / "flickr30k-images" / f"{stem}.jpg").write_bytes(png(number))
        lines = [
            f"[/EN#1/people Two young guys] with [/EN#2/bodyparts/other shaggy hair] look at [/EN#9/scene {number}] .",
            "[/EN#1/people Two friends] enjoy time .",
        ]
        (folder / "Sentences" / f"{stem}.txt").write_text("\n".join(lines) + "\n")
        boxes = [("1", 2, 1, 4, 3), ("1", 5, 1, 7, 3), ("2", 3, 2, 4, 5)]
        objects = "".join(
            f"<object><name>{name}</name><bndbox><xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax>"
            f"<ymax>{bottom}</ymax></bndbox></object>"
            for name, left, top, right, bottom in boxes
        )
        scene = "<object><name>9</name><scene>1</scene><nobndbox>1</nobndbox></object>"
        size = "<size><width>8</width><height>6</height><depth>3</depth></size>"
        annotation = f"<annotation><filename>{stem}.jpg</filename>{size}{objects}{scene}</annotation>"
        (folder / "Annotations" / f"{stem}.xml").write_text(annotation)
    for split, numbers in {"train": range(8), "val": range(8, 10), "test": range(10, COUNT)}.items():
        (folder / f"{split}.txt").write_text("".join(f"{1000092790 + number}\n" for number in numbers))
    return folder


def funsd(folder: Path) -> Path:
    for split, numbers in {"training_data": range(9), "testing_data": range(9, COUNT)}.items():
        for kind in ("annotations", "images"):
            (folder / split / kind).mkdir(parents=True)
        for number in numbers:
            page = PILImage.new("RGB", (100, 200), (number, 3, 7))
            (folder / split / "images" / f"8209{number}.png").write_bytes(encoded(page))
            question = {
                "box": [10, 20, 40, 30],
                "text": "R&D :",
                "label": "question",
                "words": [{"box": [10, 20, 30, 30], "text": "R&D"}, {"box": [32, 20, 40, 30], "text": ":"}],
                "linking": [[0, 37]],
                "id": 0,
            }
            answer = {
                "box": [50, 20, 90, 30],
                "text": f"No. {number}",
                "label": "answer",
                "words": [
                    {"box": [50, 20, 60, 30], "text": "No."},
                    {"box": [62, 20, 90, 30], "text": str(number)},
                    {"box": [62, 20, 62, 20], "text": ""},
                ],
                "linking": [[0, 37]],
                "id": 37,
            }
            text = json.dumps({"form": [question, answer]})
            (folder / split / "annotations" / f"8209{number}.json").write_text(text)
    return folder


def gqa(folder: Path) -> Path:
    (folder / "images").mkdir()
    for split, numbers in {"train": range(9), "val": range(9, COUNT)}.items():
        questions = {}
        for number in numbers:
            (folder / "images" / f"{2370 + number}.jpg").write_bytes(png(number))
            questions[f"{number:08d}"] = {
                "semantic": [{"operation": "select", "dependencies": [], "argument": "sky (2486325)"}],
                "entailed": [],
                "imageId": str(2370 + number),
                "question": f"Is thing {number} overcast?",
                "answer": "no",
                "fullAnswer": "No, it is clear.",
                "types": {"detailed": "weatherVerify", "semantic": "global", "structural": "verify"},
            }
        (folder / f"{split}_balanced_questions.json").write_text(json.dumps(questions))
    return folder


HOCR = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Transitional//EN" "http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd">
<html xmlns="http://www.w3.org/1999/xhtml" xml:lang="en" lang="en">
 <head><title></title><meta http-equiv="Content-Type" content="text/html;charset=utf-8"/>
  <meta name='ocr-system' content='tesseract 5.3.0' />
  <meta name='ocr-capabilities' content='ocr_page ocr_carea ocr_par ocr_line ocrx_word ocrp_wconf'/></head>
 <body>
  <div class='ocr_page' id='page_1' title='image "/tmp/scans/{name}.png"; bbox 0 0 100 200; ppageno 0; scan_res 70 70'>
   <div class='ocr_carea' id='block_1_1' title="bbox 10 20 90 60"><p class='ocr_par' id='par_1_1' lang='eng'>
     <span class='ocr_line' id='line_1_1' title="bbox 10 20 90 30; baseline 0 -1; x_size 12">
      <span class='ocrx_word' id='word_1_1' title='bbox 10 20 40 30; x_wconf 96'><strong>R&amp;D</strong></span>
      <span class='ocrx_word' id='word_1_2' title='bbox 50 20 90 30; x_wconf 91'>{name}</span>
     </span>
     <span class='ocr_line' id='line_1_2' title="bbox 10 50 90 60; baseline 0 -1">
      <span class='ocrx_word' id='word_1_3' title='bbox 10 50 40 60; x_wconf 12'><em>Caf&#233;</em></span>
      <span class='ocrx_word' id='word_1_4' title='bbox 50 50 60 60; x_wconf 0'> </span>
     </span></p></div>
  </div>
 </body></html>
"""  # as Tesseract 5 writes it


def hocr(folder: Path) -> Path:
    for number in range(COUNT):
        (folder / f"scan{number}.png").write_bytes(encoded(PILImage.new("RGB", (100, 200), (number, 3, 7))))
        (folder / f"scan{number}.hocr").write_text(HOCR.format(name=f"scan{number}"), encoding="utf-8")
    return folder


def imagefolder(folder: Path) -> Path:
    for name, text in zip(written_images(folder), captions(), strict=True):
        (folder / name).with_suffix(".txt").write_text(text)
    return folder


def wav(path: Path, number: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = 0.3 * np.sin(np.arange(1600) * (0.1 + 0.01 * number))
    soundfile.write(path, wave, 16_000, format={".flac": "FLAC", ".mp3": "MP3"}.get(path.suffix, "WAV"))
    return path


def ljspeech(folder: Path) -> Path:
    for number in range(COUNT):
        wav(folder / "wavs" / f"LJ001-{number:04d}.wav", number)
    lines = [f'LJ001-{n:04d}|"{text}|{text}, really' for n, text in enumerate(captions())]
    (folder / "metadata.csv").write_text("\n".join(lines))
    return folder


def common_voice(folder: Path) -> Path:
    for split, numbers in {"train": range(8), "dev": range(8, 10), "test": range(10, COUNT)}.items():
        lines = ["client_id\tpath\tsentence\tup_votes\tlocale"]
        for number in numbers:
            wav(folder / "clips" / f"common_voice_ga_{number}.mp3", number)
            lines.append(f'speaker{number}\tcommon_voice_ga_{number}.mp3\t"Thing {number}\t2\tga-IE')
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def kaldi(folder: Path) -> Path:
    for split, numbers in {"train": range(8), "test": range(8, COUNT)}.items():
        data = folder / "data" / split
        names = [f"spk{number % 3}-{number}" for number in numbers]
        for number in numbers:
            wav(folder / "audio" / f"{number}.wav", number)
        data.mkdir(parents=True)
        for file, value in {"wav.scp": "audio/{}.wav", "text": "thing number {}", "utt2spk": "spk{}"}.items():
            lines = [f"{name} {value.format(number)}\n" for name, number in zip(names, numbers, strict=True)]
            (data / file).write_text("".join(lines))
    return folder


def librispeech(folder: Path) -> Path:
    for number, text in enumerate(captions()):
        chapter = folder / ("train-clean-100" if number < 8 else "dev-other") / str(100 + number // 4) / "7"
        name = f"{100 + number // 4}-7-{number:04d}"
        wav(chapter / f"{name}.flac", number)
        with (chapter / f"{100 + number // 4}-7.trans.txt").open("a") as file:
            file.write(f"{name} {text.upper()}\n")
    return folder


def ratings(folder: Path) -> Path:
    """MovieLens as of 2018: the last two films are of low rating."""
    lines = ["userId,movieId,rating,timestamp"]
    for user in range(COUNT):
        lines += [f"{user},{100 + (user + n) % 9},{4.5 if n < 6 else 2.0},{1000 - n}" for n in range(8)]
    (folder / "ratings.csv").write_text("\n".join(lines))
    films = [f'{100 + film},"Film, the {film}th (1999)",Drama|Comedy' for film in range(9)]
    (folder / "movies.csv").write_text("\n".join(["movieId,title,genres", *films]))
    (folder / "tags.csv").write_text("userId,movieId,tag,timestamp\n1,100,funny,7\n")
    return folder


def clouds(folder: Path) -> Path:
    for number, text in enumerate(captions()):
        place = folder / ("chair" if number % 2 else "table") / f"{number}.ply"
        place.parent.mkdir(exist_ok=True)
        trimesh.PointCloud(np.random.default_rng(number).random((50, 3))).export(place)
        place.with_suffix(".txt").write_text(text)
    return folder


def sdf(folder: Path) -> Path:
    with Chem.SDWriter(str(folder / "molecules.sdf")) as writer:
        for number in range(COUNT):
            molecule = Chem.MolFromSmiles("C" * (number + 1) + "O")
            molecule.SetProp("_Name", f"alcohol {number}")
            molecule.SetProp("logP", f"{0.5 * number:.1f}")
            writer.write(molecule)
    return folder


def timeseries(folder: Path) -> Path:
    """As sktime writes them: two channels, a missing value."""
    for split, numbers in {"TRAIN": range(8), "TEST": range(8, COUNT)}.items():
        lines = ["# Made up", "@problemName Made", "@timeStamps false", "@univariate false", "@dimensions 2"]
        lines += ["@equalLength true", "@seriesLength 4", "@classLabel true up down", "@data"]
        lines += [f"1,2,{n},4:0.5,?,7,-1e-2:{['up', 'down'][n % 2]}" for n in numbers]
        (folder / f"Made_{split}.ts").write_text("\n".join(lines) + "\n")
    return folder


def nifti(folder: Path) -> Path:
    import nibabel

    rng = np.random.default_rng(0)
    for number in range(COUNT):
        for contrast in ("t1ce", "flair") if number else ("flair",):
            place = folder / f"BraTS_{number:03d}" / f"BraTS_{number:03d}_{contrast}.nii.gz"
            place.parent.mkdir(exist_ok=True)
            voxels = rng.random((5, 4, 3), dtype=np.float32)
            nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-1.0, 1, 1, 1])), place)
        mask = nibabel.Nifti1Image(np.zeros((5, 4, 3), np.uint8), np.eye(4))
        nibabel.save(mask, folder / f"BraTS_{number:03d}" / f"BraTS_{number:03d}_seg.nii.gz")
    return folder


def h5ad(folder: Path) -> Path:
    """As the specification of AnnData's files on disk says, with X sparse by rows."""
    import h5py

    strings = h5py.string_dtype()
    with h5py.File(folder / "cells.h5ad", "w") as file:
        file.attrs["encoding-type"] = "anndata"
        obs, var, x = (file.create_group(name) for name in ("obs", "var", "X"))
        obs.attrs["_index"], var.attrs["_index"] = "barcode", "gene"
        obs.create_dataset("barcode", data=[f"AAC{n}-1" for n in range(COUNT)], dtype=strings)
        obs.create_dataset("n_counts", data=np.arange(COUNT) * 10.5)
        kinds = obs.create_group("cell_type")
        kinds.create_dataset("categories", data=["B cell", "T cell"], dtype=strings)
        kinds.create_dataset("codes", data=np.array([0, 1] * 6, np.int8)[:COUNT])
        var.create_dataset("gene", data=["CD3", "MS4A1", "NKG7"], dtype=strings)
        x.attrs["encoding-type"], x.attrs["shape"] = "csr_matrix", (COUNT, 3)
        x.create_dataset("data", data=np.arange(1, COUNT + 1, dtype=np.float32))
        x.create_dataset("indices", data=np.arange(COUNT) % 3)
        x.create_dataset("indptr", data=np.arange(COUNT + 1))
    return folder / "cells.h5ad"


def graph(folder: Path) -> Path:
    """As FB15k-237 is distributed, with the texts of KG-BERT."""
    for split, numbers in {"train": range(8), "valid": range(8, 10), "test": range(10, COUNT)}.items():
        lines = [f"/m/{n}\t/film/directed_by\t/m/d{n % 3}\n" for n in numbers]
        (folder / f"{split}.txt").write_text("".join(lines))
    names = [f"/m/{n}\tFilm {n}" for n in range(COUNT)] + [f"/m/d{n}\tDirector {n}" for n in range(3)]
    (folder / "entity2text.txt").write_text("\n".join(names))
    return folder


def karpathy(folder: Path) -> Path:
    images = []
    for number in range(COUNT):
        split = ("train", "restval", "val", "test")[number % 4]
        place = "train2014" if split == "train" else "val2014"
        (folder / place).mkdir(exist_ok=True)
        name = f"COCO_{place}_{number:012d}.jpg"
        (folder / place / name).write_bytes(png(number))
        said = [f"Thing {number}, said {place}." for place in range(5)]
        sentences = [
            {"tokens": text.split(), "raw": text, "imgid": number, "sentid": 5 * number + place}
            for place, text in enumerate(said)
        ]
        images.append(
            {
                "filepath": place,
                "sentids": [one["sentid"] for one in sentences],
                "filename": name,
                "imgid": number,
                "split": split,
                "sentences": sentences,
                "cocoid": number,
            }
        )
    (folder / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    return folder


def pdf(folder: Path) -> Path:
    """Reports of two pages, as matplotlib writes them."""
    import matplotlib
    from matplotlib.backends.backend_pdf import PdfPages
    from matplotlib.figure import Figure

    folder.mkdir(exist_ok=True)
    with matplotlib.rc_context({"pdf.fonttype": 42}):
        for report in range(COUNT):
            with PdfPages(folder / f"report{report}.pdf") as pages:
                for page in range(2):
                    figure = Figure(figsize=(4, 6))
                    figure.text(0.2, 0.8, f"Page {page} of report {report}", fontsize=14)
                    figure.text(0.3, 0.4, "Below it", fontsize=14)
                    pages.savefig(figure)
    return folder


def refcoco(folder: Path) -> Path:
    """An object of splits, as SeqTR publishes it."""
    (folder / "train2014").mkdir()
    splits: dict[str, list[object]] = {"train": [], "val": [], "testA": [], "testB": []}
    for number in range(COUNT):
        (folder / "train2014" / f"COCO_train2014_{number:012d}.jpg").write_bytes(png(number))
        for place in range(2):
            record = {
                "image_id": number,
                "bbox": [1.0, 2.0, 3.0, 2.5 + place],
                "expressions": [f"the thing {number}", f"thing at {place}"],
                "mask": [[1.0, 2.0, 3.0, 2.0, 3.0, 4.0]],
                "width": 8,
                "height": 6,
            }
            splits[("train", "train", "val", "testA", "testB", "train")[number % 6]].append(record)
    (folder / "instances.json").write_text(json.dumps(splits))
    return folder


def vqa(folder: Path) -> Path:
    """VQA v2 with its file names, ten answers for each question."""
    for split, numbers in {"train2014": range(9), "val2014": range(9, COUNT)}.items():
        (folder / split).mkdir()
        questions, annotations = [], []
        for number in numbers:
            (folder / split / f"COCO_{split}_{number:012d}.jpg").write_bytes(png(number))
            for place in range(2):
                ids = {"image_id": number, "question_id": 1000 * number + place}
                questions.append({**ids, "question": f"What is thing {number}, asked {place}?"})
                given = ["net"] * 6 + ["netting", "fence", "net", "mesh"]
                annotations.append(
                    {
                        "question_type": "what is",
                        "multiple_choice_answer": "net",
                        "answers": [
                            {"answer": answer, "answer_confidence": "yes", "answer_id": order + 1}
                            for order, answer in enumerate(given)
                        ],
                        "answer_type": "other",
                        **ids,
                    }
                )
        frame = {"info": {"year": 2017}, "data_type": "mscoco", "data_subtype": split, "license": {"name": "x"}}
        asked = {**frame, "task_type": "Open-Ended", "questions": questions}
        (folder / f"v2_OpenEnded_mscoco_{split}_questions.json").write_text(json.dumps(asked))
        answered = json.dumps({**frame, "annotations": annotations})
        (folder / f"v2_mscoco_{split}_annotations.json").write_text(answered)
    return folder


def img2dataset(folder: Path) -> Path:
    """Its whole output: a shard, metadata with a download that failed, and statistics."""
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for number, text in enumerate(captions()):
            record = {"caption": text, "url": f"http://x/{number}", "key": f"{number:09d}", "width": 8, "height": 6}
            contents = {"jpg": png(number), "json": json.dumps(record).encode(), "txt": text.encode()}
            for suffix, content in contents.items():
                member = tarfile.TarInfo(f"{number:09d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    rows = [
        {
            "url": f"http://x/{number}",
            "caption": text,
            "key": f"{number:09d}",
            "status": "success" if number < COUNT else "failed_to_download",
            "error_message": None if number < COUNT else "HTTP Error 404: Not Found",
        }
        for number, text in enumerate([*captions(), "gone"])
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "00000.parquet")
    (folder / "00000_stats.json").write_text(json.dumps({"count": COUNT + 1, "successes": COUNT}))
    return folder


def saved_dataset(folder: Path) -> Path:
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value

    features = Features({"image": Image(), "text": Value("string"), "label": ClassLabel(names=["cat", "dog"])})
    rows = [
        {"image": {"bytes": png(n), "path": None}, "text": text, "label": n % 2} for n, text in enumerate(captions())
    ]
    whole = Dataset.from_list(rows, features=features)
    parts = DatasetDict({"train": whole.select(range(8)), "validation": whole.select(range(8, COUNT))})
    parts.save_to_disk(str(folder / "saved"))
    return folder / "saved"


def voc(folder: Path) -> Path:
    """The layout of the VOCdevkit, with the lists of splits and of a class."""
    root = folder / "VOCdevkit" / "VOC2007"
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / name).mkdir(parents=True)
    for number in range(COUNT):
        (root / "JPEGImages" / f"{number:06d}.jpg").write_bytes(png(number))
        (root / "Annotations" / f"{number:06d}.xml").write_text(
            f"<annotation>\n\t<folder>VOC2007</folder>\n\t<filename>{number:06d}.jpg</filename>\n\t<size>\n"
            "\t\t<width>8</width>\n\t\t<height>6</height>\n\t\t<depth>3</depth>\n\t</size>\n"
            "\t<segmented>0</segmented>\n\t<object>\n\t\t<name>dog</name>\n\t\t<pose>Left</pose>\n"
            "\t\t<truncated>1</truncated>\n\t\t<difficult>0</difficult>\n\t\t<bndbox>\n\t\t\t<xmin>1</xmin>\n"
            "\t\t\t<ymin>2</ymin>\n\t\t\t<xmax>8</xmax>\n\t\t\t<ymax>5</ymax>\n\t\t</bndbox>\n\t</object>\n</annotation>\n"
        )
    lists = {"train": range(8), "val": range(8, 10), "test": range(10, COUNT), "trainval": range(10)}
    for name, numbers in lists.items():
        (root / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(f"{number:06d}\n" for number in numbers))
    (root / "ImageSets" / "Main" / "dog_train.txt").write_text("".join(f"{number:06d}  1\n" for number in range(8)))
    return folder


def yolo(folder: Path) -> Path:
    """The layout of Ultralytics; every fourth image is background."""
    for split, numbers in {"train": range(9), "val": range(9, COUNT)}.items():
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for number in numbers:
            (folder / "images" / split / f"{number:012d}.jpg").write_bytes(png(number))
            if number % 4:
                label = folder / "labels" / split / f"{number:012d}.txt"
                label.write_text("0 0.500000 0.500000 0.250000 0.500000\n1 0.25 0.5 0.5 1\n")
    (folder / "data.yaml").write_text(
        "path: ../datasets/pets # dataset root dir\ntrain: images/train\nval: images/val\ntest: # optional\n\n"
        "# Classes\nnames:\n  0: dog\n  1: no\n\ndownload: https://example.org/pets.zip\n"
    )
    return folder


def wit(folder: Path) -> Path:
    columns = ("language", "page_url", "image_url", "caption_reference_description", "caption_alt_text_description")
    lines = ["\t".join(columns)]
    for number, (name, text) in enumerate(zip(written_images(folder), captions(), strict=True)):
        lines.append(f"en\thttps://x/page_{number}\thttps://x/{name}\t{text}\t")
    (folder / "wit_v1.all.tsv").write_text("\n".join(lines))
    return folder


def posts(folder: Path) -> Path:
    lines = [f"{n},How is {text} read?,open({n}),As {text},read({n})" for n, text in enumerate(captions())]
    (folder / "posts.csv").write_text("\n".join(["id,question_text,question_code,answer_text,answer_code", *lines]))
    (folder / "pairs.csv").write_text("first,second,label\n0,1,duplicate\n2,3,0\n0,4,different\n2,5,similar_text")
    return folder


SAMPLES: dict[str, Callable[[Path], Path]] = {
    "coco": coco,
    "common_voice": common_voice,
    "cord": cord,
    "csv": csv,
    "flickr30k": flickr30k,
    "funsd": funsd,
    "gqa": gqa,
    "graph": graph,
    "hocr": hocr,
    "imagefolder": imagefolder,
    "img2dataset": img2dataset,
    "interactions": ratings,
    "json": json_lines,
    "kaldi": kaldi,
    "karpathy": karpathy,
    "librispeech": librispeech,
    "ljspeech": ljspeech,
    "parquet": parquet,
    "pdf": pdf,
    "points": clouds,
    "posts": posts,
    "refcoco": refcoco,
    "saved_dataset": saved_dataset,
    "sdf": sdf,
    "timeseries": timeseries,
    "voc": voc,
    "vqa": vqa,
    "webdataset": webdataset,
    "wit": wit,
    "yolo": yolo,
}
# Samples that are written by libraries that may not be installed.
SAMPLES |= {"nifti": nifti} if find_spec("nibabel") else {}
SAMPLES |= {"h5ad": h5ad} if find_spec("h5py") else {}
