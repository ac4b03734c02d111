"""Subjects: what there is to ask of a model, by the data it was trained on.

A subject knows the pictures, how a model is asked for more of them, which networks look at them,
and who says whether a sample is what was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pathline.core.errors import UsageError, unknown
from pathline.data import emoji, fashion
from pathline.fields import Denoiser
from pathline.learn.captions import captions_of
from pathline.learn.checkpoint import find_folder, read_folder
from pathline.learn.classify import FORMAT as CLASSIFIER
from pathline.learn.classify import SHIPPED as CLASSIFIER_NAME
from pathline.learn.classify import accuracy, load_classifier
from pathline.learn.quality.features import Lite0
from pathline.learn.quality.judge import Judge, among, embed_texts, load_judge
from pathline.learn.quality.report import Measure
from pathline.learn.sources import is_plain
from pathline.nets.classifier import Features

__all__ = ["SUBJECTS", "EmojiSubject", "FashionSubject", "Subject", "Wishes", "subject_of"]


@dataclass(frozen=True)
class Wishes:
    """What samples are asked for.

    Args:
        cond: the condition in the user's words, one a sample ({"text": [...]}).
        plain: what each sample should show, without a vendor's name.
        pictures: (n,) the number of the picture that each was drawn from.
    """

    cond: Mapping[str, Sequence[str]]
    plain: Sequence[str]
    pictures: Tensor

    @property
    def titles(self) -> Sequence[str]:
        """Each sample's condition as a person reads it."""
        return next(iter(self.cond.values()))


class Subject(Protocol):
    """What a model of some data is asked, and by whom it is judged."""

    @property
    def name(self) -> str:
        """The name of the data."""
        ...

    @property
    def goal(self) -> float:
        """The kernel distance to reach, from 0 (real halves) to 1 (noise), by the first network."""
        ...

    @property
    def showcase(self) -> Sequence[str]:
        """Prompts whose samples a model's card shows."""
        ...

    @property
    def limits(self) -> Mapping[str, Mapping[str, int]]:
        """How many pictures of each split are kept as reference, by the network that sees them."""
        ...

    def network(self, name: str) -> nn.Module:
        """Return the feature network of a name in `limits`."""
        ...

    def pictures(self, split: str) -> Tensor:
        """Return the pictures of a split, train or held_out, uint8."""
        ...

    def reference(self, split: str, limit: int) -> Tensor:
        """Return at most `limit` pictures of a split: what samples are compared with."""
        ...

    def wishes(self, n: int, seed: int) -> Wishes:
        """Return n conditions like those of the training pictures."""
        ...

    def unseen_wishes(self, n: int) -> Wishes | None:
        """Return at most n conditions that were never trained on; None if there are none."""
        ...

    def agreement(self, samples: Tensor, wishes: Wishes, *, unseen: bool = False) -> list[Measure]:
        """Return how well samples show what was asked for."""
        ...

    def judged_by(self) -> Mapping[str, Any]:
        """Return how far the judge of that agreement can be trusted."""
        ...


