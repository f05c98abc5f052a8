"""Class lists: the shipped data files and the reader for them and for users' own files."""

import json

import pytest

from unept_hf.data.class_lists import available_class_lists, class_list_from_data, load_class_list
from unept_hf.palette import OKABE_ITO, default_palette


COUNTS = {
    "ade20k": 150,
    "camvid": 11,
    "cityscapes": 19,
    "pascal_context_59": 59,
    "pascal_context_60": 60,
    "synthetic": 22,
    "synthetic_harbour": 7,
}


def write(tmp_path, content, name="mine.json"):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


# The shipped lists


def test_available():
    assert available_class_lists() == sorted(COUNTS)


@pytest.mark.parametrize("name", COUNTS)
def test_shipped_list_is_consistent(name):
    classes = load_class_list(name)
    n = COUNTS[name]
    assert classes.name == name
    assert len(classes) == n
    assert list(classes.id2label) == list(range(n))
    assert classes.label2id == {label: i for i, label in classes.id2label.items()}
    assert len(classes.label2id) == n
    assert all(label == label.strip() for label in classes.label2id)
    assert len(classes.palette) == n
    assert all(len(c) == 3 and all(type(v) is int and 0 <= v <= 255 for v in c) for c in classes.palette)
    assert classes.ignore_index == 255
    assert classes.extras["source"]


@pytest.mark.parametrize(
    ("name", "class_id", "label", "color"),
    [
        ("ade20k", 0, "wall", [120, 120, 120]),
        ("ade20k", 1, "building", [180, 120, 120]),
        ("ade20k", 2, "sky", [6, 230, 230]),
        ("ade20k", 7, "bed", [204, 5, 255]),
        ("ade20k", 12, "person", [150, 5, 61]),
        ("ade20k", 20, "car", [0, 102, 200]),
        ("ade20k", 44, "chest of drawers", [6, 51, 255]),
        ("ade20k", 89, "television receiver", [0, 255, 194]),
        ("ade20k", 127, "bicycle", [255, 245, 0]),
        ("ade20k", 149, "flag", [92, 0, 255]),
        ("camvid", 0, "sky", [128, 128, 128]),
        ("camvid", 4, "pavement", [60, 40, 222]),
        ("camvid", 6, "sign symbol", [192, 128, 128]),
        ("camvid", 10, "bicyclist", [0, 128, 192]),
        ("cityscapes", 0, "road", [128, 64, 128]),
        ("cityscapes", 6, "traffic light", [250, 170, 30]),
        ("cityscapes", 11, "person", [220, 20, 60]),
        ("cityscapes", 13, "car", [0, 0, 142]),
        ("cityscapes", 18, "bicycle", [119, 11, 32]),
        ("pascal_context_59", 0, "aeroplane", [180, 120, 120]),
        ("pascal_context_59", 1, "bag", [6, 230, 230]),
        ("pascal_context_59", 58, "wood", [31, 0, 255]),
        ("pascal_context_60", 0, "background", [120, 120, 120]),
        ("pascal_context_60", 1, "aeroplane", [180, 120, 120]),
        # The two ids that mmsegmentation's converter writes into the mask of 2008_000002, a television set.
        ("pascal_context_60", 55, "tvmonitor", [0, 0, 255]),
        ("pascal_context_60", 58, "window", [0, 173, 255]),
    ],
)
def test_known_classes(name, class_id, label, color):
    classes = load_class_list(name)
    assert classes.id2label[class_id] == label
    assert classes.label2id[label] == class_id
    assert classes.palette[class_id] == color


@pytest.mark.parametrize(
    ("name", "reduce_labels"),
    [("ade20k", True), ("cityscapes", False), ("pascal_context_59", True), ("pascal_context_60", False)],
)
def test_reduce_labels(name, reduce_labels):
    assert load_class_list(name).reduce_labels is reduce_labels


@pytest.mark.parametrize(
    ("name", "pair"),
    [("ade20k", (6, 48)), ("cityscapes", None), ("pascal_context_59", (5, 47)), ("pascal_context_60", (6, 48))],
)
def test_colors_are_unique_but_for_the_known_pair(name, pair):
    """The published ADE20K palette, which Pascal Context borrows, has one color twice."""
    palette = [tuple(c) for c in load_class_list(name).palette]
    assert len(set(palette)) == len(palette) - (pair is not None)
    if pair is not None:
        assert palette[pair[0]] == palette[pair[1]] == (140, 140, 140)


def test_pascal_context_60_is_59_with_background_first():
    with_background, without = load_class_list("pascal_context_60"), load_class_list("pascal_context_59")
    assert list(with_background.label2id) == ["background", *without.label2id]
    assert with_background.palette[1:] == without.palette
    # The annotation ids follow the alphabet; a list in VOC order would give every class a wrong name.
    assert list(without.label2id) == sorted(without.label2id)


