"""What came from what in a run, told from its evidence: as ``kgas-async evidence lineage`` says it, for programs.

Also `Source`, `Traced` and `Lineage`, which is what `lineage` gives.
"""

from kgas_async._derivation import Source
from kgas_async._lineage import Lineage, Traced, lineage

__all__ = ["Lineage", "Source", "Traced", "lineage"]