@dataclass(frozen=True)
class EmojiSubject:
    """Captioned emoji, without flags and skin tones; each of the others counts alike.

    So models are asked the same, whatever they were trained on most.

    Args:
        tag_share: how many captions are tags.
        judge: of captions; None loads the shipped one.
    """

    tag_share: float = 0.15
    judge: Judge | None = None
    name: str = "emoji"
    goal: float = 0.15
    showcase: Sequence[str] = (
        "red heart",
        "green apple",
        "smiling face",
        "blue car",
        "dog",
        "rocket",
        "red apple, twemoji",
        "red apple, fluent",
    )

    @property
    def limits(self) -> Mapping[str, Mapping[str, int]]:
        return {"efficientnet-lite0": {"train": 1000, "held_out": 1000}}

    def network(self, name: str) -> nn.Module:
        return self.sight

    @cached_property
    def sight(self) -> Lite0:
        """The network that looks at pictures, for distances and for the judge."""
        return Lite0() if self.judge is None else self.judge.sight

    @cached_property
    def data(self) -> emoji.EmojiData:
        """The emoji of all vendors."""
        return emoji.load()

    def pictures(self, split: str) -> Tensor:
        return self._pixels(torch.from_numpy(self.data.where(split)))

    def reference(self, split: str, limit: int) -> Tensor:
        plain = self._plain(split)
        generator = torch.Generator().manual_seed(0)
        return self._pixels(plain[torch.randperm(len(plain), generator=generator)[:limit]])

    def wishes(self, n: int, seed: int) -> Wishes:
        generator = torch.Generator().manual_seed(seed)
        plain = self._plain("train")
        drawn = plain[torch.randint(len(plain), (n,), generator=generator)]
        coins = torch.rand(n, 2, generator=generator, dtype=torch.float64).tolist()
        entries = [self.data.entries[i] for i in drawn]
        texts = [
            captions_of(entry).pick(kind, which, self.tag_share)
            for entry, (kind, which) in zip(entries, coins, strict=True)
        ]
        bare = [_bare(*pair) for pair in zip(texts, entries, strict=True)]
        return Wishes({"text": texts}, bare, drawn)

    def unseen_wishes(self, n: int) -> Wishes | None:
        """Return the names of held-out code points, each once, by drawings of all vendors."""
        drawings: dict[str, list[int]] = {}
        for i in self._plain("held_out").tolist():
            drawings.setdefault(self.data.entries[i].key, []).append(i)
        keys = list(drawings)[:: max(1, len(drawings) // n)][:n]
        chosen = [drawings[key][turn % len(drawings[key])] for turn, key in enumerate(keys)]
        names = [self.data.entries[i].label for i in chosen]
        return Wishes({"text": names}, names, torch.tensor(chosen))

    def agreement(self, samples: Tensor, wishes: Wishes, *, unseen: bool = False) -> list[Measure]:
        """Return how often the judge finds a sample's caption among a hundred.

        Beside it: the same for the pictures that the captions were drawn from, as far as the judge
        was not trained on their vendor, and for chance.
        """
        judge = self.critic
        pool = sorted({self.data.entries[i].label for i in self._plain("train").tolist()})
        own = embed_texts(wishes.plain)
        foreign = self._drawn_by_others(wishes, judge)
        found = _ranks(judge, samples, wishes.plain, own, pool)
        ideal: Mapping[int, float] = {}
        if foreign:
            real, plain = self._pixels(wishes.pictures[foreign]), [wishes.plain[i] for i in foreign]
            ideal = _ranks(judge, real, plain, own[foreign], pool)
        about = "held-out captions" if unseen else "captions"
        names = {1: "first among 100", 5: "in the first five of 100"}
        return [
            Measure(
                id=f"{'unseen_' if unseen else ''}caption_top{best}",
                text=f"{about} that the judge puts {names[best]}",
                samples=found[best],
                real=ideal.get(best),
                noise=best / 100,
                better="higher",
            )
            for best in (1, 5)
        ]

    def judged_by(self) -> Mapping[str, Any]:
        """Return whose drawings the judge learned from, and how well it reads each vendor's."""
        about = self.critic.about
        return {"vendor": _vendor(self.critic), "reads": about.get("reads", {})}

    @cached_property
    def critic(self) -> Judge:
        """The judge of captions."""
        return self.judge or load_judge(sight=self.sight)

    def _plain(self, split: str) -> Tensor:
        """Return the numbers of a split's pictures that are neither flags nor skin tones."""
        chosen = self.data.where(split).tolist()
        return torch.tensor([i for i in chosen if is_plain(self.data.entries[i])])

    def _drawn_by_others(self, wishes: Wishes, judge: Judge) -> list[int]:
        vendor = _vendor(judge)
        pictures = enumerate(wishes.pictures.tolist())
        return [i for i, picture in pictures if self.data.entries[picture].vendor != vendor]

    def _pixels(self, chosen: Tensor) -> Tensor:
        return torch.from_numpy(self.data.images[chosen.numpy()]).permute(0, 3, 1, 2).contiguous()


def _vendor(judge: Judge) -> str | None:
    """Return whose drawings a judge learned from."""
    training: Any = judge.about.get("training", {})
    return training.get("schooling", {}).get("vendor")


def _bare(text: str, entry: emoji.Emoji) -> str:
    """Return a caption without its vendor and article."""
    bare = text.removesuffix(f", {entry.vendor}")
    return entry.label if bare in captions_of(entry).names else bare


def _ranks(
    judge: Judge, pixels: Tensor, captions: Sequence[str], said: Tensor, pool: Sequence[str]
) -> dict[int, float]:
    """Return how often each picture's caption is first, and in the first five, of a hundred."""
    seen = judge.see(pixels)
    own = (seen * judge.heads.said(said)).sum(1)
    others = seen @ judge.heads.said(embed_texts(pool)).T
    same = torch.tensor([[a == b for b in pool] for a in captions])
    others = others.masked_fill(same, -torch.inf)
    return {best: among(others, own, best) for best in (1, 5)}


@dataclass(frozen=True)
class FashionSubject:
    """Fashion-MNIST by class."""

    name: str = "fashion"
    goal: float = 0.05
    showcase: Sequence[str] = fashion.CLASSES

    @property
    def limits(self) -> Mapping[str, Mapping[str, int]]:
        return {
            "fashion-classifier": {"train": 2000, "held_out": 2000},
            "efficientnet-lite0": {"held_out": 1000},
        }

    def network(self, name: str) -> nn.Module:
        return Lite0() if name == "efficientnet-lite0" else Features(load_classifier())

    @cached_property
    def data(self) -> fashion.FashionData:
        """Images and labels."""
        return fashion.load()

    def pictures(self, split: str) -> Tensor:
        images = self.data.train_images if split == "train" else self.data.test_images
        return torch.from_numpy(images)[:, None]

    def reference(self, split: str, limit: int) -> Tensor:
        pictures = self.pictures(split)
        generator = torch.Generator().manual_seed(0)
        return pictures[torch.randperm(len(pictures), generator=generator)[:limit]]

    def wishes(self, n: int, seed: int) -> Wishes:
        """Return each class as often as any other, one after the other."""
        names = [fashion.CLASSES[i % len(fashion.CLASSES)] for i in range(n)]
        return Wishes({"label": names}, names, torch.full((n,), -1))

    def unseen_wishes(self, n: int) -> Wishes | None:
        return None

    def agreement(self, samples: Tensor, wishes: Wishes, *, unseen: bool = False) -> list[Measure]:
        """Return how often the classifier says the class that was asked for."""
        config, _ = read_folder(find_folder(CLASSIFIER_NAME), CLASSIFIER, {"test_accuracy"})
        labels = torch.tensor([fashion.CLASSES.index(name) for name in wishes.plain])
        return [
            Measure(
                id="class_agreement",
                text="samples that the classifier says are of the class asked for",
                samples=accuracy(load_classifier(), samples, labels),
                real=config["test_accuracy"],
                noise=1 / len(fashion.CLASSES),
                better="higher",
                goal=0.9,
            )
        ]

    def judged_by(self) -> Mapping[str, Any]:
        """Return the classifier's accuracy on test images."""
        config, _ = read_folder(find_folder(CLASSIFIER_NAME), CLASSIFIER, {"test_accuracy"})
        return {"test_accuracy": config["test_accuracy"]}


SUBJECTS: Mapping[str, Callable[[], Subject]] = {"emoji": EmojiSubject, "fashion": FashionSubject}
"""What can be asked, by the source of data that a training recipe names."""


def subject_of(model: Denoiser) -> Subject:
    """Return what to ask a model, from the record of its training.

    Raises:
        UsageError: it does not say what it was trained on, or that is nothing we can measure.
    """
    recipe = model.details.get("training", {}).get("recipe", {})
    source = recipe.get("data", {}).get("source")
    if source is None:
        raise UsageError(
            f"the model {model.name} does not say what it was trained on, so there is nothing to "
            "compare its samples with; `pathline train` records it."
        )
    if source not in SUBJECTS:
        raise unknown("data that can be measured:", str(source), SUBJECTS)
    return SUBJECTS[source]()
