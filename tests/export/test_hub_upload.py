# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Uploads by the real client of the Hub, to a small server that keeps what it gets; and that it loads from there."""

import base64
import hashlib
import http.server
import json
import os
import pathlib
import re
import subprocess
import sys
import threading
import urllib.parse

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from transformers.utils import logging

from unept_hf import UneptForSemanticSegmentation, UneptImageProcessor, cli
from unept_hf.export.hub import push_to_hub, save_for_hub, source_files
from unept_hf.export.model_card import default_model_card, describe_backbone


TOKEN = "hf_writer"
EVALUATION = {
    "dataset": "synthetic",
    "split": "validation",
    "num_images": 60,
    "mean_iou": 0.73049,
    "overall_accuracy": 0.91647,
    "settings": {"mode": "whole"},
    "refined": {"mean_iou": 0.75, "overall_accuracy": 0.92},
}
TRAINING_OPTIONS = {"learning_rate": 3e-3, "max_steps": 300, "scale": [512, 128]}

# Where unept_hf cannot be imported, from a name on the Hub.
LOAD = """
import sys
sys.modules["unept_hf"] = None
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation
options = {"trust_remote_code": True}
if len(sys.argv) > 4:
    options["revision"] = sys.argv[4]
processor = AutoImageProcessor.from_pretrained(sys.argv[1], **options)
model = AutoModelForSemanticSegmentation.from_pretrained(sys.argv[1], **options).eval()
assert type(model).__module__.startswith("transformers_modules.")
with torch.no_grad():
    logits = model(**processor(Image.open(sys.argv[2]), return_tensors="pt")).logits
save_file({"logits": logits.contiguous()}, sys.argv[3])
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the Hub as uploads and downloads need. Regular files come in the commit, weights through LFS."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def answer(self, status=200, content=b"", **headers):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def handle_request(self):
        state = self.server.state
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        query = urllib.parse.urlsplit(self.path).query
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        state["requests"].append(f"{self.command} {path}")
        is_open = self.command in ("GET", "HEAD", "PUT")  # LFS uploads go to signed addresses, without the token
        if not is_open and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid username or password."}, X_Error_Message="Invalid credentials")
        for pattern, function in ROUTES.items():
            if match := re.fullmatch(pattern, f"{self.command} {path}"):
                return function(self, state, body, query, *match.groups())
        return self.answer(404, {"error": "not found"}, X_Error_Code="EntryNotFound")

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def create_repo(self, state, body, query):
        request = json.loads(body)
        name = f"{request['organization'] or 'somebody'}/{request['name']}"
        address = {"url": f"{state['address']}/{name}"}
        if name in state["repositories"]:
            return self.answer(409, {"error": "You already created this model repo", **address})
        state["repositories"][name] = {"visibility": request.get("visibility"), "branches": {"main": {}}}
        self.answer(200, address)

    def create_branch(self, state, body, query, name, branch):
        branches = state["repositories"][name]["branches"]
        if branch in branches:
            return self.answer(409, {"error": "Reference already exists"})
        branches[branch] = dict(branches["main"])
        self.answer(200, {})

    def validate_yaml(self, state, body, query):
        content = json.loads(body)["content"]
        data = yaml.safe_load(content.split("---\n")[1])
        errors = [] if "library_name" in data else [{"message": "library_name is missing"}]
        self.answer(400 if errors else 200, {"errors": errors, "warnings": []})

    def preupload(self, state, body, query, name, branch):
        assert branch in state["repositories"][name]["branches"]
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        self.answer(200, {"files": files})

    def lfs_batch(self, state, body, query, name):
        request = json.loads(body)
        assert request["operation"] == "upload" and request["hash_algo"] == "sha256"
        objects = []
        for one in request["objects"]:
            oid = one["oid"]
            upload = {"href": f"{state['address']}/upload/{oid}"}
            verify = {"href": f"{state['address']}/verify/{oid}"}
            objects.append(one if oid in state["blobs"] else {**one, "actions": {"upload": upload, "verify": verify}})
        self.answer(200, {"transfer": "basic", "objects": objects})

    def upload(self, state, body, query, oid):
        if hashlib.sha256(body).hexdigest() != oid:
            return self.answer(400, {"error": "wrong content"})
        state["blobs"][oid] = body
        self.answer()

    def verify(self, state, body, query, oid):
        is_there = len(state["blobs"].get(oid, b"")) == json.loads(body)["size"]
        self.answer(200 if is_there else 404)

    def commit(self, state, body, query, name, branch):
        header, *operations = [json.loads(line) for line in body.splitlines()]
        assert header["key"] == "header"
        branches = state["repositories"][name]["branches"]
        is_pull_request = "create_pr=1" in query
        if is_pull_request:
            branches["refs/pr/1"] = dict(branches[branch])
        files = branches["refs/pr/1" if is_pull_request else branch]
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                assert operation["key"] == "lfsFile"
                files[value["path"]] = state["blobs"][value["oid"]]
        state["commits"].append(header["value"]["summary"])
        oid = f"{len(state['commits']):040x}"
        answer = {"commitUrl": f"{state['address']}/{name}/commit/{oid}", "commitOid": oid}
        self.answer(200, answer | {"pullRequestUrl": f"{state['address']}/{name}/discussions/1"})

    def resolve(self, state, body, query, name, branch, path):
        repository = state["repositories"].get(name)
        if repository is None:
            return self.answer(404, {"error": "not found"}, X_Error_Code="RepoNotFound")
        content = repository["branches"][branch].get(path)
        if content is None:
            return self.answer(404, {"error": "not found"}, X_Error_Code="EntryNotFound")
        headers = {"X_Repo_Commit": "1" * 40, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        self.answer(200, content, **headers)


ROUTES = {
    r"POST /api/repos/create": Hub.create_repo,
    r"POST /api/validate-yaml": Hub.validate_yaml,
    r"POST /api/models/(.+?)/branch/(.+)": Hub.create_branch,
    r"POST /api/models/(.+?)/preupload/(.+)": Hub.preupload,
    r"POST /(.+)\.git/info/lfs/objects/batch": Hub.lfs_batch,
    r"PUT /upload/(.+)": Hub.upload,
    r"POST /verify/(.+)": Hub.verify,
    r"POST /api/models/(.+?)/commit/(.+)": Hub.commit,
    r"(?:GET|HEAD) /([^/]+/[^/]+)/resolve/([^/]+)/(.+)": Hub.resolve,
}


@pytest.fixture
def hub(monkeypatch):
    """The server's state, with the client pointed at it."""
    state = {"repositories": {}, "blobs": {}, "commits": [], "requests": []}
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.state, server.daemon_threads = state, True
        state["address"] = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", state["address"])
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield state
        server.shutdown()


