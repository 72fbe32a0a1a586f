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


SAMPLES: dict[str, Callable[[Path], Path]] = {
    "csv": csv,
    "imagefolder": imagefolder,
    "json": json_lines,
    "parquet": parquet,
    "webdataset": webdataset,
    "graph": graph,
    "timeseries": timeseries,
    "sdf": sdf,
    "points": clouds,
    "interactions": ratings,
    "ljspeech": ljspeech,
    "common_voice": common_voice,
    "kaldi": kaldi,
    "librispeech": librispeech,
}
# Samples that are written by libraries that may not be installed.
SAMPLES |= {"nifti": nifti} if find_spec("nibabel") else {}
SAMPLES |= {"h5ad": h5ad} if find_spec("h5py") else {}
