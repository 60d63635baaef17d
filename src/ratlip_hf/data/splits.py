"""The class-disjoint splits of the CUB birds. Two circulate under the same description (150 and 50 of 200 classes).
Owns the published lists as class numbers; they share 18 of their 50 test classes."""

from dataclasses import dataclass

TRAIN, TEST, VALIDATION = "train", "test", "validation"


@dataclass(frozen=True)
class ClassSplit:
    """A published split: where it comes from, and the numbers (1 to 200) of its test classes."""

    origin: str
    test_classes: frozenset[int]

    def of(self, class_number: int) -> str:
        """Split of a class."""
        return TEST if class_number in self.test_classes else TRAIN


def _numbers(text: str) -> frozenset[int]:
    return frozenset(map(int, text.split()))


BIRD_SPLITS = {
    "stackgan": ClassSplit(
        "the lists of StackGAN's filenames.pickle, used from StackGAN to DF-GAN, GALIP and RATLIP "
        "(8,855 train and 2,933 test images)",
        _numbers(
            "1 4 6 8 9 14 23 29 31 33 34 35 36 37 38 43 49 51 53 66 72 79 83 84 86 91 95 96 98 101 102 103 "
            "112 114 119 121 130 135 138 147 156 163 165 166 180 183 185 186 187 197"
        ),
    ),
    "reed": ClassSplit(
        "trainvalclasses.txt and testclasses.txt of Akata, Reed et al. (8,821 train and 2,967 test images)",
        _numbers(
            "4 12 23 26 28 31 33 43 45 49 52 55 70 72 77 84 87 91 94 97 98 103 104 111 113 119 123 124 127 "
            "130 132 136 138 139 143 148 156 157 161 163 164 165 168 169 173 180 188 190 191 200"
        ),
    ),
}
OFFICIAL = "official"  # CUB's own train_test_split.txt: every class is in both halves
BIRD_SPLIT_NAMES = (*BIRD_SPLITS, OFFICIAL)
