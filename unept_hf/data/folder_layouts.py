# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
Pairs of image and mask files in the folders of the well-known data sets, and in folders of a user.

All functions raise a `ValueError` for a split without annotations, and for missing folders and missing or empty lists.
"""

import os
from pathlib import Path
from typing import NamedTuple

import PIL.Image


__all__ = [
    "FilePairs",
    "ade20k_files",
    "camvid_files",
    "cityscapes_files",
    "image_folder_files",
    "pascal_context_files",
    "split_parts",
    "split_spellings",
]

_SPLIT_SPELLINGS = (("train", "training"), ("validation", "val", "valid"), ("test", "testing"))


class FilePairs(NamedTuple):
    """
    Images and masks of one split, in the order of their names.

    Attributes:
        names: What identifies each pair, such as `ADE_val_00000001`.
        images: The image files.
        masks: The mask file of each image.
        unpaired: The files without a counterpart.
        expectation: Where files and their counterparts belong, for messages.
    """

    names: list[str]
    images: list[str]
    masks: list[str]
    unpaired: list[str]
    expectation: str


def split_spellings(split: str) -> tuple[str, ...]:
    """The names of a split, the given name first: "val" gives "val", "validation" and "valid"."""
    for spellings in _SPLIT_SPELLINGS:
        if split in spellings:
            return (split, *(spelling for spelling in spellings if spelling != split))
    return (split,)


def split_parts(split: str) -> list[str]:
    """
    The splits that "+" joins, as the library `datasets` spells it: "train+validation" gives "train" and "validation".

    Raises:
        ValueError: for a split without a name, or named twice.
    """
    parts = [part.strip() for part in split.split("+")]
    if "" in parts or len({frozenset(split_spellings(part)) for part in parts}) < len(parts):
        raise ValueError(f"split='{split}' must name each split once, such as train+validation.")
    return parts


def ade20k_files(data_dir: str | os.PathLike, split: str) -> FilePairs:
    """
    ADE20K as released for the scene parsing challenge: `images/{training,validation}/*.jpg` and
    `annotations/{training,validation}/*.png` in `ADEChallengeData2016`.
    """
    split = _known_split("ade20k", split, ("training", "validation"))
    what = "ADE20K (the folder ADEChallengeData2016)"
    images, masks = _folders(data_dir, f"images/{split}", f"annotations/{split}", what=what)
    return _pairs(images, (".jpg",), masks, (".png",))


def cityscapes_files(data_dir: str | os.PathLike, split: str) -> FilePairs:
    """
    Cityscapes as released: `leftImg8bit/{train,val}/CITY/*_leftImg8bit.png` and
    `gtFine/{train,val}/CITY/*_gtFine_labelIds.png`.
    """
    split = _known_split("cityscapes", split, ("train", "val"))
    what = "Cityscapes (leftImg8bit and gtFine)"
    images, masks = _folders(data_dir, f"leftImg8bit/{split}", f"gtFine/{split}", what=what)
    return _pairs(images, ("_leftImg8bit.png",), masks, ("_gtFine_labelIds.png",))


def pascal_context_files(data_dir: str | os.PathLike, split: str) -> FilePairs:
    """
    PASCAL-Context in the layout of MMSegmentation, `VOCdevkit/VOC2010`: `JPEGImages/*.jpg`, the masks that its
    converter writes into `SegmentationClassContext/*.png` (0 background, 1 to 59 the classes), and the names of a
    split in `ImageSets/SegmentationContext/{train,val}.txt`.
    """
    split = _known_split("pascal_context", split, ("train", "val"))
    what = "PASCAL-Context (the folder VOCdevkit/VOC2010)"
    images, masks, lists = _folders(
        data_dir, "JPEGImages", "SegmentationClassContext", "ImageSets/SegmentationContext", what=what
    )
    return _listed_pairs(lists / f"{split}.txt", images, ".jpg", masks, ".png", what)


def camvid_files(data_dir: str | os.PathLike, split: str) -> FilePairs:
    """
    CamVid in one of three layouts, with the splits train, val and test:

    - SegNet's, with class ids: `train/*.png` and `trainannot/*.png`;
    - with masks in colors: `train/*.png` and `train_labels/*_L.png`;
    - the original release: `701_StillsRaw_full/*.png`, masks in colors in `LabeledApproved_full/*_L.png`, and the
      names of a split in `train.txt`, which may also be paths, as in SegNet's lists.
    """
    split = _known_split("camvid", split, ("train", "val", "test"))
    what = "CamVid (train and trainannot, train and train_labels, or 701_StillsRaw_full and LabeledApproved_full)"
    base = Path(data_dir).expanduser()
    if (base / "701_StillsRaw_full").is_dir():
        images, masks = _folders(base, "701_StillsRaw_full", "LabeledApproved_full", what=what)
        return _listed_pairs(base / f"{split}.txt", images, ".png", masks, "_L.png", what)
    is_colored = (base / f"{split}_labels").is_dir()
    images, masks = _folders(base, split, f"{split}_labels" if is_colored else f"{split}annot", what=what)
    return _pairs(images, (".png",), masks, ("_L.png" if is_colored else ".png",))


def _listed_pairs(
    listing: Path, images: Path, image_ending: str, masks: Path, mask_ending: str, what: str
) -> FilePairs:
    """The pairs that a file names, one a line. A path stands for the name of its file, and the first path counts."""
    text = listing.read_text(encoding="utf-8") if listing.is_file() else ""
    names = [
        line.split()[0].rpartition("/")[2].removesuffix(image_ending) for line in text.splitlines() if line.split()
    ]
    if not names:
        problem = "is empty" if listing.is_file() else "does not exist"
        raise ValueError(f"File '{listing}' {problem}: {what} names the images of the split there, one a line.")
    files = {name: (images / f"{name}{image_ending}", masks / f"{name}{mask_ending}") for name in names}
    found = {name: pair for name, pair in files.items() if all(map(Path.is_file, pair))}
    return FilePairs(
        list(found),
        [str(image) for image, _ in found.values()],
        [str(mask) for _, mask in found.values()],
        [str(path) for pair in files.values() for path in pair if not path.is_file()],
        f"{images}/NAME{image_ending} and {masks}/NAME{mask_ending} for each name in {listing}",
    )


def image_folder_files(
    data_dir: str | os.PathLike | None,
    split: str,
    image_dir: str | os.PathLike | None = None,
    label_dir: str | os.PathLike | None = None,
    label_suffix: str | None = None,
) -> FilePairs:
    """
    A folder of images and one of masks, paired by their paths without the suffix: `images/a/1.jpg` with
    `masks/a/1.png`.

    A split is a sub-folder of both (`images/train`), or above them (`train/images`), or where `{split}` stands in
    `image_dir` and `label_dir`. Without such sub-folders there is one split, "train".

    Args:
        data_dir: The folder that `image_dir` and `label_dir` are relative to; by default the working directory.
        split: "train", "validation" (also "val") or any other name of a sub-folder.
        image_dir: Folder of the images; "images" unless given.
        label_dir: Folder of the masks; "masks" unless given.
        label_suffix: The end of the name of a mask after the name of its image: "_L" for `NAME_L.png`.

    Raises:
        ValueError: for missing folders, for a split in only one of the two folders, and for two files of the same
            name with different suffixes.
    """
    base, image_dir, label_dir = (
        Path(folder).expanduser() for folder in (data_dir or ".", image_dir or "images", label_dir or "masks")
    )
    names = split_spellings(split)
    has_placeholder = "{split}" in f"{image_dir}{label_dir}"
    patterns = [(image_dir, label_dir)] if has_placeholder else [(image_dir / "{split}", label_dir / "{split}")]
    # Joined to an absolute path the name of the split would vanish.
    if not has_placeholder and not image_dir.is_absolute() and not label_dir.is_absolute():
        patterns.append(("{split}" / image_dir, "{split}" / label_dir))
    candidates = [
        (base / str(images).replace("{split}", name), base / str(masks).replace("{split}", name))
        for images, masks in patterns
        for name in names
    ]
    # The spelling with the most folders.
    images, masks = best = max(candidates, key=lambda pair: sum(map(Path.is_dir, pair)))
    is_split = all(map(Path.is_dir, best))
    if not is_split and not has_placeholder:
        images, masks = base / image_dir, base / label_dir
    for folder, option in ((images, "image_dir"), (masks, "label_dir")):
        if not folder.is_dir():
            raise ValueError(f"There is no folder '{folder}': set data_dir and {option}. {_what_is_in(base)}")
    if not is_split and any(map(Path.is_dir, best)):
        gone, there = sorted(best, key=Path.is_dir)
        raise ValueError(
            f"There is no folder '{gone}', but there is '{there}': a split needs both. Add or rename the missing "
            "folder."
        )
    if not is_split and "train" not in names:
        raise ValueError(
            f"'{candidates[0][0]}' and '{candidates[0][1]}' do not both exist, so there is only one split, 'train', "
            f"not '{split}'. Make sub-folders train and validation of both folders, or split the examples of 'train'."
        )
    expectation = f"a file of the same name, but for the suffix, in {images} and in {masks}"
    if label_suffix:
        expectation = f"a mask NAME{label_suffix} and a suffix such as .png in {masks} for NAME in {images}"
    suffixes = tuple(PIL.Image.registered_extensions())
    mask_endings = tuple(f"{label_suffix or ''}{suffix}" for suffix in suffixes)
    return _pairs(images, suffixes, masks, mask_endings, expectation)


def _known_split(data_set: str, split: str, known: tuple[str, ...]) -> str:
    for spelling in split_spellings(split):
        if spelling in known:
            return spelling
    splits = f"{', '.join(known[:-1])} and {known[-1]}"
    raise ValueError(f"{data_set} has annotations for the splits {splits}, not for '{split}'.")


def _what_is_in(folder: Path) -> str:
    if not folder.is_dir():
        return f"'{folder}' does not exist."
    entries = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    return f"'{folder}' holds {', '.join(entries[:8]) or 'nothing'}{', ...' if len(entries) > 8 else ''}."


def _folders(data_dir: str | os.PathLike, *names: str, what: str) -> list[Path]:
    data_dir = Path(data_dir).expanduser()
    folders = [data_dir / name for name in names]
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(
                f"There is no folder '{folder}': data_dir must be the folder of {what}. {_what_is_in(data_dir)}"
            )
    return folders


def _files(folder: Path, endings: tuple[str, ...]) -> dict[str, str]:
    """Path of each file with one of the endings, below the folder, by its relative path without the ending."""
    files: dict[str, str] = {}
    for parent, _, names in os.walk(folder, followlinks=True):
        for name in names:
            ending = next((e for e in endings if name.lower().endswith(e.lower())), None)
            if ending is None or name.startswith("."):
                continue
            path = os.path.join(parent, name)
            key = Path(os.path.relpath(path, folder)).as_posix()[: -len(ending)]
            if key in files:
                raise ValueError(
                    f"'{files[key]}' and '{path}' differ only in the suffix, so the pair is not clear. Keep one."
                )
            files[key] = path
    return files


def _pairs(
    images: Path,
    image_endings: tuple[str, ...],
    masks: Path,
    mask_endings: tuple[str, ...],
    expectation: str | None = None,
) -> FilePairs:
    image_files, mask_files = _files(images, image_endings), _files(masks, mask_endings)
    names = sorted(image_files.keys() & mask_files.keys())
    return FilePairs(
        names,
        [image_files[name] for name in names],
        [mask_files[name] for name in names],
        [files[name] for files in (image_files, mask_files) for name in sorted(files.keys() - set(names))],
        expectation or f"{masks}/NAME{mask_endings[0]} for {images}/NAME{image_endings[0]}",
    )
