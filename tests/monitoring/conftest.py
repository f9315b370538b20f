from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.monitoring.recorded import Recorded, recorded


@pytest.fixture(scope="session")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    """Yield a Prometheus on the recorded scrapes."""
    with recorded(tmp_path_factory.mktemp("recorded")) as found:
        yield found
