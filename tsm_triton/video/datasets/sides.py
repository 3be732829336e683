"""Left and right in the names of classes, however they are written."""

import re
from collections.abc import Sequence

__all__ = ["named_pairs", "normal", "sided", "tell"]

# what stands for no side where a third class has another letter in its place: alphabets of signs
LETTERS = set("lrcm")
OPPOSITES = {"left": "right", "right": "left", "l": "r", "r": "l"}
OPPOSITES |= {"clockwise": "counterclockwise", "counterclockwise": "clockwise"}
INSIDE = re.compile("counterclockwise|clockwise|left|right")
SIDE = re.compile(
    rf"(?<![a-z])({INSIDE.pattern})(?=((wards?|most|sided?|hand|handed|foot|arm|leg)?(?![a-z])))"
)
LETTER = re.compile("(?<![a-z])[a-z](?![a-z])")
L_OR_R = re.compile("(?<![a-z])[lr](?![a-z])")


def normal(name: str) -> str:
    """A name without the differences in writing: case, camel case, brackets, hyphens, other words for a turn.

    Example:
        >>> [normal(name) for name in ("SwipeLeftwards", "Rotate CCW", "turn_anti-clockwise", "[Left]-hand")]
        ['swipe left', 'rotate counterclockwise', 'turn counterclockwise', 'left hand']
    """
    name = re.sub("(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    name = " ".join(re.sub(r"[\[\]]", "", name).replace("_", " ").replace("-", " ").lower().split())
    name = re.sub("(counter|anti|contra) ?clock ?wise|(?<![a-z])(cc|ac)w(?![a-z])", "counterclockwise", name)
    name = re.sub("clock wise|(?<![a-z])cw(?![a-z])", "clockwise", name)
    return re.sub("(left|right)wards?(?![a-z])", r"\1", name)


def tell(classes: Sequence[str]) -> bool:
    """Whether names say what a class is, and are no numbers with nothing but one word beside them."""
    words = {"".join(filter(str.isalpha, name)) for name in classes}
    return words != {""} and (len(words) > 1 or len(classes) < 2)


def named_pairs(classes: Sequence[str]) -> list[tuple[int, int]]:
    """The numbers of the classes whose names differ by their sides alone.

    Example:
        >>> named_pairs(["Pushing [something] from left to right", "Pushing [something] from right to left"])
        [(0, 1)]
        >>> named_pairs(["kickL", "kickR", "SwipeLeft", "swipe_right", "turnleft", "turnright", "bright"])
        [(0, 1), (2, 3), (4, 5)]
    """
    names = list(map(normal, classes))
    number_of = {name: number for number, name in enumerate(names) if names.count(name) == 1}
    pairs = []
    for number, name in enumerate(names):
        for other in (_swapped(SIDE, name), _swapped(INSIDE, name), _lettered(name, names)):
            if other != name and other in number_of and name in number_of:
                pairs += [(number, number_of[other])] if number < number_of[other] else []
                break
    return pairs


def sided(classes: Sequence[str]) -> list[int]:
    """The numbers of the classes whose names have a side, whether another has the other one or not."""
    paired = {number for pair in named_pairs(classes) for number in pair}
    return [number for number, name in enumerate(classes) if number in paired or SIDE.search(normal(name))]


def _swapped(sides: re.Pattern[str], name: str) -> str:
    return sides.sub(lambda match: OPPOSITES[match[0]], name)


def _lettered(name: str, names: Sequence[str]) -> str:
    """With R for L, if no class has another letter there but C or M, the centre."""
    pattern = LETTER.sub("?", name)
    alike = [other for other in names if LETTER.sub("?", other) == pattern]
    others = {letter for other in alike for letter in LETTER.findall(other)} - LETTERS
    return name if others else _swapped(L_OR_R, name)
