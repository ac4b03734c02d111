"""Guides from what a person types: `--guide "inpaint:mask=mask.png,image=photo.png"`.

    NAME                      pathline guides
    NAME:VALUE                its first number: cfg:4
    NAME:VALUE,KEY=VALUE,…    others by name; two numbers as 0.2..0.8; pictures as files

What is measured of a picture is said by one of mask=FILE, cubic=FACTOR, pooling=FACTOR, blur=STD or
luma; image=FILE is what was measured, or a whole picture of which that is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pathline.cli.reading import as_data, check_size, mask_of, read_alpha, read_picture
from pathline.core.errors import ReceiptError, UsageError
from pathline.core.receipt import sha256
from pathline.fields import Denoiser
from pathline.steer import Chain, Guide, guides, operators
from pathline.steer.operators import Operator

MAIN = {
    "cfg": "weight", "apg": "weight", "classifier": "weight", "autoguidance": "weight",
    "regions": "weight", "clip": "low", "dynamic_threshold": "quantile", "dps": "std",
    "pigdm": "std", "mmps": "std", "diffpir": "std", "projection": "strength",
    "inpaint": "strength",
}  # fmt: skip
"""What a value without a name is, of every guide that can be typed."""

MEASURED = "projection", "diffpir", "dps", "pigdm", "mmps"
"""Guides by an operator and what it has measured."""

OPERATORS = {"cubic": "factor", "pooling": "factor", "blur": "std", "luma": None, "mask": None}
"""Operators by the name that a person gives them, and what their value is."""

UNTYPED = {
    "loss": "a function of pictures",
    "look_ahead": "a reward of pictures",
    "naive_gradient": "a reward of pictures",
    "measured": "a matrix",
    "chain": "other guides; give each a --guide of its own",
}
"""What others need, which cannot be typed."""


@dataclass(frozen=True)
class Spec:
    """A guide as it was typed, and the checksums of the files that it reads.

    Args:
        text: NAME:VALUE,KEY=VALUE,…
        files: name as it was typed → SHA-256.
    """

    text: str
    files: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return it as a receipt holds it."""
        return {"spec": self.text, "files": dict(self.files)}

    @classmethod
    def from_dict(cls, content: Any) -> Spec:
        """Read what `to_dict` returned.

        Raises:
            ReceiptError: it is something else.
        """
        text = content.get("spec") if isinstance(content, Mapping) else None
        files = content.get("files", {}) if isinstance(content, Mapping) else None
        if not isinstance(text, str) or not isinstance(files, Mapping):
            raise ReceiptError("the receipt is damaged: it does not tell a guide.")
        return cls(text, files)


@dataclass(frozen=True)
class Typed:
    """The guides of a request.

    Args:
        guide: all of them, those that choose evaluations first.
        specs: as they were typed, with the checksums of their files.
    """

    guide: Guide
    specs: tuple[Spec, ...]


def typed(texts: Sequence[str], model: Denoiser) -> Typed:
    """Return the guides of `--guide`, for this model.

    Raises:
        UsageError: one cannot be read, misses something, or does not go with the others.
    """
    made = [_Reader(text, model) for text in texts]
    built = [(reader.built(), Spec(reader.text, reader.files)) for reader in made]
    return Typed(_joined([guide for guide, _ in built]), tuple(spec for _, spec in built))


def retyped(content: Any, model: Denoiser, near: Path) -> Typed:
    """Return the guides of a receipt; their files must be what they were.

    Args:
        content: what the receipt says of them.
        model: the denoiser.
        near: a folder in which files are looked for that are not where they were.

    Raises:
        ReceiptError: a file is missing, or another one now.
    """
    if not isinstance(content, Sequence) or isinstance(content, str) or not content:
        raise ReceiptError("the receipt is damaged: it does not tell the guides.")
    specs = tuple(Spec.from_dict(each) for each in content)
    built = [_Reader(spec.text, model, _Found(spec.files, near)).built() for spec in specs]
    return Typed(_joined(built), specs)


def _joined(built: Sequence[Guide]) -> Guide:
    """Return guides as one: on a command line the order of options says nothing."""
    ordered = sorted(built, key=lambda guide: not guide.chooses_evaluations)
    return ordered[0] if len(ordered) == 1 else Chain(tuple(ordered))


