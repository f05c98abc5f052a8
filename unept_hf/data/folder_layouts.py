# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Pairs of image and mask files in the folders of the well-known data sets, and in folders of a user."""

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


def ade20k_files(data_dir: str | os.PathLike, split: str) -> FilePairs:
    """
    ADE20K as released for the scene parsing challenge: `images/{training,validation}/*.jpg` and
    `annotations/{training,validation}/*.png` in `ADEChallengeData2016`.

    Raises:
        ValueError: for a split without annotations, and for missing folders.
    """
    folder = _known_split("ade20k", split, ("training", "validation"))
    images = _folder(data_dir, "images", folder, what="ADE20K (the folder ADEChallengeData2016)")
    masks = _folder(data_dir, "annotations", folder, what="ADE20K (the folder ADEChallengeData2016)")
    return _pairs(_files(images, ".jpg"), _files(masks, ".png"), f"{masks}/NAME.png for {images}/NAME.jpg")


def cityscapes_files(data_dir: str | os.PathLike, split: str) -> FilePairs:
    """
    Cityscapes as released: `leftImg8bit/{train,val}/CITY/*_leftImg8bit.png` and
    `gtFine/{train,val}/CITY/*_gtFine_labelIds.png`.

    Raises:
        ValueError: for a split without annotations, and for missing folders.
    """
    folder = _known_split("cityscapes", split, ("train", "val"))
    images = _folder(data_dir, "leftImg8bit", folder, what="Cityscapes (leftImg8bit and gtFine)")
    masks = _folder(data_dir, "gtFine", folder, what="Cityscapes (leftImg8bit and gtFine)")
    return _pairs(
        _files(images, "_leftImg8bit.png"),
        _files(masks, "_gtFine_labelIds.png"),
        f"{masks}/CITY/NAME_gtFine_labelIds.png for {images}/CITY/NAME_leftImg8bit.png",
    )


def pascal_context_files(data_dir: str | os.PathLike, split: str) -> FilePairs:
    """
    PASCAL-Context in the layout of MMSegmentation, `VOCdevkit/VOC2010`: `JPEGImages/*.jpg`, the masks that its
    converter writes into `SegmentationClassContext/*.png` (0 background, 1 to 59 the classes), and the names of a
    split in `ImageSets/SegmentationContext/{train,val}.txt`.

    Raises:
        ValueError: for a split without annotations, and for missing folders and missing or empty lists.
    """
    split = _known_split("pascal_context", split, ("train", "val"))
    what = "PASCAL-Context (the folder VOCdevkit/VOC2010)"
    images = _folder(data_dir, "JPEGImages", what=what)
    masks = _folder(data_dir, "SegmentationClassContext", what=what)
    listing = _folder(data_dir, "ImageSets", "SegmentationContext", what=what) / f"{split}.txt"
    return _listed_pairs(listing, images, ".jpg", masks, ".png", what)


def camvid_files(data_dir: str | os.PathLike, split: str) -> FilePairs:
    """
    CamVid in one of three layouts, with the splits train, val and test:

    - SegNet's, with class ids: `train/*.png` and `trainannot/*.png`;
    - with masks in colors: `train/*.png` and `train_labels/*_L.png`;
    - the original release: `701_StillsRaw_full/*.png`, masks in colors in `LabeledApproved_full/*_L.png`, and the
      names of a split in `train.txt`, which may also be paths, as in SegNet's lists.

    Raises:
        ValueError: for another split, and for missing folders and missing or empty lists.
    """
    split = _known_split("camvid", split, ("train", "val", "test"))
    what = "CamVid (train and trainannot, train and train_labels, or 701_StillsRaw_full and LabeledApproved_full)"
    base = Path(data_dir).expanduser()
    if (base / "701_StillsRaw_full").is_dir():
        images, masks = (_folder(base, name, what=what) for name in ("701_StillsRaw_full", "LabeledApproved_full"))
        return _listed_pairs(base / f"{split}.txt", images, ".png", masks, "_L.png", what)
    images = _folder(base, split, what=what)
    if (base / f"{split}_labels").is_dir():
        masks, ending = base / f"{split}_labels", "_L.png"
    else:
        masks, ending = _folder(base, f"{split}annot", what=what), ".png"
    expectation = f"{masks}/NAME{ending} for {images}/NAME.png"
    return _pairs(_files(images, ".png"), _files(masks, ending), expectation)


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
    image_files = {name: images / f"{name}{image_ending}" for name in names}
    mask_files = {name: masks / f"{name}{mask_ending}" for name in names}
    found = [name for name in image_files if image_files[name].is_file() and mask_files[name].is_file()]
    missing = [str(path) for files in (image_files, mask_files) for path in files.values() if not path.is_file()]
    return FilePairs(
        found,
        [str(image_files[name]) for name in found],
        [str(mask_files[name]) for name in found],
        missing,
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
    complete = [pair for pair in candidates if all(map(Path.is_dir, pair))]
    if complete:
        images, masks = complete[0]
    else:
        images, masks = base / image_dir, base / label_dir
        if has_placeholder:  # the spelling with the most folders
            images, masks = max(candidates, key=lambda pair: sum(map(Path.is_dir, pair)))
        missing = [
            (path, option) for path, option in ((images, "image_dir"), (masks, "label_dir")) if not path.is_dir()
        ]
        halves = [sorted(pair, key=Path.is_dir) for pair in candidates if any(map(Path.is_dir, pair))]
        problem = None
        if missing:
            problem = f"There is no folder '{missing[0][0]}': set data_dir and {missing[0][1]}. {_what_is_in(base)}"
        elif halves:
            problem = (
                f"There is no folder '{halves[0][0]}', but there is '{halves[0][1]}': a split needs both. Add or "
                "rename the missing folder."
            )
        elif "train" not in names:
            problem = (
                f"'{candidates[0][0]}' and '{candidates[0][1]}' do not both exist, so there is only one split, "
                f"'train', not '{split}'. Make sub-folders train and validation of both folders, or split the "
                "examples of 'train'."
            )
        if problem:
            raise ValueError(problem)
    suffixes = tuple(PIL.Image.registered_extensions())
    expectation = f"a file of the same name, but for the suffix, in {images} and in {masks}"
    if label_suffix:
        expectation = f"a mask NAME{label_suffix} and a suffix such as .png in {masks} for NAME in {images}"
    mask_files = _files(masks, *(f"{label_suffix or ''}{suffix}" for suffix in suffixes))
    return _pairs(_files(images, *suffixes), mask_files, expectation)


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


def _folder(data_dir: str | os.PathLike, *parts: str, what: str) -> Path:
    data_dir = Path(data_dir).expanduser()
    folder = data_dir.joinpath(*parts)
    if not folder.is_dir():
        raise ValueError(
            f"There is no folder '{folder}': data_dir must be the folder of {what}. {_what_is_in(data_dir)}"
        )
    return folder


def _files(folder: Path, *endings: str) -> dict[str, str]:
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


def _pairs(images: dict[str, str], masks: dict[str, str], expectation: str) -> FilePairs:
    names = sorted(images.keys() & masks.keys())
    unpaired = [images[name] for name in sorted(images.keys() - masks.keys())]
    unpaired += [masks[name] for name in sorted(masks.keys() - images.keys())]
    return FilePairs(names, [images[n] for n in names], [masks[n] for n in names], unpaired, expectation)
