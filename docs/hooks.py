# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Hooks of the docs site: the README as the first page, links into the repository, and transformers' docstrings."""

import posixpath
import re
from pathlib import Path

import griffe
from mkdocs.structure.files import File


ROOT = Path(__file__).parent.parent

# A block of code, a piece of code, or the target of a link or picture.
LINK = re.compile(r"^ *```.*?^ *```$|`[^`\n]+`|(?<=\]\()(?P<path>[^)#:\s]+)(?P<anchor>#[^)\s]*)?(?=\))", re.M | re.S)

# A numbered item, and the lines that belong to it.
ITEM = re.compile(r"^(\d\. .*\n)((?:   .*\n|\n)+)", re.M)


def on_files(files, config):
    """Makes the README the first page."""
    files.append(File.generated(config, "index.md", abs_src_path=str(ROOT / "README.md")))
    return files


def on_page_markdown(markdown, page, config, files):
    """Converts the Markdown of the repository to that of the site: links, and the indentation of lists."""
    folder = "" if page.file.src_uri == "index.md" else posixpath.dirname(f"docs/{page.file.src_uri}")

    def on_the_site(match):
        if match["path"] is None:
            return match[0]
        path, anchor = posixpath.normpath(posixpath.join(folder, match["path"])), match["anchor"] or ""
        page_of_it = "index.md" if path == "README.md" else path.removeprefix("docs/")
        if path in ("README.md", f"docs/{page_of_it}") and files.get_file_from_path(page_of_it):
            return posixpath.relpath(page_of_it, posixpath.dirname(page.file.src_uri) or ".") + anchor
        if not (ROOT / path).exists():
            return match[0]  # MkDocs reports it
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"{config.repo_url}/{kind}/main/{path}{anchor}"

    # Python-Markdown requires four spaces before the content of an item; GitHub accepts three.
    markdown = ITEM.sub(lambda match: match[1] + re.sub("^   ", "    ", match[2], flags=re.M), markdown)
    return LINK.sub(on_the_site, markdown)


# Parts of transformers' docstrings: "name (`type` of shape `(height, width)`, *optional*, defaults to 1):",
# "one, other: ...", and links such as [`Name`] and [`~module.Name`].
HEADER = re.compile(r"^( +)([*\w]+) \((`[^)]*?(?:\([^)]*\)[^)]*?)*)\):", re.M)
NAMES = re.compile(r"^( +)(\w+(?:,\s+\w+)+):(?=\s)", re.M)
LIST = re.compile(r"^( *[^-\s].*)\n( *- )", re.M)  # Python-Markdown requires an empty line above a list
REFERENCE = re.compile(r"\[`(~?)([\w.]+)`\](?![(\[])")


class TransformersDocstrings(griffe.Extension):
    """Rewrites docstrings for Griffe's parser of Google style."""

    def on_package(self, *, pkg, **kwargs):
        pending = [pkg]
        while pending:
            obj = pending.pop()
            pending += [member for member in obj.members.values() if not member.is_alias]
            if obj.docstring is not None:
                obj.docstring.value = self.rewrite(obj.docstring.value, obj)
            # `strict` is huggingface_hub's decorator of dataclasses. Griffe only knows the decorator of the standard
            # library.
            if obj.is_class and any(str(decorator.value) == "strict" for decorator in obj.decorators):
                dataclass = griffe.ExprName("dataclasses.dataclass")
                obj.decorators.append(griffe.Decorator(dataclass, lineno=None, endlineno=None))

    @staticmethod
    def rewrite(text, obj):
        fields = [name for name, attribute in obj.attributes.items() if attribute.annotation is not None]
        with_default = {*fields, *(parameter.name for parameter in getattr(obj, "parameters", ()))}

        def header(match):
            indent, name, kind = match.groups()
            kind = re.sub(r",? \*optional\*", "", re.sub(r"\s+", " ", kind)).replace("`", "")
            if name in with_default:
                kind = re.sub(r", defaults to .*", "", kind)
            return f"{indent}{name} ({kind}):"

        def names(match):
            return match[1] + re.sub(r"\s+", " ", match[2]) + ":"

        def reference(match):
            is_short, path = match.groups()
            try:
                path = obj.resolve(path) if "." not in path else path
                path = obj.modules_collection[path].canonical_path
            except (griffe.NameResolutionError, griffe.AliasResolutionError, KeyError):
                return f"`{path}`"
            shown = path.rpartition(".")[2] if is_short else match[2]
            return f'<autoref identifier="{path}" optional><code>{shown}</code></autoref>'

        text = NAMES.sub(names, HEADER.sub(header, text))
        return REFERENCE.sub(reference, LIST.sub(r"\1\n\n\2", text))
