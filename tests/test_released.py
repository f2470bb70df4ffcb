"""The one reader of `release.json`."""

import pytest

from tasks.core.errors import DataError
from tasks.core.store import Artifact
from tasks.export import _lineage
from tasks.released import RELEASE_FILE, release_record


@pytest.mark.parametrize("held", [None, '{"name": "dem'])
def test_a_record_that_is_gone_or_torn_is_a_sentence_that_says_how_to_build_it_again(tmp_path, held):
    release = Artifact(tmp_path, {"kind": "release", "key": "3f2a91" + "0" * 58})
    if held:
        (tmp_path / RELEASE_FILE).write_text(held)
    for read in (release_record, _lineage):  # whoever reads it
        with pytest.raises(DataError, match=r"^release 3f2a91000000: release.json is not readable .*`align rerun release PLAN`"):
            read(release)
