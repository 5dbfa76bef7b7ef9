"""The types of `bpr_etl`, whose names are those of `etl`.

In the wheel they are the package `bpr_etl-stubs`: a module alone can't be marked as typed.
"""

from etl import *
from etl import __version__ as __version__
from etl import errors as errors

def main() -> None: ...
