"""Speed and memory, measured against rivals: see README.md here."""

import os

# The larger pages of memory that import_torch asks for, for all rivals alike. torch looks once, when it begins.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
