"""Models from checkpoints whose gaps are judged by the caller."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_load_report() -> Iterator[None]:
    """
    Keeps transformers from printing its table of missing and unexpected tensors, for callers that look at
    `output_loading_info` themselves: most encoders come without a pooler, and many with a head that is not wanted.
    """

    def is_other(record: logging.LogRecord) -> bool:
        return record.module != "loading_report"

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)
