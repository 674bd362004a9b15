"""Tests of hf_mim, in the folders of what they test; `testing/` has what they share."""

import pytest


# A failed assertion of a helper shows its values, as those of the tests do.
pytest.register_assert_rewrite("tests.testing")
