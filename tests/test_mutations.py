"""Each row of mutations.py still applies: its line occurs in the file exactly once."""

import pytest

from tests.mutations import MUTATIONS, PROJECT


@pytest.mark.parametrize("number", range(len(MUTATIONS)))
def test_the_line_of_a_mutation_stands_in_its_file_once(number):
    mutation = MUTATIONS[number]
    assert (PROJECT / mutation.file).read_text(encoding="utf-8").count(mutation.line) == 1
    assert mutation.broken != mutation.line
