import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def heart_data_dir() -> Path:
    """Folder of the real data files."""
    folder = os.environ.get("HEART_DATA_DIR")
    if not folder:
        pytest.skip("HEART_DATA_DIR does not name a folder of real data files")
    return Path(folder)
