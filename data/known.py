"""Data from elsewhere: names, classes, SHA-256, addresses, ways by hand. Imports the standard library only."""

import shlex
from pathlib import Path
from typing import NamedTuple

CLASSES: dict[str, tuple[str, ...]] = {"ptb": ("normal", "MI"), "arrhythmia": ("N", "S", "V", "F", "Q")}

FILES: dict[str, dict[str, str]] = {
    "ptb": {"train": "heart_train.parq", "test": "heart_test.parq"},
    "arrhythmia": {"train": "heart_big_train.parq", "test": "heart_big_test.parq"},
}


class Published(NamedTuple):
    num_bytes: int | None
    """None where the publisher tells only the SHA-256."""
    sha256: str


PUBLISHED: dict[str, Published] = {
    "heart_big_train.parq": Published(55563155, "4a6ab249a76ad82350b70772b2fe16f4330ad62aa5f34f999625661db4031524"),
    "heart_big_test.parq": Published(16912477, "b748b3bebfb7db7f294af03c90534b5eec81a1cfe3020cdb1bd34b8170a5606e"),
    "heart_train.parq": Published(11107910, "9c7273340f0a6b7c441927f2b5d924e1022244f8341e25f19b12a38c06e12af3"),
    "heart_test.parq": Published(2834792, "c80e0cd08efbf1852ef39936a75a73c8958de09d9dae5aa5159609fb04dfb5cd"),
}


class Database(NamedTuple):
    """A database of PhysioNet, of which only the paths that match `files` as a whole are wanted."""

    address: str
    files: str


DATABASES: dict[str, Database] = {
    "mitdb": Database("https://physionet.org/files/mitdb/1.0.0/", r"[12]\d\d\.(hea|dat|atr)"),
    "ptbdb": Database("https://physionet.org/files/ptbdb/1.0.0/", r"patient\d{3}/\w+\.(hea|dat)"),
    "ptbxl": Database(
        "https://physionet.org/files/ptb-xl/1.0.3/",
        r"ptbxl_database\.csv|scp_statements\.csv|LICENSE\.txt|records100/\d{5}/\d{5}_lr\.(hea|dat)",
    ),
}

KAGGLE = "shayanfazeli/heartbeat"
KAGGLE_FILES: dict[str, tuple[str, ...]] = {
    "kaggle-ptb": ("ptbdb_normal.csv", "ptbdb_abnormal.csv"),
    "kaggle-arrhythmia": ("mitbih_train.csv", "mitbih_test.csv"),
}


def database_by_hand(name: str, data_dir: Path) -> str:
    """How to get a database without `python -m data get`, into `data_dir`/`name`."""
    address, folder = DATABASES[name].address, data_dir / name
    return (
        f"`wget -r -N -c -np -nH --cut-dirs=3 -P {shlex.quote(str(folder))} {address}`, "
        f"or put the files of the zip at {address.replace('/files/', '/content/')} into {folder}, "
        f"or name the folder that has {name}/ with HEART_DATA_DIR or --data-dir"
    )


def kaggle_by_hand(name: str, data_dir: Path) -> str:
    """How to get the Kaggle form of a data set: its files lie in `data_dir` itself."""
    return (
        f"{name} needs a Kaggle account, so get it by hand: download https://www.kaggle.com/datasets/{KAGGLE} and "
        f"unpack {' and '.join(KAGGLE_FILES[name])} into {data_dir}, "
        f"or name the folder that has them with HEART_DATA_DIR or --data-dir"
    )


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


class MissingFile(ValueError):
    """A data set's file, or folder of records, is not where it should be."""
