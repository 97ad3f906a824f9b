"""Images with the same content, within a split and across splits."""

from collections.abc import Iterable, Iterator

from toolkit.data.sources.survey import Survey

EVALUATED_FIRST = ("test", "val", "train")  # the copy in the first of these splits is kept


def find_copies(survey: Survey, digests: dict[str, list[bytes]]) -> Iterator[tuple[str, int, str, str]]:
    """Yield (split, id, kind, reason) of images whose bytes equal another image's."""
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
    """Classify one group of copies, in the order of EVALUATED_FIRST.

    A copy in a later split than the first is a leak. Copies within one split are duplicates, or a contradiction if
    their labels differ. Without a val split, duplicates in train would leak too: validation is held out from train.
    """

    def called(split: str, i: int) -> str:
        return f"the same content as {survey.splits[split].names[i]}, {survey.label_of(split, i)}"

    keeper, first = copies[0]
    labels = survey.splits[keeper].labels
    own = [i for split, i in copies if split == keeper]
    contradictory = bool((labels[own] != labels[own[0]]).any())
    for split, i in copies:
        if split != keeper:
            yield split, i, "leak", called(keeper, first)
        elif contradictory:
            yield split, i, "contradiction", called(keeper, next(j for j in own if (labels[j] != labels[i]).any()))
        elif i != first and keeper == "train" and "val" not in survey.splits:
            yield split, i, "would leak", f"{called(keeper, first)}; of train a part would be held out for validation"
        elif i != first:
            yield split, i, "duplicate", called(keeper, first)