def test_cityscapes_label_ids():
    classes = load_class_list("cityscapes")
    mapping = {int(key): value for key, value in classes.extras["label_id_to_train_id"].items()}
    assert sorted(mapping) == list(range(-1, 34))
    assert mapping[-1] == -1
    trained = {label_id: train_id for label_id, train_id in mapping.items() if train_id not in (-1, 255)}
    assert list(trained) == [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    assert list(trained.values()) == list(classes.id2label)


# The 32 classes of CamVid, with their colors in label_colors.txt, as SegNet groups them.
CAMVID_GROUPS = {
    "sky": {"Sky": (128, 128, 128)},
    "building": {
        "Archway": (192, 0, 128),
        "Bridge": (0, 128, 64),
        "Building": (128, 0, 0),
        "Tunnel": (64, 0, 64),
        "Wall": (64, 192, 0),
    },
    "pole": {"Column_Pole": (192, 192, 128), "TrafficCone": (0, 0, 64)},
    "road": {"LaneMkgsDriv": (128, 0, 192), "LaneMkgsNonDriv": (192, 0, 64), "Road": (128, 64, 128)},
    "pavement": {"ParkingBlock": (64, 192, 128), "RoadShoulder": (128, 128, 192), "Sidewalk": (0, 0, 192)},
    "tree": {"Tree": (128, 128, 0), "VegetationMisc": (192, 192, 0)},
    "sign symbol": {"Misc_Text": (128, 128, 64), "SignSymbol": (192, 128, 128), "TrafficLight": (0, 64, 64)},
    "fence": {"Fence": (64, 64, 128)},
    "car": {
        "Car": (64, 0, 128),
        "OtherMoving": (128, 64, 64),
        "SUVPickupTruck": (64, 128, 192),
        "Train": (192, 64, 128),
        "Truck_Bus": (192, 128, 192),
    },
    "pedestrian": {
        "Animal": (64, 128, 64),
        "CartLuggagePram": (64, 0, 192),
        "Child": (192, 128, 64),
        "Pedestrian": (64, 64, 0),
    },
    "bicyclist": {"Bicyclist": (0, 128, 192), "MotorcycleScooter": (192, 0, 192)},
}


def test_colors_of_camvid():
    classes = load_class_list("camvid")
    assert list(classes.label2id) == list(CAMVID_GROUPS)
    expected = {color: classes.label2id[name] for name, group in CAMVID_GROUPS.items() for color in group.values()}
    assert len(expected) == 31
    expected |= {(0, 0, 0): 255, (60, 40, 222): 4}  # Void, and SegNet's own color of the pavement
    assert classes.mask_colors == expected


# Users' files


def test_file_in_our_format(tmp_path):
    data = {
        "name": "rooms",
        "ignore_index": 0xFFFF,
        "reduce_labels": True,
        "note": "kept",
        "classes": [{"id": 1, "name": "sky", "color": [4, 5, 6]}, {"id": 0, "name": "wall", "color": [1, 2, 3]}],
    }
    classes = load_class_list(write(tmp_path, data))
    assert (classes.name, classes.ignore_index, classes.reduce_labels) == ("rooms", 0xFFFF, True)
    assert list(classes.id2label.items()) == [(0, "wall"), (1, "sky")]
    assert classes.palette == [[1, 2, 3], [4, 5, 6]]
    assert classes.extras == {"note": "kept"}


@pytest.mark.parametrize(
    "data",
    [["wall", "sky"], {"1": "sky", "0": "wall"}, {"classes": [{"id": 0, "name": "wall"}, {"id": 1, "name": "sky"}]}],
)
def test_plain_file(tmp_path, data):
    classes = load_class_list(str(write(tmp_path, data)))
    assert (classes.name, classes.ignore_index, classes.reduce_labels, classes.extras) == ("mine", 255, False, {})
    assert list(classes.id2label.items()) == [(0, "wall"), (1, "sky")]
    assert classes.label2id == {"wall": 0, "sky": 1}
    assert len(classes.palette) == 2


def test_names_beside_other_entries(tmp_path):
    classes = load_class_list(write(tmp_path, {"classes": ["sky", "road"], "ignore_index": 11}))
    assert list(classes.id2label.items()) == [(0, "sky"), (1, "road")]
    assert (classes.ignore_index, len(classes.palette)) == (11, 2)


def test_colors_of_masks():
    entries = [{"id": i, "name": name, "color": [i, 0, 0]} for i, name in enumerate("ab")]
    more = [{"color": [9, 9, 9], "id": None}, {"color": [8, 0, 0], "id": 1, "name": "also b"}]
    classes = class_list_from_data({"classes": entries, "mask_colors": more, "ignore_index": 7})
    assert classes.mask_colors == {(0, 0, 0): 0, (1, 0, 0): 1, (9, 9, 9): 7, (8, 0, 0): 1}
    assert classes.extras == {}
    assert class_list_from_data({"classes": entries}).mask_colors == {(0, 0, 0): 0, (1, 0, 0): 1}
    assert class_list_from_data(["a", "b"]).mask_colors == {}, "made-up colors are those of no mask"
    both = [{**entry, "color": [5, 5, 5]} for entry in entries]
    assert class_list_from_data({"classes": both}).mask_colors == {}, "not clear"
    more = [{"color": [5, 5, 5], "id": 1}]
    assert class_list_from_data({"classes": both, "mask_colors": more}).mask_colors == {(5, 5, 5): 1}


def test_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, ["sky", "road"])
    assert len(load_class_list("~/mine.json")) == 2


