"""What an evaluation of a classifier found, image by image, and the tables that are made of it."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common.tables import Tables

WORST = 100  # images that are named


@dataclass
class Findings:
    """Rows of images: `figures [N, 4]` are the loss, top-1, top-5 and the probability of the predicted class, `places [N, 3]` the true and
    the predicted class and the number in the data set, -1 where that has none."""

    figures: Tensor
    places: Tensor

    def known(self) -> "Findings":
        """Leaves out what could not be read, which has no true class."""
        known = self.places[:, 0] >= 0
        return Findings(self.figures[known], self.places[known])

    def metrics(self) -> dict[str, float]:
        loss, top1, top5, _ = self.figures.cpu().double().mean(0).tolist()
        return {"loss": loss, "top1": 100 * top1, "top5": 100 * top5, "images": len(self.figures)}

    def tables(self, names: Callable[[int], str], image_name: Callable[[int], str]) -> Tables:
        pairs, counts = self.places[:, :2].cpu().unique(dim=0, return_counts=True)
        confusion = {(true, predicted): count for (true, predicted), count in zip(pairs.tolist(), counts.tolist(), strict=True)}
        return {
            "classes.csv": class_rows(confusion, names),
            "confusion.csv": [
                {"true": names(true), "predicted": names(predicted), "images": count} for (true, predicted), count in confusion.items()
            ],
            "wrong.csv": self._wrong(names, image_name),
        }

    def _wrong(self, names: Callable[[int], str], image_name: Callable[[int], str]) -> list[dict[str, object]]:
        """The images with the largest loss among those that were taken for another class."""
        figures, places = self.figures.cpu(), self.places.cpu()
        wrong = ((figures[:, 1] == 0) & (places[:, 2] >= 0)).nonzero()[:, 0]
        worst = wrong[figures[wrong, 0].argsort(descending=True, stable=True)][:WORST]
        return [
            {
                "number": number,
                "image": image_name(number),
                "true": names(true),
                "predicted": names(predicted),
                "probability": round(probability, 4),
                "loss": round(loss, 4),
            }
            for (loss, _, _, probability), (true, predicted, number) in zip(figures[worst].tolist(), places[worst].tolist(), strict=True)
        ]


def class_rows(confusion: dict[tuple[int, int], int], names: Callable[[int], str]) -> list[dict[str, object]]:
    """A row for each class that has images: how many of them are right, and what the others are most often taken for."""
    images, right, wrong = Counter[int](), Counter[int](), dict[int, Counter[int]]()
    for (true, predicted), count in confusion.items():
        images[true] += count
        if true == predicted:
            right[true] = count
        else:
            wrong.setdefault(true, Counter())[predicted] = count
    return [
        {
            "class": names(true),
            "top1": 100 * right[true] / images[true],
            "images": images[true],
            "taken_for": names(wrong[true].most_common(1)[0][0]) if true in wrong else "",
        }
        for true in sorted(images)
    ]


def measure(logits: Tensor, targets: Tensor, numbers: Tensor) -> Findings:
    """Rows of a batch; what could not be read has the target -1."""
    loss = F.cross_entropy(logits, targets.clamp(min=0), reduction="none")
    hits = logits.topk(min(5, logits.shape[1])).indices == targets[:, None]
    probability, predicted = logits.softmax(1).max(1)
    return Findings(
        torch.stack([loss, hits[:, 0].float(), hits.any(1).float(), probability], 1), torch.stack([targets, predicted, numbers], 1)
    )


def join(parts: Sequence[Findings]) -> Findings:
    return Findings(torch.cat([part.figures for part in parts]), torch.cat([part.places for part in parts]))