def files_of(hub, name, branch="main"):
    return hub["repositories"][name]["branches"][branch]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    options = {"num_labels": 5, "encoder_layers": 1, "decoder_layers": 1}
    return UneptForSemanticSegmentation.from_preset("unept-tiny", **options).eval()


@pytest.fixture(scope="module")
def processor():
    return UneptImageProcessor(size={"shortest_edge": 32, "longest_edge": 96})


@pytest.fixture
def image(tmp_path):
    """A photograph with the place where it was taken."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned
    exif.get_ifd(0x8825)[2] = (52.0, 31.0, 12.0)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", exif=exif)
    return tmp_path / "photo.jpg"


def load_elsewhere(name, image, folder, *revision, **environment):
    """The logits of an image in a process without unept_hf."""
    environment = {**os.environ, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_XET": "1", **environment}
    arguments = [str(name), str(image), str(folder / "logits.safetensors"), *revision]
    result = subprocess.run(
        [sys.executable, "-c", LOAD, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return load_file(folder / "logits.safetensors")["logits"]


def test_upload_and_load(hub, model, processor, image, tmp_path):
    card = default_model_card(
        "somebody/my-unept", 5, license="cc-by-4.0", evaluation=EVALUATION, training_options=TRAINING_OPTIONS
    )
    commit = push_to_hub(model, processor, "somebody/my-unept", model_card=card, example_image=image, private=True)
    assert commit.commit_url == f"{hub['address']}/somebody/my-unept/commit/{1:040x}"
    assert hub["repositories"]["somebody/my-unept"]["visibility"] == "private" and hub["commits"] == ["Upload UN-EPT"]

    assert sum(request.startswith("PUT /upload/") for request in hub["requests"]) == 1  # the weights, through LFS

    # The folder as it is on the Hub loads, and so does the name.
    files = files_of(hub, "somebody/my-unept")
    code = {file.name for file in source_files()}
    assert files.keys() == code | {
        "README.md", "config.json", "example.jpg", "model.safetensors", "preprocessor_config.json"
    }  # fmt: skip
    folder = tmp_path / "received"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with torch.no_grad():
        expected = model(**processor(Image.open(image), return_tensors="pt")).logits
    offline = {"HF_HUB_OFFLINE": "1"}
    torch.testing.assert_close(load_elsewhere(folder, image, tmp_path, **offline), expected, rtol=0, atol=1e-5)
    online = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub["address"]}
    torch.testing.assert_close(
        load_elsewhere("somebody/my-unept", image, tmp_path, **online), expected, rtol=0, atol=1e-5
    )

    card = ModelCard.load(folder / "README.md")
    assert (card.data.license, card.data.library_name) == ("cc-by-4.0", "transformers")
    assert card.data.widget == [{"src": "example.jpg", "example_title": "An example"}]
    metrics = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert metrics == {"mean_iou": 0.7305, "overall_accuracy": 0.9165}
    assert {(one.dataset_name, one.dataset_split) for one in card.data.eval_results} == {("synthetic", "validation")}
    assert "| mean IoU | 0.7305 | 0.7500 |" in card.text and "60 images with mode whole." in card.text
    options = card.text.partition("```yaml\n")[2].partition("```")[0]
    assert yaml.safe_load(options) == TRAINING_OPTIONS
    assert 'repository = "somebody/my-unept"' in card.text

    example = Image.open(folder / "example.jpg")
    assert example.size == (60, 80) and not example.getexif()
    assert np.abs(np.array(example, int) - np.rot90(np.array(Image.open(image), int), -1)).mean() < 40


def test_an_upload_again_replaces_what_changed(hub, model, processor):
    push_to_hub(model, processor, "my-unept")
    old = dict(files_of(hub, "somebody/my-unept"))
    files_of(hub, "somebody/my-unept")["notes.txt"] = b"mine"
    torch.manual_seed(1)
    other = UneptForSemanticSegmentation(model.config)
    push_to_hub(other, processor, "somebody/my-unept", commit_message="Trained longer")
    new = files_of(hub, "somebody/my-unept")
    assert new["notes.txt"] == b"mine" and new["modeling_unept.py"] == old["modeling_unept.py"]
    assert new["model.safetensors"] != old["model.safetensors"]
    assert hub["commits"] == ["Upload UN-EPT", "Trained longer"]


def test_branches_and_pull_requests(hub, model, processor, image, tmp_path):
    commit = push_to_hub(model, processor, "somebody/my-unept", revision="small")
    assert commit.pr_url is None and not files_of(hub, "somebody/my-unept")
    assert "config.json" in files_of(hub, "somebody/my-unept", "small")
    commit = push_to_hub(model, processor, "somebody/my-unept", create_pr=True)
    assert commit.pr_url.endswith("/somebody/my-unept/discussions/1") and not files_of(hub, "somebody/my-unept")
    assert "config.json" in files_of(hub, "somebody/my-unept", "refs/pr/1")


def test_without_the_right_to_write(hub, model, processor, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    with pytest.raises(PermissionError, match=r"may not write to somebody/my-unept; log in .*Invalid"):
        push_to_hub(model, processor, "somebody/my-unept")
    assert not hub["repositories"]
    push_to_hub(model, processor, "somebody/my-unept", token=TOKEN)
    assert files_of(hub, "somebody/my-unept")


def test_nothing_is_made_on_the_hub_before_the_folder_is_whole(hub, model, processor, tmp_path):
    with pytest.raises(FileNotFoundError, match="gone"):
        push_to_hub(model, processor, "somebody/my-unept", example_image=tmp_path / "gone.jpg")
    with pytest.raises(ValueError, match="Repo id"):
        push_to_hub(model, processor, "some body/my-unept")
    assert not hub["requests"]


def test_command(hub, model, processor, image, tmp_path, capsys):
    save_for_hub(model, processor, tmp_path / "model")
    (tmp_path / "results.json").write_text(json.dumps(EVALUATION))
    (tmp_path / "training.yaml").write_text(yaml.safe_dump(TRAINING_OPTIONS))
    arguments = ["export", str(tmp_path / "model"), "hf://somebody/my-unept", "--device", "cpu"]
    card = {"license": "mit", "example_image": image}
    card |= {"evaluation": tmp_path / "results.json", "training_options": tmp_path / "training.yaml"}
    options = [text for name, value in card.items() for text in (f"--{name}", str(value))]
    assert cli.main([*arguments, *options, "--private"]) == 0
    assert f"{hub['address']}/somebody/my-unept" in capsys.readouterr().out
    assert hub["repositories"]["somebody/my-unept"]["visibility"] == "private"
    files = files_of(hub, "somebody/my-unept")
    assert "example.jpg" in files and files["modeling_unept.py"]
    expected = default_model_card(
        "somebody/my-unept",
        5,
        license="mit",
        backbone=describe_backbone(model.config),
        evaluation=EVALUATION,
        training_options=TRAINING_OPTIONS,
    )
    assert ModelCard(files["README.md"].decode()).text == ModelCard(expected).text
    # The same options for a folder.
    assert cli.main([*arguments[:2], str(tmp_path / "again"), *options]) == 0
    assert sorted(file.name for file in (tmp_path / "again").iterdir()) == sorted(files)
    text = (tmp_path / "again" / "README.md").read_text()
    assert "license: mit" in text and "# again\n" in text and "0.7305" in text

    assert cli.main(["export", str(tmp_path / "model"), "hf://somebody"]) == 1
    assert "hf://owner/name" in capsys.readouterr().err
    assert cli.main([*arguments, "--format", "onnx"]) == 1
    assert "--format" in capsys.readouterr().err
    (tmp_path / "results.json").write_text("{")
    assert cli.main([*arguments, *options]) == 1
    assert "results.json" in capsys.readouterr().err
    logging.enable_progress_bar()


def test_evaluations_without_metrics_or_data_set(tmp_path):
    for evaluation in ({}, {"dataset": "synthetic"}, {"mean_iou": 0.5}):
        with pytest.raises(ValueError, match="must hold the name of the data set under 'dataset'"):
            default_model_card("my-unept", 5, evaluation=evaluation)


# Whatever looks like a place on somebody's machine, whether it exists or not.
SECRET_PLACES = [
    "/secret/data", "./secret/data", "../secret", ".secret", "~/secret", "~secret/data", "\\secret\\data",
    "C:\\secret", "c:/secret", "D:secret", "\\\\server\\secret", "file:///secret/data", "file:secret",
    "s3://secret/data", "local-dir:/secret/data", "$HOME/secret", "%USERPROFILE%\\secret", "clients/secret/data",
    " /secret", "secret/list.json", '{"backbone": "/secret/data"}', "--data_dir=/secret/data", "@/secret", "`/secret`",
    "secret/", "secret.csv", "secret.tar.gz", "https://example.org/a,/secret/data", "https://user:secret@example.org/x",
]  # fmt: skip


@pytest.mark.parametrize("place", [*SECRET_PLACES, pytest.param(pathlib.Path("secret"), id="Path")])
def test_cards_show_no_private_path(place):
    backbone = {"model_type": "timm_backbone", "backbone": place, "out_indices": [1, 2]}
    options = {
        "max_steps": 3,
        "class_list": place,
        "config_overrides": {"num_feature_levels": 2, "backbone_config": backbone},
        "report_to": ["tensorboard", place, [place, {"name": place, place: 1, "width": 7}]],
    }
    evaluation = EVALUATION | {"dataset": place, "split": place, "settings": {"mode": "whole", "data": place}}
    card = default_model_card("my-unept", 5, evaluation=evaluation, training_options=options)
    assert "secret" not in card
    published = yaml.safe_load(card.partition("```yaml\n")[2].partition("```")[0])
    assert published == {
        "max_steps": 3,
        "config_overrides": {
            "num_feature_levels": 2,
            "backbone_config": {"model_type": "timm_backbone", "out_indices": [1, 2]},
        },
        "report_to": ["tensorboard", [{"width": 7}]],
    }
    assert "on a private data set" in card
    assert {one.dataset_name for one in ModelCard(card).data.eval_results} == {"a private data set"}


@pytest.mark.parametrize(
    "option",
    [
        "output_dir", "data_dir", "image_dir", "label_dir", "resume_from_checkpoint", "backbone_checkpoint",
        "hub_model_id",
    ],
)  # fmt: skip
def test_options_that_name_folders_are_private_however_they_are_written(option):
    card = default_model_card("my-unept", 5, training_options={"max_steps": 3, option: "secret"})
    assert "secret" not in card and "max_steps: 3" in card


def test_other_facts_of_a_card_show_no_private_path():
    place = "/secret/data"
    card = default_model_card(
        pathlib.Path(place, "mine"), 5, backbone=place, license=place, picture=f"{place}/mine.png"
    )
    assert "# mine\n" in card and "(mine.png)" in card and "secret" not in card


def test_the_metadata_names_what_is_on_the_hub(tmp_path, monkeypatch):
    options = {"dataset_name": "somebody/scenes", "model_name_or_path": "somebody/my-unept"}
    data = ModelCard(default_model_card("mine", 5, training_options=options)).data
    assert (data.datasets, data.base_model) == (["somebody/scenes"], "somebody/my-unept")
    # The same words for folders of this machine, and names that are not on the Hub.
    monkeypatch.chdir(tmp_path)
    for name in options.values():
        (tmp_path / name).mkdir(parents=True)
    for others in (options, {"dataset_name": "camvid", "model_name_or_path": "runs/a/model"}, {}):
        data = ModelCard(default_model_card("mine", 5, training_options=others)).data
        assert (data.datasets, data.base_model) == (None, None)


def test_options_that_are_no_paths_are_shown():
    options = {
        "dataset_name": "somebody/scenes",
        "model_name_or_path": "https://huggingface.co/somebody/my-unept",
        "backbone": "resnet50.a1_in1k",
        "weights": "hf-hub:timm/resnet50.a1_in1k",
        "train_split": "train[:50%]+validation",
        "scale": [0.5, 1],
        "lr_scheduler_kwargs": {"power": 0.9},
        "note": "16 crops, and/or fewer: see the paper",
        "mixed_precision": None,
    }
    card = default_model_card("my-unept", 5, training_options=options)
    assert yaml.safe_load(card.partition("```yaml\n")[2].partition("```")[0]) == options


def test_private_files_that_exist(tmp_path, monkeypatch):
    """Bare names too, but not the names of well-known data sets, of which there may be a folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("secret", "cityscapes", "somebody/scenes", "somebody/my-unept", "validation"):
        (tmp_path / name).mkdir(parents=True)
    for name, title in {
        "secret": "a private data set",
        "somebody/scenes": "a private data set",
        "image_folders": "a private data set",
        "imagefolder": "a private data set",
        "cityscapes": "cityscapes",
        "somebody/harbours": "somebody/harbours",
    }.items():
        evaluation = {"dataset": name, "mean_iou": 0.5, "split": "validation"}
        options = {"class_list": "secret"}
        card = default_model_card("somebody/my-unept", 5, evaluation=evaluation, training_options=options)
        assert "secret" not in card and "# somebody/my-unept\n" in card and "(split `validation`)" in card
        assert ModelCard(card).data.eval_results[0].dataset_name == title
        assert f"on {title}" in card


