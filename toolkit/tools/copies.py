"""Images with the same content, within a split and across splits."""

from collections.abc import Iterable, Iterator

from toolkit.data.sources.survey import Survey

EVALUATED_FIRST = ("test", "val", "train")  # of copies the one in the earliest of these splits stays


def find_copies(survey: Survey, digests: dict[str, list[bytes]]) -> Iterator[tuple[str, int, str, str]]:
    """(split, id, kind, reason) of images with the very bytes of another."""
    order = [(split, i) for split in EVALUATED_FIRST if split in digests for i in range(len(digests[split]))]
    seen: dict[bytes, int] = {}
    groups: dict[int, list[int]] = {}
    for number, (split, i) in enumerate(order):
        digest = digests[split][i]
        first = seen.setdefault(digest, number) if digest else number
        if first != number:
            groups.setdefault(first, [first]).append(number)
    for group in groups.values():
        yield from _judge(survey, [order[number] for number in group])


def _judge(survey: Survey, copies: list[tuple[str, int]]) -> Iterable[tuple[str, int, str, str]]:
    """Copies in a split that is evaluated later leak; in one split they repeat or contradict each other.

    Where validation images will be drawn from train, a copy there leaks as well.
    """

    def called(split: str, i: int) -> str:
        index = survey.splits[split]
        return f"the same content as {index.names[i]}, class {survey.classes[index.labels[i]]}"

    keeper, first = copies[0]
    labels = survey.splits[keeper].labels
    own = [i for split, i in copies if split == keeper]
    contradictory = len({*labels[own].tolist()}) > 1
    for split, i in copies:
        if split != keeper:
            yield split, i, "leak", called(keeper, first)
        elif contradictory:
            yield split, i, "contradiction", called(keeper, next(j for j in own if labels[j] != labels[i]))
        elif i != first and keeper == "train" and "val" not in survey.splits:
            yield split, i, "would leak", f"{called(keeper, first)}; of train a part would be held out for validation"
        elif i != first:
            yield split, i, "duplicate", called(keeper, first)