def test_integer_keys():
    assert class_list_from_data({0: "wall", 1: "sky"}).id2label == {0: "wall", 1: "sky"}


def test_made_up_colors_are_distinct_and_not_black():
    palette = {tuple(c) for c in class_list_from_data([f"class {i}" for i in range(255)]).palette}
    assert len(palette) == 255
    assert (0, 0, 0) not in palette
    assert all(type(v) is int and 0 <= v <= 255 for c in palette for v in c)


def test_made_up_colors_are_those_of_pictures():
    """Which tests/visualization/test_visualization.py checks for the color-blind."""
    classes = class_list_from_data({"ignore_index": 999, "classes": [{"id": i, "name": str(i)} for i in range(256)]})
    assert classes.palette[:7] == [list(color) for color in OKABE_ITO]
    assert classes.palette == default_palette(256).tolist()
    assert len({tuple(color) for color in classes.palette}) == 256


def test_byte_order_mark_is_accepted(tmp_path):
    assert len(load_class_list(write(tmp_path, '\ufeff["wall"]'))) == 1


def test_shipped_name_wins_over_a_file(tmp_path, monkeypatch):
    write(tmp_path, ["mine"], name="ade20k")
    monkeypatch.chdir(tmp_path)
    assert len(load_class_list("ade20k")) == 150


def test_file_without_suffix(tmp_path, monkeypatch):
    write(tmp_path, ["mine"], name="labels")
    monkeypatch.chdir(tmp_path)
    assert load_class_list("labels").id2label == {0: "mine"}


# Errors: each names the value and the remedy


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="Unknown class list 'ade2k'") as error:
        load_class_list("ade2k")
    assert all(name in str(error.value) for name in COUNTS)


@pytest.mark.parametrize("name", ["gone.json", "sub/gone"])
def test_missing_file(tmp_path, name):
    with pytest.raises(ValueError, match=f"No class list file at '.*{name}'. Check the path"):
        load_class_list(str(tmp_path / name))


def test_directory_is_not_a_file(tmp_path):
    with pytest.raises(ValueError, match="No class list file at"):
        load_class_list(tmp_path)


@pytest.mark.parametrize("content", ["", "[", "['wall']", '{0: "wall"}', '["wall",]'])
def test_broken_json(tmp_path, content):
    with pytest.raises(ValueError, match=r"mine\.json' is not JSON in UTF-8: .*line 1.*Fix the file"):
        load_class_list(write(tmp_path, content))