@pytest.mark.parametrize(
    "name", ["/home/jane/my-unept", "~/my-unept", "C:my-unept", "C:\\jane\\my-unept", "./jane/my-unept/"]
)
def test_the_name_of_a_card_is_no_path(name):
    card = default_model_card(name, 5, evaluation=EVALUATION)
    assert "jane" not in card and 'repository = "my-unept"' in card and "\n# my-unept\n" in card
    assert ModelCard(card).data.model_name == "my-unept"


def test_what_a_card_says_of_its_model(model, processor, tmp_path):
    card = default_model_card(
        "my-unept",
        5,
        backbone=describe_backbone(model.config, "timm's pretrained weights"),
        dataset="somebody/scenes",
        training="For 3 steps.",
        evaluation=EVALUATION,
        picture="predictions.png",
    )
    assert "timm `test_resnet`, which started from timm's pretrained weights" in card and "For 3 steps." in card
    assert "Evaluated on synthetic (split `validation`), 60 images" in card
    assert "](predictions.png)" in card and ModelCard(card).data.datasets == ["somebody/scenes"]
    # Only what is known.
    card = default_model_card("my-unept", 5)
    assert not any(word in card for word in ("ackbone", "## ", "license", "predictions.png"))
    config = model.config.__class__.from_dict(model.config.to_dict())
    config.backbone_config.backbone = "local-dir:/secret/backbone"
    assert "secret" not in describe_backbone(config) and "timm" in describe_backbone(config)


def test_license(hub, model, processor, tmp_path):
    push_to_hub(model, processor, "somebody/my-unept")
    assert b"license:" not in files_of(hub, "somebody/my-unept")["README.md"]
    push_to_hub(model, processor, "somebody/my-unept", license="mit")
    assert b"license: mit" in files_of(hub, "somebody/my-unept")["README.md"]
    # In a card of one's own too, which keeps its own without the argument.
    card = "---\nlicense: cc0-1.0\n---\n\nMine.\n"
    for license, expected in {None: "cc0-1.0", "mit": "mit"}.items():
        folder = save_for_hub(model, processor, tmp_path / expected, model_card=card, license=license)
        written = ModelCard.load(folder / "README.md")
        assert written.data.license == expected and "Mine." in written.text