@dataclass(frozen=True)
class _Found:
    """Where the files of a receipt are now."""

    files: Mapping[str, str]
    near: Path

    def __call__(self, name: str) -> str:
        places = [Path(name), self.near / Path(name).name]
        here = [place for place in places if place.is_file()]
        if not here:
            raise ReceiptError(
                f"{name} is needed and is not there; put it beside the picture, in {self.near}."
            )
        told = self.files.get(name)
        for place in here:
            if sha256(place) == told:
                return str(place)
        raise ReceiptError(
            f"{here[0]} is another picture now (sha256 {sha256(here[0])[:12]}…) than the one that "
            f"it was made with ({str(told)[:12]}…)."
        )


def _as_it_is(name: str) -> str:
    if not Path(name).is_file():
        raise UsageError(f"there is no file {name}.")
    return name


class _Reader:
    """Reads one guide, and notes the files that it was made from."""

    def __init__(self, text: str, model: Denoiser, place: Callable[[str], str] = _as_it_is) -> None:
        self.text, self.model, self.place = text, model, place
        self.files: dict[str, str] = {}
        head, _, rest = text.partition(":")
        self.entry = guides.entry(head.strip())
        self.name = self.entry.name
        if self.name not in MAIN:
            needed = UNTYPED.get(self.name, "what is no word")
            raise UsageError(
                f"--guide {self.name} would need {needed}; use it in Python (pathline.steer)."
            )
        self.options = self._parts(rest)

    def built(self) -> Guide:
        """Return the guide.

        Raises:
            UsageError: something is missing, unknown or cannot be read.
        """
        special = {name: self._measured for name in MEASURED} | {
            "inpaint": self._inpaint,
            "autoguidance": self._worse,
            "classifier": self._classifier,
            "regions": self._regions,
        }
        arguments: dict[str, Any] = special.get(self.name, dict)()
        plain = {name: self._number(name, text) for name, text in self.options.items()}
        return self.entry.build(**arguments, **plain)

    def _number(self, name: str, text: str) -> Any:
        """Return the value of an argument; a word only where the guide takes one ("of=sigma")."""
        value = _value(self.text, name, text)
        usual = getattr(self.entry.make, name, None)
        if isinstance(value, str) and not isinstance(usual, str):
            raise UsageError(f"--guide {self.text}: {name}={text!r} is no number.")
        return value

    def _parts(self, rest: str) -> dict[str, str]:
        options: dict[str, str] = {}
        for part in filter(None, (each.strip() for each in rest.split(","))):
            name, sign, value = part.partition("=")
            if not sign:
                bare = part in OPERATORS
                name, value = (part, "") if bare else (MAIN.get(self.name, ""), part)
            if not name or name in options:
                raise UsageError(f"--guide {self.text}: {part!r} cannot be read; write NAME=VALUE.")
            options[name.strip()] = value.strip()
        return options

    def _taken(self, name: str) -> str:
        value = self.options.pop(name, "")
        if not value:
            raise UsageError(f"--guide {self.name} needs {name}=…: {_EXAMPLES[self.name]}")
        return value

    def _file(self, name: str) -> str:
        found = self.place(name)
        self.files[name] = sha256(Path(found))
        return found

    @property
    def _shape(self) -> tuple[int, ...]:
        shape = self.model.shape
        if shape is None or len(shape) != 3 or shape[0] not in (1, 3):
            raise UsageError(f"{self.model.name} is not a model of pictures, so {self.name} has "
                             "nothing to read; use it in Python.")  # fmt: skip
        return tuple(shape)

    def _mask(self, name: str) -> Tensor:
        """Return a mask file as (1, height, width), 1 where it is white."""
        return mask_of(self.model, self._file(name))[0]

    def _inpaint(self) -> dict[str, Any]:
        image = self._taken("image")
        file = self._file(image)
        picture = read_picture(file, self._shape[0])
        check_size(image, picture, self._shape)
        if "mask" in self.options:
            mask = self._mask(self._taken("mask"))
        elif (alpha := read_alpha(file)) is not None:
            mask = (alpha == 255).float()
        else:
            raise UsageError(
                f"--guide inpaint: {image} is opaque everywhere, so say what is kept: "
                f"{_EXAMPLES['inpaint']}"
            )
        return {"mask": mask, "y": as_data(picture)[None]}

    def _worse(self) -> dict[str, Any]:
        from pathline.learn.checkpoint import load_model

        name = self._taken("worse")
        worse = load_model(name)
        self._weighed(name, str(worse.details.get("weights", {}).get("sha256")))
        return {"worse": worse.to(self.model.device or "cpu")}

    def _classifier(self) -> dict[str, Any]:
        from pathline.cli.request import classifier_of  # which needs this module
        from pathline.learn.checkpoint import WEIGHTS, find_folder

        name = self._taken("folder")
        logits, label = classifier_of(name, self.model)
        self._weighed(name, sha256(find_folder(name) / WEIGHTS))
        return {"network": logits, "labels": label(self._taken("label"))}

    def _weighed(self, name: str, digest: str) -> None:
        """Note the weights of another network; those of a receipt must be the same."""
        told = self.place.files.get(name) if isinstance(self.place, _Found) else digest
        if digest != told:
            raise ReceiptError(f"{name} has other weights now (sha256 {digest[:12]}…).")
        self.files[name] = digest

    def _regions(self) -> dict[str, Any]:
        told = self.model.details.get("condition")
        kind = told if isinstance(told, str) else "text"
        mask = self._mask(self._taken("mask"))
        words = [{kind: self._taken(name)} for name in ("white", "black")]
        return {"masks": torch.stack((mask, 1 - mask)), "conditions": tuple(words)}

    def _measured(self) -> dict[str, Any]:
        named = [name for name in OPERATORS if name in self.options]
        if len(named) != 1:
            raise UsageError(
                f"--guide {self.name} needs what is measured, one of mask=FILE, cubic=FACTOR, "
                f"pooling=FACTOR, blur=STD or luma: {_EXAMPLES[self.name]}"
            )
        operator = self._operator(named[0])
        image = self._taken("image")
        channels = 1 if named[0] == "luma" and self._is_grey(image) else self._shape[0]
        picture = read_picture(self._file(image), channels)
        whole = as_data(picture)[None]
        if channels == self._shape[0] and tuple(whole.shape[1:]) == self._shape:
            return {"operator": operator, "y": operator.forward(whole)}
        wanted = operator.forward(torch.zeros(1, *self._shape)).shape[1:]
        if whole.shape[1:] != wanted:
            raise UsageError(
                f"{image} has {whole.shape[3]} × {whole.shape[2]} pixels; give what was measured "
                f"({wanted[2]} × {wanted[1]}) or a whole picture ({self._shape[2]} × "
                f"{self._shape[1]})."
            )
        return {"operator": operator, "y": whole}

    def _is_grey(self, image: str) -> bool:
        colours = read_picture(self.place(image), 3)
        return bool((colours == colours[:1]).all())

    def _operator(self, name: str) -> Operator:
        value = self.options.pop(name)
        if name == "mask":
            return operators.Mask(self._mask(value))
        argument = OPERATORS[name]
        if argument is None:
            return operators.operators.build(name)
        if not value:
            raise UsageError(f"--guide {self.text}: {name}=… needs a number.")
        return operators.operators.build(name, **{argument: _value(self.text, name, value)})


_PICTURE = "cubic=4,image=small.png"
_EXAMPLES = {
    "inpaint": '--guide "inpaint:mask=mask.png,image=photo.png" (white is kept)',
    "classifier": '--guide "classifier:2,folder=FOLDER,label=7"',
    "autoguidance": '--guide "autoguidance:2,worse=FOLDER"',
    "regions": '--guide "regions:mask=half.png,white=a cat,black=a dog"',
    "projection": f'--guide "projection:{_PICTURE}"',
    **{name: f'--guide "{name}:0.05,{_PICTURE}"' for name in MEASURED[1:]},
}


def _value(text: str, name: str, value: str) -> Any:
    """Return a number, two of them, or a word."""
    low, between, high = value.partition("..")
    try:
        if between:
            return float(low), float(high)
        number = float(value)
    except ValueError:
        if between or not value or value[0].isdigit():
            raise UsageError(f"--guide {text}: {name}={value!r} is no number.") from None
        return value
    return int(number) if number.is_integer() and "." not in value else number
