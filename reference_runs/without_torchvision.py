"""Mock objects in the place of torchvision, once this is imported: before multivae, that is.

MultiVae imports torchvision, for data sets and measures that are not used here, and which does not
import beside the torch that records. Where it has been imported already, it stays.
"""
import sys
from unittest import mock

for name in ("", ".transforms", ".datasets", ".models", ".utils", ".datasets.utils",
             ".transforms.functional", ".datasets.folder"):
    sys.modules.setdefault(f"torchvision{name}", mock.MagicMock())
