"""The course's files: their names, classes and SHA-256. Imports the standard library only."""

from typing import NamedTuple

CLASSES: dict[str, tuple[str, ...]] = {"ptb": ("normal", "MI"), "arrhythmia": ("N", "S", "V", "F", "Q")}

FILES: dict[str, dict[str, str]] = {
    "ptb": {"train": "heart_train.parq", "test": "heart_test.parq"},
    "arrhythmia": {"train": "heart_big_train.parq", "test": "heart_big_test.parq"},
}


class Published(NamedTuple):
    num_bytes: int
    sha256: str


PUBLISHED: dict[str, Published] = {
    "heart_big_train.parq": Published(55563155, "4a6ab249a76ad82350b70772b2fe16f4330ad62aa5f34f999625661db4031524"),
    "heart_big_test.parq": Published(16912477, "b748b3bebfb7db7f294af03c90534b5eec81a1cfe3020cdb1bd34b8170a5606e"),
    "heart_train.parq": Published(11107910, "9c7273340f0a6b7c441927f2b5d924e1022244f8341e25f19b12a38c06e12af3"),
    "heart_test.parq": Published(2834792, "c80e0cd08efbf1852ef39936a75a73c8958de09d9dae5aa5159609fb04dfb5cd"),
}


class Known(NamedTuple):
    dataset: str
    source: str


KNOWN_FILES: dict[str, Known] = {
    PUBLISHED["heart_big_train.parq"].sha256: Known("arrhythmia", "MIT-BIH Arrhythmia (published)"),
    PUBLISHED["heart_big_test.parq"].sha256: Known("arrhythmia", "MIT-BIH Arrhythmia (published)"),
    PUBLISHED["heart_train.parq"].sha256: Known("ptb", "PTB Diagnostic"),
    PUBLISHED["heart_test.parq"].sha256: Known("ptb", "PTB Diagnostic"),
    "ebc8b08835fc3975b0638b9ff3b059b5a29fd4bbc1417f69767cf8cf9e8b667c": Known(
        "arrhythmia", "MIT-BIH Arrhythmia (rebuilt)"
    ),
    "003d878b1d94260c895d1cf9fdd4d855ed41d4278e0bfe531511720d05f16b16": Known(
        "arrhythmia", "MIT-BIH Arrhythmia (rebuilt)"
    ),
    "af800a248815751d9a00fbe7ade6e3ca79b23bcc9d68f2eef7fb6af8cc8ed85e": Known("ptb", "PTB-XL stand-in"),
    "369db4c75739caf35bae09fa35d69aad3baaaf9eec7b553c907fecebe621f8a6": Known("ptb", "PTB-XL stand-in"),
}