def test_not_text(tmp_path):
    path = tmp_path / "mine.json"
    path.write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(ValueError, match=r"mine\.json' is not JSON in UTF-8: .*codec can't decode"):
        load_class_list(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"1": "wall", "2": "sky"}, r"must be 0\.\.1, each once \(missing 0, out of range 2\)\. Renumber"),
        ({"0": "wall", "2": "sky"}, "missing 1, out of range 2"),
        ({"0": "wall", "00": "sky"}, "missing 1, repeated 0"),
        ({"classes": [{"id": 0, "name": "a"}, {"id": 0, "name": "b"}]}, "missing 1, repeated 0"),
        ({"classes": [{"id": -1, "name": "a"}]}, "missing 0, out of range -1"),
        ({str(i): str(i) for i in range(10, 20)}, "missing 0, 1, 2, 3, 4 and 5 more"),
        ({"wall": 0}, "'wall' is not a class id. Use integers"),
        ({"classes": [{"id": 0.0, "name": "a"}]}, "0.0 is not a class id"),
        ({"classes": [{"id": True, "name": "a"}]}, "True is not a class id"),
        ({"classes": [{"id": 0}]}, 'lacks "id" or "name"'),
        ({"classes": ["wall", {"id": 1, "name": "sky"}]}, "Class entry 'wall' lacks"),
        ({"classes": ["wall", 3]}, "Class entry 'wall' lacks"),
        ({"classes": ["wall", "wall"]}, "Name 'wall' is used by classes 0 and 1"),
        ({"classes": []}, "has no classes"),
        ({"classes": ["a"], "mask_colors": {"0": [0, 0, 0]}}, "mask_colors is a dict. Make it a list"),
        ({"classes": ["a"], "mask_colors": [[0, 0, 0]]}, r"mask_colors holds \[0, 0, 0\]. Write"),
        ({"classes": ["a"], "mask_colors": [{"color": [0, 0, 0]}]}, "mask_colors holds .* Write"),
        ({"classes": ["a"], "mask_colors": [{"color": [0, 0, 256], "id": 0}]}, "mask_colors holds .* three integers"),
        ({"classes": ["a"], "mask_colors": [{"color": [0, 0, 0], "id": 1}]}, "mask_colors holds .* Write"),
        (
            {
                "classes": [{"id": 0, "name": "a", "color": [0, 0, 0]}],
                "mask_colors": [{"color": [0, 0, 0], "id": None}],
            },
            r"Color \[0, 0, 0\] of mask_colors already stands for another class",
        ),
        ({"classes": ["a"], "label_id_to_train_id": [0]}, "label_id_to_train_id is .* Map label ids to class ids"),
        ({"classes": ["a"], "label_id_to_train_id": {"255": "a"}}, "label_id_to_train_id maps '255' to 'a'"),
        ({"classes": ["a"], "label_id_to_train_id": {"x": 0}}, "label_id_to_train_id maps 'x' to 0"),
        ({"classes": ["a"], "ignore_idx": 3}, "Key 'ignore_idx' is not known; did you mean 'ignore_index'"),
        ({"classes": ["a"], "Mask_color": []}, "'Mask_color' is not known; did you mean 'mask_colors'"),
        ({"classes": [{"id": 0, "name": "a", "colour": [0, 0, 0]}]}, "'colour' is not known; did you mean 'color'"),
        ({"classes": {"0": "wall"}}, '"classes" is a dict. Make it a list'),
        (["wall", "sky", "wall"], "Name 'wall' is used by classes 0 and 2.* Rename"),
        (["wall", " "], "The name of class 1 is ' '. Give it a non-blank string"),
        (["wall", None], "The name of class 1 is None"),
        ([], "has no classes"),
        ({}, "has no classes"),
        ("wall", "A str cannot be read as classes. Give a list"),
        (
            {"classes": [{"id": 0, "name": "a", "color": [0, 0, 256]}]},
            r"color of class 0 is \[0, 0, 256\]. Make it three",
        ),
        ({"classes": [{"id": 0, "name": "a", "color": [0, 0]}]}, "three integers"),
        ({"classes": [{"id": 0, "name": "a", "color": "#fff"}]}, "three integers"),
        (
            {"classes": [{"id": 0, "name": "a", "color": [0, 0, 0]}, {"id": 1, "name": "b"}]},
            "no color for class 1. Give every class a color",
        ),
        ({"classes": [{"id": 0, "name": "a"}], "ignore_index": 0}, "ignore_index 0 is also the id of class 'a'"),
        ({"classes": [{"id": 0, "name": "a"}], "ignore_index": "255"}, "ignore_index is '255'. Make it an integer"),
        ({"classes": [{"id": 0, "name": "a"}], "reduce_labels": "no"}, "reduce_labels is 'no'. Make it true or false"),
        ([f"class {i}" for i in range(256)], "ignore_index 255 is also the id of class 'class 255'"),
    ],
)
def test_content_that_is_not_a_class_list(tmp_path, data, message):
    with pytest.raises(ValueError, match=message) as error:
        load_class_list(write(tmp_path, json.dumps(data)))
    assert "mine.json" in str(error.value)


def test_repeated_json_key(tmp_path):
    with pytest.raises(ValueError, match="Key '0' occurs more than once"):
        load_class_list(write(tmp_path, '{"0": "wall", "0": "sky"}'))


def test_all_problems_in_one_message(tmp_path):
    entries = [{"id": 0, "name": "a", "color": [0, 0, 256]}, {"id": 2, "name": " ", "color": [0, 0, 0]}]
    path = write(tmp_path, {"classes": entries, "reduce_labels": "no"})
    with pytest.raises(
        ValueError, match=r"missing 1.*class 2 is ' '.*class 0 is \[0, 0, 256\].*reduce_labels is 'no'"
    ):
        load_class_list(path)
    path = write(tmp_path, {"classes": [{"id": i, "name": ""} for i in range(9)]})
    with pytest.raises(ValueError, match=r"The name of class 4 is .* And more\.$") as error:
        load_class_list(path)
    assert "class 5" not in str(error.value)
